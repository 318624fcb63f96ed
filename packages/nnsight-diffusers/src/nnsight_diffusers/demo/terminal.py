"""A part in the terminal: what is asked, the code that asks it, numbers, and what they say."""

from __future__ import annotations

import inspect
from collections.abc import Sequence

from rich.console import Console
from rich.syntax import Syntax
from rich.table import Table

from .part import Part


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """Make a table whose first column is words and whose others are numbers."""
    made = Table(box=None, padding=(0, 2, 0, 0), header_style="bold", pad_edge=False)
    for number, name in enumerate(header):
        made.add_column(name, justify="right" if number else "left")
    for row in rows:
        made.add_row(*row)
    return made


def show(part: Part, number: int, console: Console) -> None:
    """Print one part."""
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
