"""The table, and the same as JSON."""

from __future__ import annotations

import dataclasses
import json
import math
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

import fresh
import remote
import wire
from rows import Row, Timed

_IMPORT_LIMIT = 60.0
_COLUMNS = ("hooks", "ours", "in place", "peer", "peer in place", "pyvene", "TransformerLens")


class Report:
    """The results of one run."""

    def __init__(self, contenders: Mapping[str, str]) -> None:
        self.contenders = list(contenders)
        self.rows: list[tuple[Row, Timed]] = []
        self.imports: dict[str, float] = {}
        self.fresh: dict[str, tuple[float, float]] = {}
        self.wire: dict[str, dict[str, float]] = {}
        self.remote: list[remote.RoundTrip] = []

    def add(self, row: Row, timed: Timed) -> None:
        """Take in one row."""
        self.rows.append((row, timed))

    # -- verdicts ----------------------------------------------------------------------------------------------------

    def linear(self) -> float | None:
        """Return what an invoke costs late in a large batch, relative to one in a small batch.

        Linear growth gives 1; what a trace costs whatever it holds is taken off first.
        """
        costs = {row.count: timed.overheads["ours"] for row, timed in self.rows if row.work == "invokes"}
        if not {1, 8, 32, 128} <= set(costs):
            return None
        return ((costs[128] - costs[32]) / 96) / ((costs[32] - costs[1]) / 31)

    # -- showing -----------------------------------------------------------------------------------------------------

    def show(self) -> None:
        """Print the table."""
        console = Console()
        if not console.is_terminal:
            console.width = 200
        shown = [name for name in _COLUMNS if any(name in timed.overheads for _, timed in self.rows)]
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

        for text, (ratio, error) in self.fresh.items():
            bound = fresh.FIGURES[text][2]
            mark = _mark(None if abs(ratio - bound) < error else ratio <= bound)
            console.print(f"{text}: {ratio:.3f} (must be at most {bound:g}).", mark)

        for name, figures in self.wire.items():
            said = [
                f"{figures[unit]:.3g} {unit}" + (f" (must be under {limit:g})" if name == "ours" else "")
                for unit, limit in wire.LIMITS.items()
            ]
            mark = _mark(all(figures[unit] < limit for unit, limit in wire.LIMITS.items())) if name == "ours" else ""
            console.print(f"a block of one line on 32 layers, encoded, {name}: {', '.join(said)}.", mark)
        if {"ours", "peer"} <= self.wire.keys():
            ratios = [f"{self.wire['ours'][unit] / self.wire['peer'][unit]:.3f} of the {unit}" for unit in wire.LIMITS]
            console.print(f"a block of one line on 32 layers, encoded, ours / peer: {', '.join(ratios)}.")
        for trip in self.remote:
            self._show_round_trip(console, trip)

    def _show_round_trip(self, console: Console, trip: remote.RoundTrip) -> None:
        said = [f"{name} {_ms(trip.remote[name])} (local {_ms(trip.local[name])})" for name in trip.remote]
        console.print(f"round trip on loopback of {remote.WORKS[trip.work][0]}: {', '.join(said)}.")
        ratio = trip.ratio()
        if ratio is not None:
            reached = None if abs(ratio[0] - remote.BOUND) < ratio[1] else ratio[0] < remote.BOUND
            console.print(f"  ours / peer: {ratio[0]:.2f} (must be below {remote.BOUND:g}).", _mark(reached))
        there = sum(trip.stages.values())
        parts = [f"{stage} {_ms(seconds)}" for stage, seconds in trip.stages.items()]
        rest = f"the client and what lies between {_ms(max(0.0, trip.remote['ours'] - there))}"
        console.print(f"  of ours: {', '.join(parts)}, {rest}.")

    def _table(self, shown: list[str]) -> Table:
        table = Table(title="Overhead over the bare forward, in microseconds (medians)", title_justify="left")
        for heading in ("work", "model"):
            table.add_column(heading)
        for heading in ("bare", *shown, "ours / hooks", "ours / peer"):
            table.add_column(heading, justify="right")
        table.add_column("must reach")
        for row, timed in self.rows:
            ratios = [_spelled(timed, other) for other in ("hooks", "peer")]
            overheads = [_number(timed.overheads.get(name), 1) for name in shown]
            about = (row.name, row.model, _number(timed.bare, 1))
            table.add_row(*about, *overheads, *ratios, self._verdict(row, timed))
        return table

    def _verdict(self, row: Row, timed: Timed) -> str:
        parts = []
        for target in row.targets:
            figure = target.figure(timed)
            reached = "" if figure is None else f": {_number(figure[0], 2)} {_mark(target.is_reached(timed))}"
            parts.append(f"{target.text}{reached}")
        return "\n".join(parts)

    # -- writing -----------------------------------------------------------------------------------------------------

    def write(self, path: str) -> None:
        """Write everything as JSON."""
        rows: list[dict[str, Any]] = []
        for row, timed in self.rows:
            targets = [
                {"target": target.text, "figure": _finite(target.figure(timed)), "reached": target.is_reached(timed)}
                for target in row.targets
            ]
            rows.append({"work": row.name, "model": row.model, **dataclasses.asdict(timed), "targets": targets})
        about = {"python": platform.python_version(), "machine": platform.machine(), "contenders": self.contenders}
        result = {
            "about": about,
            "rows": rows,
            "linear": self.linear(),
            "import milliseconds": self.imports,
            "fresh processes": self.fresh,
            "wire": self.wire,
            "round trips": [{**dataclasses.asdict(trip), "ratio": trip.ratio()} for trip in self.remote],
        }
        Path(path).write_text(json.dumps(result, indent=2) + "\n")


def _spelled(timed: Timed, other: str) -> str:
    ratio = timed.ratio(other)
    return "" if ratio is None else _number(ratio[0], 2)


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:,.1f} ms"


def _finite(figure: tuple[float, float, float] | None) -> float | None:
    return None if figure is None or math.isnan(figure[0]) else figure[0]


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else "?" if math.isnan(value) else f"{value:,.{digits}f}"


def _mark(reached: bool | None) -> str:
    return {True: "[green]yes[/]", False: "[red]no[/]", None: "[yellow]too noisy to tell[/]"}[reached]
