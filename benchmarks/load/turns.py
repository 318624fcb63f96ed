"""A user who hands in hundreds of jobs, and one who wants an answer: how long the second waits for the first."""

from __future__ import annotations

import time
from bisect import bisect_left, bisect_right
from dataclasses import dataclass
from statistics import median

from client import User
from served import mlp
from serving import Serving


@dataclass
class Turns:
    """What became of it; times in seconds.

    Attributes:
        greedy: how many jobs the one handed in at once.
        alone: the other's median latency with nobody else there.
        beside: that beside the greedy one.
        most_between: how many of the greedy one's jobs began, at most, while one of the other's waited.
        wrong: what is wrong, in words.
    """

    greedy: int
    alone: float
    beside: float
    most_between: int
    wrong: list[str]


def run_turns(serving: Serving, greedy: int, polite: int) -> Turns:
    """Let one user hand in `greedy` jobs, and another run `polite` of them one after another meanwhile."""
    limits = {"queued": 2 * greedy, "requests_per_minute": 100_000}
    keys = serving.keys(["greedy", "polite"], **limits)
    many, few = (User(serving.url, key, mlp()) for key in keys.values())
    wrong: list[str] = []

    def latency(job: int) -> float:
        began = time.perf_counter()
        said = few.run(job)
        if said:
            wrong.append(f"job {job} of the polite user: {said}")
        return time.perf_counter() - began

    numbers = [job * 30 for job in range(1, 2 * polite + 1)]  # none of these prints or raises
    alone = median(map(latency, numbers[:polite]))
    handles = [many.hand_in(job) for job in range(greedy)]
    already = len(serving.jobs("id", "user = 'greedy' and finished is not null"))
    beside = median(map(latency, numbers[polite:]))
    if len(serving.jobs("id", "user = 'greedy' and finished is not null")) == greedy:
        wrong.append(f"the greedy user's jobs, {already} of which were done, were over too early to tell anything")
    for handle in handles:
        handle.cancel()
    began = sorted(at for (at,) in serving.jobs("started", "user = 'greedy' and started is not null"))
    waits = serving.jobs("submitted, started", "user = 'polite'")
    between = max(bisect_right(began, started) - bisect_left(began, submitted) for submitted, started in waits)
    if between > 1:
        wrong.append(f"{between} jobs of the greedy user began while one of the polite user waited")
    return Turns(greedy, alone, beside, between, wrong)
