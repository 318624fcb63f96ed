"""Numbers as figures. Made without pyplot, so nothing asks for a display and no figure outlives its use."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

#: Okabe and Ito's colours, which all colour visions tell apart.
BLUE, ORANGE, GREY = "#0072b2", "#e69f00", "#7f7f7f"
#: One hue, darker with every step.
COLOURS = "Blues"


def heat_map(
    values: torch.Tensor,
    rows: Sequence[str],
    columns: Sequence[str],
    words: Sequence[Sequence[str]] | None = None,
    *,
    title: str,
    across: str,
    scale: str,
    ends: tuple[str, str] | None = None,
) -> Figure:
    """Draw values from 0 to 1 [row, column], with a word in each cell if there are any, and names for 0 and 1."""
    figure = Figure(figsize=(9.5, 1.4 + (0.5 if words is not None else 0.42) * len(rows)), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(values.tolist(), cmap=COLOURS, vmin=0, vmax=1, aspect="auto")
    axes.set_title(title, loc="left", fontweight="bold")
    axes.set_xlabel(across)
    axes.set_xticks(range(len(columns)), columns)
    axes.set_yticks(range(len(rows)), rows)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    # White lines between the cells.
    axes.set_xticks([x - 0.5 for x in range(1, len(columns))], minor=True)
    axes.set_yticks([y - 0.5 for y in range(1, len(rows))], minor=True)
    axes.grid(which="minor", color="white", linewidth=1.5)
    axes.tick_params(which="minor", length=0)
    for y, row in enumerate(values.tolist()):
        for x, value in enumerate(row):
            word = f"{words[y][x]}\n" if words is not None else ""
            ink = "white" if value > 0.55 else "black"
            number = f"{abs(value) if abs(value) < 0.005 else value:.2f}"
            axes.text(x, y, word + number, ha="center", va="center", color=ink, fontsize=9, linespacing=1.1)
    bar = figure.colorbar(image, label=scale, fraction=0.04, pad=0.02)
    bar.outline.set_visible(False)
    if ends is not None:
        bar.set_ticks([0, 0.5, 1], labels=[f"0 {ends[0]}", "0.5", f"1 {ends[1]}"])
    return figure


def bars(values: torch.Tensor, labels: Sequence[str], *, title: str, across: str, up: str) -> Figure:
    """Draw one bar for each label."""
    figure = Figure(figsize=(8, 3.2), layout="constrained")
    axes = figure.subplots()
    drawn = axes.bar(range(len(labels)), values.tolist(), color=BLUE, width=0.7)
    axes.bar_label(drawn, fmt="%.2f", padding=2)
    axes.set_xticks(range(len(labels)), labels)
    axes.set_title(title, loc="left", fontweight="bold")
    axes.set_xlabel(across)
    axes.set_ylabel(up)
    axes.margins(y=0.15)
    _clear(axes)
    return figure


def curves(
    xs: Sequence[float],
    ys: Mapping[str, Sequence[float]],
    texts: Sequence[str],
    *,
    title: str,
    across: str,
    up: str,
) -> Figure:
    """Draw curves over `xs`, and beside them the text that belongs to each of `xs`."""
    figure = Figure(figsize=(10.5, 4), layout="constrained")
    axes, beside = figure.subplots(1, 2, width_ratios=(5, 4))
    styles = [(BLUE, "o-"), (ORANGE, "s-"), (GREY, "^--")]
    for (name, values), (colour, style) in zip(ys.items(), styles):
        axes.plot(xs, values, style, color=colour, label=name)
    axes.set_ylim(-0.03, 1.03)
    axes.set_xlabel(across)
    axes.set_ylabel(up)
    axes.legend(frameon=False)
    figure.suptitle(title, x=0.01, ha="left", fontweight="bold")
    _clear(axes)

    beside.axis("off")
    labels = [across, *(f"{x:g}" for x in xs)]
    for number, (label, text) in enumerate(zip(labels, ["what the model writes", *texts])):
        height = 1 - (number + 0.5) / len(labels)
        ink = GREY if number == 0 else "black"
        beside.text(0.14, height, label, ha="right", va="center", color=GREY, transform=beside.transAxes)
        beside.text(0.18, height, text, va="center", color=ink, transform=beside.transAxes)
    return figure


def paired_bars(
    labels: Sequence[str], groups: Mapping[str, Sequence[float]], *, line: tuple[str, float], title: str, up: str
) -> Figure:
    """Draw two bars for each label, and a line to compare them with."""
    figure = Figure(figsize=(7, 3.6), layout="constrained")
    axes = figure.subplots()
    for shift, (name, values), colour in zip((-0.2, 0.2), groups.items(), (ORANGE, BLUE)):
        drawn = axes.bar([x + shift for x in range(len(labels))], values, 0.36, color=colour, label=name)
        axes.bar_label(drawn, fmt="%.2f", padding=2)
    axes.axhline(line[1], color=GREY, linestyle="--", label=f"{line[0]} ({line[1]:.2f})")
    axes.set_xticks(range(len(labels)), labels)
    axes.set_ylabel(up)
    axes.set_title(title, loc="left", fontweight="bold")
    axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    axes.margins(y=0.12)
    _clear(axes)
    return figure


def _clear(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
