"""Users of a server, one thread each: what `run.py` starts in several processes, and what it asks of itself.

The one idea: every job has a number, an input that follows from it, and an answer that is worked out beside it; so a job that
is lost, or whose answer is another's, is known at once, by number.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from typing import Any

import torch
from served import by_hand, input_of, mlp

from nnsight import CONFIG, NNsight
from nnsight_remote import RemoteBackend

#: Every so many jobs, one prints its number and is waited for by its handle, and one raises an error that holds it.
PRINTS, RAISES = 10, 15


class User:
    """One user with a key, who hands in one job after another."""

    def __init__(self, url: str, key: str, model: NNsight) -> None:
        self.model = model
        self.waiting = RemoteBackend(url, key=key)
        self.not_waiting = RemoteBackend(url, key=key, blocking=False)

    def run(self, job: int) -> str:
        """Run a job; return what is wrong with its answer, or nothing."""
        model, x = self.model, input_of(job)
        if job % RAISES == 1:
            return self._raise(job, x)
        if job % PRINTS == 1:
            handle = self.hand_in(job)
            values = handle.result()
            hidden, out = values["hidden"], values["out"]
            if handle.log != f"job {job}\n":
                return f"it printed {handle.log!r}"
        else:
            with model.trace(x, backend=self.waiting):
                hidden = model.layers[1].output.save()
                model.layers[2].output = hidden * job
                out = model.output.save()
        right = by_hand(model, job)
        return "" if torch.equal(hidden, right[0]) and torch.equal(out, right[1]) else f"{out} instead of {right[1]}"

    def hand_in(self, job: int) -> Any:
        """Hand a job in, and return its handle."""
        model = self.model
        with model.trace(input_of(job), backend=self.not_waiting) as handle:
            print("job", job)
            hidden = model.layers[1].output.save()
            model.layers[2].output = hidden * job
            out = model.output.save()
        return handle

    def _raise(self, job: int, x: torch.Tensor) -> str:
        try:
            with self.model.trace(x, backend=self.waiting):
                self.model.output.save()
                raise LookupError(job)
        except LookupError as error:
            return "" if error.args == (job,) else f"it raised {error!r}"
        return "it raised nothing"


def main() -> None:
    """Read `{url, users: [{key, jobs}]}`; say that all is ready; begin when told to; say what became of each job."""
    answer, sys.stdout = sys.stdout, open(os.devnull, "w")  # what blocks print is printed here, too
    plan = json.loads(sys.stdin.readline())
    CONFIG.APP.REMOTE_LOGGING = False
    torch.set_num_threads(1)
    model = mlp()
    users = [User(plan["url"], user["key"], model) for user in plan["users"]]
    told: list[dict[str, Any]] = []
    gate = threading.Event()

    def work(user: User, jobs: list[int]) -> None:
        gate.wait()
        for job in jobs:
            began = time.time()
            try:
                wrong = user.run(job)
            except Exception as error:
                wrong = f"{type(error).__name__}: {error}"
            told.append({"job": job, "began": began, "seconds": time.time() - began, "wrong": wrong})

    threads = [threading.Thread(target=work, args=(user, one["jobs"])) for user, one in zip(users, plan["users"])]
    for thread in threads:
        thread.start()
    with model.trace(input_of(0)):  # what a process does but once is not what a crowd waits for
        model.output
    print("ready", file=answer, flush=True)
    sys.stdin.readline()
    gate.set()
    for thread in threads:
        thread.join()
    print(json.dumps(told), file=answer, flush=True)


if __name__ == "__main__":
    main()
