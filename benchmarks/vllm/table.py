"""The table, and what is made of the rounds of a row."""

from __future__ import annotations

import math
import os
import random
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from rows import Row


class Figure:
    """What the rounds of one row say.

    Args:
        row: the row.
        mine, other: the times of its rounds, and of what it is timed beside.
    """

    def __init__(self, row: Row, mine: Sequence[float], other: Sequence[float]) -> None:
        self.row = row
        pairs = list(zip(mine, other))
        self.ratio = self._of(pairs)
        # The standard error, from drawing rounds again and again.
        draw = random.Random(0)
        again = [self._of(draw.choices(pairs, k=len(pairs))) for _ in range(500)]
        self.error = statistics.stdev(again) if len(pairs) > 1 else math.nan

    def _of(self, pairs: Sequence[tuple[float, float]]) -> float:
        mine, other = (_quick(times) for times in zip(*pairs))
        return mine / other if self.row.at_most else other / mine

    @property
    def reached(self) -> bool | None:
        """Whether the target is reached; None if that cannot be told."""
        beyond = self.row.target - self.ratio if self.row.at_most else self.ratio - self.row.target
        return beyond > 0 if abs(beyond) > self.error else None

    def said(self) -> dict[str, Any]:
        """Return it as JSON has it."""
        row = self.row
        return {
            "row": row.name,
            "ratio": self.ratio,
            "error": self.error,
            "target": row.target,
            "reached": self.reached,
        }


def _quick(times: Sequence[float]) -> float:
    """Return the time of the quicker quarter of the rounds: a machine that others use, too, only ever adds to times."""
    quick = sorted(times)[: max(1, len(times) // 4)]
    return statistics.fmean(quick)


def show(figures: Sequence[Figure], tokens: int, times: Mapping[str, Sequence[float]]) -> None:
    """Print the table."""
    if "vllm" in times:
        print(f"\nplain vLLM: {tokens / _quick(times['vllm']):,.0f} tokens/s")
    print(f"load of the machine: {', '.join(f'{load:.1f}' for load in os.getloadavg())}\n")
    width = max(len(figure.row.name) for figure in figures)
    print(f"{'relative to plain vLLM':{width}}   ratio  +-      must reach  peer")
    for figure in figures:
        row = figure.row
        verdict = {True: "yes", False: "NO", None: "too noisy to tell"}[figure.reached]
        target = f"{'<=' if row.at_most else '>='} {row.target:.2f}"
        peer = "" if row.peer is None else f"{row.peer:.2f}"
        print(f"{row.name:{width}}   {figure.ratio:5.3f}  {figure.error:5.3f}  {target:10}  {peer:4}  {verdict}")
