"""Maps of cells: the logit lens, patching, attention. All are `heat_map` with the colours and words that they need."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .labels import crowded, hide_frame, put_labels, token_labels

#: One hue, darker with every step; and two that meet in white.
ONE_WAY, TWO_WAYS = "Blues", "RdBu_r"
#: A cell in inches: one that holds a word, one that holds a number, one that holds nothing. A figure is no wider than that.
_WORD, _NUMBER, _BARE, _WIDEST = (1.0, 0.52), (0.62, 0.4), (0.3, 0.3), 24.0


def heat_map(
    values: Any,
    rows: Sequence[str],
    columns: Sequence[str],
    *,
    words: Sequence[Sequence[str]] | None = None,
    numbers: bool | None = None,
    label: str = "",
    low: float | None = None,
    high: float | None = None,
    colours: str = ONE_WAY,
    bar: bool = True,
    ax: Axes | None = None,
) -> Axes:
    """Draw a map of numbers.

    Args:
        values: [rows, columns]; a tensor, an array or lists. A cell without a number (NaN) stays empty.
        rows: their names, from the top.
        columns: their names. Give tokens through `token_labels`.
        words: what to write in each cell above its number.
        numbers: write the number in each cell; where there is room, if not said.
        label: what the numbers are; stands beside the bar of colours.
        low: the number of the first colour; the least one if not given.
        high: the number of the last colour; the greatest one if not given.
        colours: a colour map of matplotlib.
        bar: show which colour is which number.
        ax: where to draw.
    """
    cells = _cells(values, rows, columns)
    small = len(columns) <= 24 and len(rows) <= 48
    numbers = small if numbers is None else numbers
    words = words if small else None
    width, height = _WORD if words is not None else _NUMBER if numbers else _BARE
    if ax is None:
        import matplotlib.pyplot as plt

        side = 0.08 * max((len(row) for row in rows), default=0) + (1.2 if bar else 0.3)
        size = (min(_WIDEST, max(3.5, width * len(columns) + side)), max(1.8, height * len(rows) + 1.2))
        _, ax = plt.subplots(figsize=size, layout="constrained")
    known = cells[~cells.isnan()]
    low = float(known.min()) if low is None else low
    high = float(known.max()) if high is None else high
    image = ax.imshow(cells.numpy(), cmap=colours, vmin=low, vmax=high, aspect="auto", interpolation="nearest")
    room = ax.get_window_extent().width / ax.figure.dpi / max(1, len(columns))
    put_labels(ax.xaxis, columns, upright=crowded(columns, room))
    put_labels(ax.yaxis, rows, upright=False)
    hide_frame(ax)
    if small:
        # White lines between the cells.
        ax.set_xticks([x - 0.5 for x in range(1, len(columns))], minor=True)
        ax.set_yticks([y - 0.5 for y in range(1, len(rows))], minor=True)
        ax.grid(which="minor", color="white", linewidth=1.2)
        ax.tick_params(which="minor", length=0)
    if numbers or words is not None:
        for y, row in enumerate(cells.tolist()):
            for x, value in enumerate(row):
                if math.isnan(value):
                    continue
                word = [words[y][x]] if words is not None else []
                text = "\n".join([*word, *([_number(value)] if numbers else [])])
                red, green, blue, _ = image.cmap(image.norm(value))
                ink = "white" if 0.299 * red + 0.587 * green + 0.114 * blue < 0.5 else "black"
                ax.text(x, y, text, ha="center", va="center", color=ink, fontsize=8, linespacing=1.1, parse_math=False)
    if bar:
        drawn = ax.figure.colorbar(image, ax=ax, label=label, fraction=0.04, pad=0.02)
        drawn.outline.set_visible(False)
    return ax


def logit_lens(
    probabilities: Any,
    words: Sequence[Sequence[str]],
    tokens: Sequence[str],
    layers: Sequence[str] | None = None,
    *,
    ax: Axes | None = None,
) -> Axes:
    """Draw what a model would say after each layer, and how surely (nostalgebraist, "interpreting GPT", 2020).

    Args:
        probabilities: of the word in each cell [layers, positions].
        words: the likeliest next token after each layer and position; they are shown as `token_labels` shows them.
        tokens: what the model reads, one for each position.
        layers: the names of the layers, the first on top; their numbers if not given.
        ax: where to draw.
    """
    names = _layers(probabilities, layers)
    shown = [token_labels(row) for row in words]
    label = "probability of the word"
    ax = heat_map(probabilities, names, token_labels(tokens), words=shown, low=0, high=1, label=label, ax=ax)
    ax.set_xlabel("token that was read")
    ax.set_ylabel("layer" if layers is None else "")
    return ax


def patching(
    effects: Any,
    tokens: Sequence[str],
    layers: Sequence[str] | None = None,
    *,
    sources: Sequence[str] | None = None,
    label: str = "effect of the patch",
    ax: Axes | None = None,
) -> Axes:
    """Draw the effect of a patch at each layer and position; no effect is white, whatever the largest is.

    Args:
        effects: [layers, positions].
        tokens: one for each position. For two prompts, `token + "\\n" + other` shows both.
        layers: the names of the layers, or of heads or other parts, the first on top; their numbers if not given.
        label: what an effect is.
        ax: where to draw.
    """
    cells = _tensor(effects)
    most = float(cells.abs().max()) or 1.0
    names = _layers(effects, layers)
    columns = token_labels(tokens)
    if sources is not None:
        pairs = zip(columns, token_labels(sources), strict=True)
        columns = [one if one == other else f"{other}\n→ {one}" for one, other in pairs]
    ax = heat_map(cells, names, columns, low=-most, high=most, colours=TWO_WAYS, label=label, ax=ax)
    ax.set_xlabel("position of the patch")
    ax.set_ylabel("layer" if layers is None else "")
    return ax


def attention(
    weights: Any,
    tokens: Sequence[str],
    sources: Sequence[str] | None = None,
    *,
    high: float | None = None,
    bar: bool = True,
    ax: Axes | None = None,
) -> Axes:
    """Draw the attention pattern of one head.

    Args:
        weights: [queries, keys]. What is exactly zero, the future above all, stays empty.
        tokens: the tokens that attend, from the top.
        sources: the tokens that are attended to; the same ones if not given.
        high: the weight with the last colour; the largest one if not given.
        bar: show which colour is which weight.
        ax: where to draw.
    """
    cells = _tensor(weights)
    if cells.dim() != 2:
        raise ValueError(
            f"attention draws one head, [queries, keys]; this is of shape {tuple(cells.shape)}. `attention_heads` draws "
            "[heads, queries, keys]; of a batch, take one row."
        )
    rows, columns = token_labels(tokens), token_labels(tokens if sources is None else sources)
    few = len(rows) <= 12
    high = float(cells.max()) if high is None else high
    cells = cells.masked_fill(cells == 0, math.nan)
    ax = heat_map(cells, rows, columns, numbers=few, low=0, high=high, label="weight", bar=bar, ax=ax)
    ax.set_xlabel("attended to")
    ax.set_ylabel("attends")
    return ax


def attention_heads(weights: Any, tokens: Sequence[str], heads: Sequence[str] | None = None) -> Figure:
    """Draw the attention patterns of several heads beside one another, in one scale of colours.

    Args:
        weights: [heads, queries, keys].
        tokens: one for each position.
        heads: the names of the heads; their numbers if not given.
    """
    import matplotlib.pyplot as plt

    cells = _tensor(weights)
    if cells.dim() != 3:
        raise ValueError(f"attention_heads draws [heads, queries, keys]; this is of shape {tuple(cells.shape)}")
    names = [f"head {number}" for number in range(len(cells))] if heads is None else list(heads)
    across = min(4, len(cells))
    down = math.ceil(len(cells) / across)
    side = min(4.0, max(2.2, 0.2 * len(tokens) + 1.0))
    figure, axes = plt.subplots(
        down, across, figsize=(across * side + 1.2, down * side + 0.8), squeeze=False, layout="constrained"
    )
    labels, high = token_labels(tokens), float(cells.max())
    every = list(axes.flat)
    for ax in every[len(cells) :]:
        ax.set_visible(False)
    for number, (ax, head, name) in enumerate(zip(every, cells, names)):
        heat_map(head, labels, labels, numbers=False, low=0, high=high, bar=False, ax=ax)
        ax.set_title(name, fontsize=10)
        put_labels(ax.xaxis, labels, upright=True)
        ax.tick_params(labelsize=8, labelleft=number % across == 0, labelbottom=number + across >= len(cells), length=0)
    drawn = figure.colorbar(every[0].images[0], ax=axes, label="weight", fraction=0.03, pad=0.02)
    drawn.outline.set_visible(False)
    return figure


def _tensor(values: Any) -> torch.Tensor:
    if isinstance(values, (list, tuple)) and any(isinstance(row, torch.Tensor) for row in values):
        values = torch.stack(list(values))
    return torch.as_tensor(values).detach().float().cpu()


def _cells(values: Any, rows: Sequence[str], columns: Sequence[str]) -> torch.Tensor:
    cells = _tensor(values)
    if tuple(cells.shape) != (len(rows), len(columns)):
        raise ValueError(
            f"the numbers of a map are [rows, columns]; there are {len(rows)} names of rows and {len(columns)} of columns, "
            f"and the numbers are of shape {tuple(cells.shape)}"
        )
    return cells


def _layers(values: Any, names: Sequence[str] | None) -> list[str]:
    return [str(number) for number in range(len(values))] if names is None else list(names)


def _number(value: float) -> str:
    # No "-0.00", which would be a sign without a number.
    return f"{abs(value) if abs(value) < 0.005 else value:.2f}"
