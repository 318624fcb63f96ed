"""Timing one row: rounds in which the contenders take turns, and what is made of them."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from contender import Contender
from rows import Row, Times

_FEWEST, _MOST = 3, 200


class Timing:
    """How long a row may take.

    Args:
        rounds: how many rounds.
        seconds: how long one contender's part of a round should take.
    """

    def __init__(self, rounds: int, seconds: float) -> None:
        self.rounds = rounds
        self.seconds = seconds

    def repetitions(self, rough: Times) -> int:
        """Return how often the cases fit into a round."""
        fitting = int(self.seconds * 1e6 / max(sum(rough.values()), 1.0))
        return min(max(fitting, _FEWEST), _MOST)


def time_row(row: Row, contenders: Sequence[Contender], timing: Timing) -> dict[str, float]:
    """Time a row and return the contenders' times, with that of the bare forward as "bare".

    Each process times the bare forward too, and a round's overhead is the difference to its own: the processes need not
    agree about the forward. What is returned as a contender's time is our bare forward plus its median overhead.
    """
    able = [(contender, rough) for contender in contenders if (rough := contender.prepare(row))]
    bare: list[float] = []
    overheads: dict[str, list[float]] = {}
    for _ in range(timing.rounds):
        for contender, rough in able:
            if row.fresh:
                contender.prepare(row, checked=False)
            times = contender.measure(timing.repetitions(rough))
            if contender.name == "ours":
                bare.append(times["bare"])
            for name, time in times.items():
                if name != "bare":
                    shown = name if contender.name == "ours" or name == contender.name else f"{contender.name} {name}"
                    overheads.setdefault(shown, []).append(time - times["bare"])
    forward = statistics.median(bare)
    return {"bare": forward, **{name: forward + statistics.median(values) for name, values in overheads.items()}}
