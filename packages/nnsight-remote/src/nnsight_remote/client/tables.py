"""`Table`: rows for a person, which look right in a terminal and in a notebook, and are a list for a program."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from html import escape
from typing import Generic, TypeVar

from rich.console import Console
from rich.table import Table as RichTable

T = TypeVar("T")


class Table(list[T], Generic[T]):
    """A list that shows itself as a table.

    Args:
        title: what it is about.
        heads: the heads of the columns.
        rows: the elements, each with its cells.
        empty: what to show if there is none.
    """

    def __init__(
        self, title: str, heads: Sequence[str], rows: Iterable[tuple[T, Sequence[object]]], empty: str = "nothing"
    ) -> None:
        found = list(rows)
        super().__init__(element for element, _ in found)
        self.title = title
        self._heads = tuple(heads)
        self._cells = [["" if cell is None else str(cell) for cell in cells] for _, cells in found]
        self._empty = empty

    def __rich__(self) -> RichTable:
        table = RichTable(
            *self._heads, title=self.title, title_justify="left", caption=self._empty if not self else None
        )
        for cells in self._cells:
            table.add_row(*map(_literally, cells))
        return table

    def __repr__(self) -> str:
        # As wide as it needs to be: a name that is cut cannot be copied.
        file = io.StringIO()
        Console(file=file, width=200, color_system=None, force_jupyter=False).print(self)
        return "\n".join(line.rstrip() for line in file.getvalue().splitlines())

    __str__ = __repr__

    def _repr_html_(self) -> str:
        heads = "".join(f'<th style="text-align:left">{escape(head)}</th>' for head in self._heads)
        rows = "".join(
            "<tr>" + "".join(f'<td style="text-align:left">{escape(cell)}</td>' for cell in cells) + "</tr>"
            for cells in self._cells
        )
        below = "" if self else f"<p>{escape(self._empty)}</p>"
        return f"<p><b>{escape(self.title)}</b></p><table><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table>{below}"


def _literally(cell: str) -> str:
    from rich.markup import escape as literal

    return literal(cell)
