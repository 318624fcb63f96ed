"""The process that times one contender: it answers requests on stdin, one line of JSON each, until stdin ends.

The contenders share import names, so each lives in a Python of its own; they take turns round by round, so that a
machine which grows slower grows slower for all of them. Within a round the cases of a process alternate in changing
order, a burst of calls each: people trace in loops, and the first call after other code would mostly time cold caches.
"""

from __future__ import annotations

import gc
import json
import os
import random
import statistics
import sys
import time
import traceback
from typing import Any

import torch

from cases import Case, agree, cases

#: How long a burst of calls of one case is to take, in microseconds, and how many calls it has at most.
_BURST, _MOST = 1000, 10


class Worker:
    """Holds the cases of the current row."""

    def __init__(self, contender: str) -> None:
        self.contender = contender
        self.made: dict[str, Case] = {}
        #: How many calls a burst of each case has.
        self.calls: dict[str, int] = {}
        #: How many bursts a round has at least.
        self.least = 3

    def prepare(self, work: str, model: str, count: int, checked: bool, slow: bool) -> dict[str, float]:
        """Build the cases of a row and warm them up; return what `measure` returns, roughly."""
        if checked and self.contender in ("ours", "peer"):
            agree(work, model, count, self.contender)
        self.made = cases(work, model, count, self.contender)
        self.calls = dict.fromkeys(self.made, 1)
        self.least = 1 if slow else 3
        if not slow:
            self.measure(3)
        rough = self.measure(self.least)
        for name, added in rough.items():
            once = rough["bare"] + (added if name != "bare" else 0.0)
            self.calls[name] = min(max(int(_BURST / max(once, 1.0)), 1), _MOST)
        return rough

    def measure(self, repetitions: int) -> dict[str, float]:
        """Time the cases in turn; return the median of the bare forward and of what each other adds, in microseconds.

        Args:
            repetitions: how often each case is called, rounded to whole bursts and to `least` of them.
        """
        samples: dict[str, list[float]] = {name: [] for name in self.made}
        order = list(self.made.items())
        # Time on the processor: what else the machine does meanwhile does not count. Nothing here waits for anything.
        clock = time.process_time_ns
        # Collections belong to no case in particular; they would hit whichever is running.
        gc.collect()
        gc.disable()
        try:
            for _ in range(max(repetitions // max(self.calls.values()), self.least)):
                for name, case in order:
                    calls = range(self.calls[name])
                    begin = clock()
                    for _ in calls:
                        case()
                    samples[name].append((clock() - begin) / len(calls))
                # Whoever comes after a heavy case finds cold caches, so nobody always does.
                random.shuffle(order)
        finally:
            gc.enable()
        bare = samples.get("bare", [])
        # Differences of neighbours: what slows the machine for longer than two bursts does not count.
        added = {
            name: [time - plain for time, plain in zip(times, bare)] if name != "bare" else times
            for name, times in samples.items()
        }
        return {name: statistics.median(values) / 1000 for name, values in added.items()}

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """Do what a line asks for."""
        action = request.pop("do")
        try:
            return {"times": getattr(self, action)(**request)}
        except Exception:
            return {"error": traceback.format_exc()}


def main() -> None:
    """Serve until stdin ends."""
    # What libraries print must not be taken for an answer.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    torch.set_num_threads(1)
    worker = Worker(sys.argv[1])
    for line in sys.stdin:
        print(json.dumps(worker.answer(json.loads(line))), file=answers)


if __name__ == "__main__":
    main()
