"""Timing one row: rounds in which the contenders take turns, and what is made of them."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence

from contender import Contender
from rows import Row, Timed

_FEWEST, _MOST = 3, 200

#: How many rounds a row has at most whose calls take seconds.
_SLOW_ROUNDS = 9


class Timing:
    """How long a row may take.

    Args:
        rounds: how many rounds.
        seconds: how long one contender's part of a round should take.
    """

    def __init__(self, rounds: int, seconds: float) -> None:
        self.rounds = rounds
        self.seconds = seconds

    def repetitions(self, rough: Mapping[str, float]) -> int:
        """Return how often the cases fit into a round, given the bare forward and what each other case adds to it."""
        once = sum(rough["bare"] + (time if name != "bare" else 0.0) for name, time in rough.items())
        fitting = int(self.seconds * 1e6 / max(once, 1.0))
        return min(max(fitting, _FEWEST), _MOST)


def time_row(row: Row, contenders: Sequence[Contender], timing: Timing) -> Timed:
    """Time a row. Each process times the bare forward too, and an overhead is the difference to its own."""
    able = [(contender, rough) for contender in contenders if (rough := contender.prepare(row))]
    bare: list[float] = []
    overheads: dict[str, list[float]] = {}
    for _ in range(min(timing.rounds, _SLOW_ROUNDS) if row.slow else timing.rounds):
        for contender, rough in able:
            if row.fresh:
                contender.prepare(row, checked=False)
            times = contender.measure(1 if row.slow else timing.repetitions(rough))
            if contender.name == "ours":
                bare.append(times["bare"])
            for name, overhead in times.items():
                if name != "bare":
                    shown = name if contender.name == "ours" or name == contender.name else f"{contender.name} {name}"
                    overheads.setdefault(shown, []).append(overhead)
    return Timed(
        statistics.median(bare),
        {name: statistics.median(values) for name, values in overheads.items()},
        {name: _error(values) for name, values in overheads.items()},
    )


def _error(values: list[float]) -> float:
    """Return the standard error of the median, from the quartiles, as for normally distributed values."""
    low, _, high = statistics.quantiles(values, n=4)
    return 1.2533 * (high - low) / 1.349 / math.sqrt(len(values))
