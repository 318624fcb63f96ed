"""The table, and what is made of the figures of a row."""

from __future__ import annotations

import math
import os
import statistics
from collections.abc import Sequence
from typing import Any

from rows import Row


class Figure:
    """What the rounds of one row say.

    Args:
        row: the row.
        ratios: its figure in each process: the median of the rounds there.
        hooks: the same of a hook that does as much, where there is one.
    """

    def __init__(self, row: Row, ratios: Sequence[float], hooks: Sequence[float] = ()) -> None:
        self.row = row
        self.ratios = list(ratios)
        self.hook = statistics.mean(hooks) if hooks else None
        self.mean = statistics.mean(ratios)
        #: The standard error of the mean. Rounds of one process are too much alike to say how far off they are together.
        self.error = statistics.stdev(ratios) / math.sqrt(len(ratios)) if len(ratios) > 1 else math.nan

    @property
    def reached(self) -> bool | None:
        """Whether the target is reached; None if that cannot be told."""
        beyond = self.row.target - self.mean if self.row.at_most else self.mean - self.row.target
        return beyond > 0 if abs(beyond) > self.error else None

    def said(self) -> dict[str, Any]:
        """Return it as JSON has it."""
        row = self.row
        return {
            "row": row.name,
            "ratio": self.mean,
            "ratios": self.ratios,
            "error": self.error,
            "hook": self.hook,
            "target": row.target,
            "reached": self.reached,
        }


def show(figures: Sequence[Figure]) -> None:
    """Print the table."""
    print(f"\nload of the machine: {', '.join(f'{load:.1f}' for load in os.getloadavg())}\n")
    width = max(len(figure.row.name) for figure in figures)
    print(f"{'relative to plain vLLM':{width}}   ratio  +-      must reach  hook   peer")
    for figure in figures:
        row = figure.row
        verdict = {True: "yes", False: "NO", None: "too noisy to tell"}[figure.reached]
        target = f"{'<=' if row.at_most else '>='} {row.target:.2f}"
        hook = "" if figure.hook is None else f"{figure.hook:.3f}"
        peer = "" if row.peer is None else f"{row.peer:.2f}"
        print(
            f"{row.name:{width}}   {figure.mean:5.3f}  {figure.error:5.3f}  {target:10}  {hook:5}  {peer:4}  {verdict}"
        )
