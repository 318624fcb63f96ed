"""Rows of small images with names beside and above them.

Made without pyplot, so nothing asks for a display and no figure outlives its use.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

#: The side of an image in a figure, in inches.
_SIDE = 1.0
#: Brighter with every step, the same for all colour visions.
COLOURS = "cividis"


def grid(
    images: torch.Tensor, rows: Sequence[str], columns: Sequence[str], *, title: str, side: float = _SIDE
) -> Figure:
    """Draw images [row, column, colour, height, width], from 0 to 1."""
    widest = max(len(line) for row in rows for line in row.split("\n"))
    lines = max(column.count("\n") + 1 for column in columns)
    # The names of columns stand above the first row only.
    figure, places = _places(len(rows), len(columns), title, side, beside=0.075 * widest, above=0.2 * lines / len(rows))
    for number, row in enumerate(images):
        for place, image in zip(places[number], row):
            place.imshow(image.permute(1, 2, 0).float().numpy(), interpolation="nearest")
        _name_row(places[number][0], rows[number])
    for place, column in zip(places[0], columns):
        place.set_title(column, fontsize=9)
    return figure


def strip(images: Sequence[torch.Tensor], rows: Sequence[str], columns: Sequence[str], *, title: str) -> Figure:
    """Draw the steps of a run from left to right, a row for each kind of image."""
    return grid(torch.stack(list(images)), rows, columns, title=title, side=0.85)


def word_maps(
    drawn: Sequence[tuple[torch.Tensor, torch.Tensor]], words: Sequence[Sequence[str]], *, title: str
) -> Figure:
    """Draw, for each prompt, its image, and the map of each word from its least share to its greatest.

    Args:
        drawn: of each prompt the maps [height, width, token], and the image [colour, height, width].
        words: the tokens of each prompt; as many as are to be shown.
        title: stands above.
    """
    figure, places = _places(len(drawn), 1 + max(map(len, words)), title, _SIDE, above=0.4)
    for row, (maps, image), names in zip(places, drawn, words):
        row[0].imshow(image.permute(1, 2, 0).float().numpy(), interpolation="nearest")
        row[0].set_title("image", fontsize=9)
        for place, token, name in zip(row[1:], maps.unbind(-1), names):
            place.imshow(token.float().numpy(), cmap=COLOURS, interpolation="nearest")
            low, high = (round(100 * float(edge)) for edge in token.aminmax())
            place.set_title(f"{name}\n{low}-{high} %", fontsize=9)
    return figure


def _places(
    rows: int, columns: int, title: str, side: float, *, beside: float = 0.0, above: float = 0.0
) -> tuple[Figure, Any]:
    """Make a figure of squares.

    Args:
        rows, columns: how many.
        title: stands above all.
        side: how large each is, in inches.
        beside: the room for the names of rows.
        above: the room for a title above each row.
    """
    size = columns * (side + 0.06) + beside + 0.1, rows * (side + above + 0.06) + 0.5
    figure = Figure(size, layout=ConstrainedLayoutEngine(w_pad=0.03, h_pad=0.03, wspace=0, hspace=0))
    places = figure.subplots(rows, columns, squeeze=False)
    for place in places.flat:
        place.set_axis_off()
    figure.suptitle(title, x=0.01, ha="left", fontweight="bold", fontsize=11)
    return figure, places


def _name_row(place: Axes, name: str) -> None:
    place.text(-0.08, 0.5, name, ha="right", va="center", fontsize=9, transform=place.transAxes)
