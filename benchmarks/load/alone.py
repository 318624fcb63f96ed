"""One user alone: what a block costs on a server, over what it costs here, and where the time goes."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median
from typing import Any

from client import User
from served import by_hand, input_of, mlp
from serving import Serving

from nnsight_remote.client import serve_jobs

#: The first blocks find out what the rest know: versions, sources, the way there.
_WARM = 5


@dataclass
class Alone:
    """Medians, in milliseconds.

    Attributes:
        here, there: a block on this process's own model, and on the server's.
        shares: of `there`: coding and decoding on both sides; waiting for a turn; the block itself; handing it to the process
            that runs it, and noting its end; and the rest, which is the way there and back.
    """

    here: float
    there: float
    shares: dict[str, float]


def run_alone(serving: Serving, times: int) -> Alone:
    """Run a block so many times here and there, in turn."""
    (key,) = serving.keys(["alone"], requests_per_minute=100_000).values()
    model = mlp()
    user = User(serving.url, key, model)
    here, there, coding = [], [], []
    for job in (30 * number for number in range(times + _WARM)):
        began = time.perf_counter()
        with model.trace(input_of(job)):
            hidden = model.layers[1].output.save()
            model.layers[2].output = hidden * job
            out = model.output.save()
        here.append(time.perf_counter() - began)
        with _timed() as spent:
            began = time.perf_counter()
            wrong = user.run(job)
            there.append(time.perf_counter() - began)
        coding.append(sum(spent))
        began = time.perf_counter()
        by_hand(model, job)
        there[-1] -= time.perf_counter() - began  # the comparison is no part of it
        if wrong:
            raise AssertionError(wrong)
    stages = [json.loads(text) for (text,) in serving.jobs("stages", "user = 'alone' order by submitted")]
    parts = {
        "serialisation": [spent + one["decode"] + one["encode"] for spent, one in zip(coding, stages)],
        **{name: [one[name] for one in stages] for name in ("queue", "run", "handling")},
    }
    shares = {name: 1e3 * median(spent[_WARM:]) for name, spent in parts.items()}
    total = 1e3 * median(there[_WARM:])
    shares["transfer"] = total - sum(shares.values())
    return Alone(1e3 * median(here[_WARM:]), total, shares)


@contextmanager
def _timed() -> Iterator[list[float]]:
    """Time what turns blocks into bytes and bytes into values, in this process."""
    spent: list[float] = []

    def timed(work: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            began = time.perf_counter()
            try:
                return work(*args, **kwargs)
            finally:
                spent.append(time.perf_counter() - began)

        return run

    names = ("encode_request", "decode_results")
    plain = {name: getattr(serve_jobs, name) for name in names}
    for name, work in plain.items():
        setattr(serve_jobs, name, timed(work))
    try:
        yield spent
    finally:
        for name, work in plain.items():
            setattr(serve_jobs, name, work)
