"""The table, and the same as JSON."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from rows import Row, Target, Times

_IMPORT_LIMIT = 60.0
_COLUMNS = ("hooks", "ours", "in place", "peer", "peer in place", "pyvene", "TransformerLens")


class Report:
    """The results of one run."""

    def __init__(self, contenders: Mapping[str, str]) -> None:
        self.contenders = list(contenders)
        self.rows: list[tuple[Row, Times]] = []
        self.imports: dict[str, float] = {}

    def add(self, row: Row, times: Times) -> None:
        """Take in one row."""
        self.rows.append((row, times))

    # -- verdicts ----------------------------------------------------------------------------------------------------

    def verdicts(self, row: Row, times: Times) -> list[tuple[Target, float | None]]:
        """Return the row's targets with the figures that they bound."""
        return [(target, target.figure(times)) for target in row.targets]

    def linear(self) -> float | None:
        """Return what an invoke costs late in a large batch, relative to one in a small batch.

        Linear growth gives 1; what a trace costs whatever it holds is taken off first.
        """
        costs = {row.count: times["ours"] - times["bare"] for row, times in self.rows if row.work == "invokes"}
        if not {1, 8, 32, 128} <= set(costs):
            return None
        return ((costs[128] - costs[32]) / 96) / ((costs[32] - costs[1]) / 31)

    # -- showing -----------------------------------------------------------------------------------------------------

    def show(self) -> None:
        """Print the table."""
        console = Console()
        if not console.is_terminal:
            console.width = 180
        shown = [name for name in _COLUMNS if any(name in times for _, times in self.rows)]
        if self.rows:
            console.print(self._table(shown))
        growth = self.linear()
        if growth is not None:
            text = f"Invokes: one of the last 96 of 128 costs {growth:.2f} of one of the first 32 (linear: 1)."
            console.print(text, _mark(growth <= 1.25))
        for name, milliseconds in self.imports.items():
            mark = _mark(milliseconds < _IMPORT_LIMIT) if name == "ours" else ""
            bound = f" (must be under {_IMPORT_LIMIT:g})" if name == "ours" else ""
            console.print(f"`import nnsight` after torch, {name}: {milliseconds:.0f} ms{bound}. {mark}")

    def _table(self, shown: list[str]) -> Table:
        table = Table(title="Overhead over the bare forward, in microseconds (medians)", title_justify="left")
        for heading in ("work", "model"):
            table.add_column(heading)
        for heading in ("bare", *shown, "ours / hooks", "ours / peer"):
            table.add_column(heading, justify="right")
        table.add_column("must reach")
        for row, times in self.rows:
            ratios = [_number(_ratio(times, "hooks"), 2), _number(_ratio(times, "peer"), 2)]
            overheads = [_number(times[n] - times["bare"] if n in times else None, 1) for n in shown]
            about = (row.name, row.model, _number(times["bare"], 1))
            table.add_row(*about, *overheads, *ratios, self._verdict(row, times))
        return table

    def _verdict(self, row: Row, times: Times) -> str:
        parts = []
        for target, figure in self.verdicts(row, times):
            reached = "" if figure is None else f": {figure:.2f} {_mark(figure <= target.at_most)}"
            parts.append(f"{target.text}{reached}")
        return "\n".join(parts)

    # -- writing -----------------------------------------------------------------------------------------------------

    def write(self, path: str) -> None:
        """Write everything as JSON."""
        rows: list[dict[str, Any]] = []
        for row, times in self.rows:
            verdicts = [
                {"target": t.text, "figure": figure, "reached": None if figure is None else figure <= t.at_most}
                for t, figure in self.verdicts(row, times)
            ]
            rows.append({"work": row.name, "model": row.model, "microseconds": dict(times), "targets": verdicts})
        about = {"python": platform.python_version(), "machine": platform.machine(), "contenders": self.contenders}
        result = {"about": about, "rows": rows, "linear": self.linear(), "import milliseconds": self.imports}
        Path(path).write_text(json.dumps(result, indent=2) + "\n")


def _ratio(times: Times, other: str) -> float | None:
    if other not in times or times[other] <= times["bare"]:
        return None
    return (times["ours"] - times["bare"]) / (times[other] - times["bare"])


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:,.{digits}f}"


def _mark(reached: bool) -> str:
    return "[green]yes[/]" if reached else "[red]no[/]"
