"""Numbers as tables in the terminal: coloured where there are colours, and complete without them.

rich fits a table into the width there is. A cell carries its number (and word) as text; its colour says the same again.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence

import matplotlib
import torch
from rich.console import Console
from rich.syntax import Syntax
from rich.table import Table
from rich.text import Text

from .part import Part

#: The same for all colour visions, and brighter with every step, so that it reads as more.
COLOURS = matplotlib.colormaps["cividis"]
#: Values below are left without a background: most cells of a heat map say "nothing here".
FAINT = 0.05


def heat_map(
    values: torch.Tensor, rows: Sequence[str], columns: Sequence[str], words: Sequence[Sequence[str]] | None = None
) -> Table:
    """Make a heat map of values from 0 to 1 [row, column], with a word in each cell if there are any."""
    table = Table(box=None, padding=0, header_style="bold", pad_edge=False)
    table.add_column(overflow="ellipsis", no_wrap=True)
    for column in columns:
        table.add_column(_centred(column), justify="center", overflow="ellipsis", no_wrap=True, vertical="middle")
    for number, row in enumerate(rows):
        cells = []
        for place, value in enumerate(values[number].tolist()):
            word = f"{words[number][place]}\n" if words is not None else ""
            cells.append(_centred(f"{word}{abs(value) if abs(value) < 0.005 else value:.2f}", _style(value)))
        table.add_row(Text(f"{row} "), *cells)
    return table


def _centred(text: str, style: str = "") -> Text:
    return Text("\n".join(f" {line} " for line in text.split("\n")), style=style, justify="center", overflow="ellipsis")


def _style(value: float) -> str:
    if value < FAINT:
        return "dim"
    red, green, blue, _ = COLOURS(min(value, 1.0), bytes=True)
    ink = "black" if value > 0.5 else "white"
    return f"{ink} on #{red:02x}{green:02x}{blue:02x}"


def bars(values: torch.Tensor, labels: Sequence[str]) -> Table:
    """Make horizontal bars of values that are not negative."""
    table = Table(box=None, padding=(0, 1), show_header=False, pad_edge=False)
    table.add_column(justify="right")
    table.add_column(justify="right")
    table.add_column(overflow="ellipsis", no_wrap=True)
    for label, value in zip(labels, values.tolist()):
        length = round(40 * value / float(values.max()))
        table.add_row(label, f"{value:.2f}", Text("#" * max(1, length), style="yellow"))
    return table


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """Make a plain table; columns of numbers are aligned on the right."""
    made = Table(box=None, padding=(0, 2, 0, 0), header_style="bold", pad_edge=False)
    for number, name in enumerate(header):
        numeric = all(row[number][:1].isdigit() for row in rows)
        made.add_column(name, justify="right" if numeric else "left")
    for row in rows:
        made.add_row(*map(Text, row))
    return made


def show(part: Part, number: int, console: Console) -> None:
    """Print one part: what is asked, the code that asks it, the numbers, and what they say."""
    console.rule(f"[bold]{number}. {part.title}", align="left", characters="-")
    console.print(part.question, highlight=False)
    console.print()
    code = inspect.getsource(part.code)
    if console.is_terminal:
        console.print(Syntax(code, "python", background_color="default", word_wrap=True))
    else:
        console.print(code, markup=False, highlight=False, soft_wrap=True)
    console.print(part.table)
    console.print()
    console.print(part.finding, style="bold green", highlight=False)
    console.print()
