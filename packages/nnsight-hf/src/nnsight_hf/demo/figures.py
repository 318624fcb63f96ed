"""The figures of the demo that `nnsight_hf.figures` does not have.

Made without pyplot, so nothing asks for a display and no figure outlives its use.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

#: Okabe and Ito's colours, which all colour visions tell apart.
BLUE, ORANGE, GREY = "#0072b2", "#e69f00", "#7f7f7f"


def empty(width: float, height: float, title: str) -> tuple[Figure, Axes]:
    """Make a figure with one place to draw on."""
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    axes.set_title(title, loc="left", fontweight="bold")
    return figure, axes


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
