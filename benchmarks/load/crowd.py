"""Many users at once: whether every job comes back, as its own, and what that takes."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from client import RAISES
from serving import Serving
from watch import Watch

_IN_ONE_PROCESS = 50
_NAME = "one of many, {}"
_CLIENT = Path(__file__).with_name("client.py")


@dataclass
class Crowd:
    """What became of it.

    Attributes:
        seconds: from the first request to the last answer.
        latencies: seconds from a block's beginning to its values, in order of length.
        wrong: what is wrong, in words; empty if all is right.
        watch: what the server took meanwhile.
    """

    clients: int
    jobs: int
    seconds: float
    latencies: list[float]
    wrong: list[str]
    watch: Watch

    def percentile(self, part: float) -> float:
        """Return the latency that so large a part of the jobs does not exceed."""
        return self.latencies[min(len(self.latencies) - 1, int(part * len(self.latencies)))]


def run_crowd(serving: Serving, clients: int, jobs: int) -> Crowd:
    """Let so many users run so many jobs altogether."""
    keys = serving.keys([_NAME.format(number) for number in range(clients)])
    users = [{"key": key, "jobs": list(range(number, jobs, clients))} for number, key in enumerate(keys.values())]
    count = -(-clients // _IN_ONE_PROCESS)
    processes = [_start(serving.url, users[number::count]) for number in range(count)]
    for process in processes:
        if process.stdout.readline() != "ready\n":
            raise RuntimeError("a process of clients did not start")
    began = time.monotonic()
    told: list[dict[str, Any]] = []
    with Watch(serving.process.pid, serving.store) as watch:
        for process in processes:
            print("go", file=process.stdin, flush=True)
        for process in processes:
            told += json.loads(process.communicate()[0])
    seconds = time.monotonic() - began
    latencies = sorted(one["seconds"] for one in told)
    return Crowd(clients, jobs, seconds, latencies, _wrong(serving, jobs, told), watch)


def _start(url: str, users: list[dict[str, Any]]) -> Any:
    process = subprocess.Popen([sys.executable, _CLIENT], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    print(json.dumps({"url": url, "users": users}), file=process.stdin, flush=True)
    return process


def _wrong(serving: Serving, jobs: int, told: list[dict[str, Any]]) -> list[str]:
    found = [f"job {one['job']}: {one['wrong']}" for one in told if one["wrong"]]
    heard_of = Counter(one["job"] for one in told)
    found += [f"job {job}: its client gave up" for job in range(jobs) if job not in heard_of]
    # The server's own books: as many jobs as were handed in, each run once, and none failed but those that were to.
    kept = serving.jobs("state, attempts", "user like ?", _NAME.format("%"))
    raising = sum(job % RAISES == 1 for job in range(jobs))
    states = Counter(state for state, _ in kept)
    if states != Counter(completed=jobs - raising, failed=raising):
        found.append(f"of {jobs} jobs, {raising} of which raise, the server has {dict(states)}")
    if again := sum(attempts != 1 for _, attempts in kept):
        found.append(f"{again} jobs were not run exactly once")
    return [*found, *serving.problems()]
