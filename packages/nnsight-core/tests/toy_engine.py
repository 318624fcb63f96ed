"""An engine that serves several requests together, small enough to be read: what vLLM does, without vLLM.

A request is a sequence of rows. Its first step takes all of them, each later step one more, which is what the step before
gave for the last. Requests join and leave; memory is used again after every forward, as engines do.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from nnsight import NNsight
from nnsight.plugin import (
    EngineTracer,
    Forwards,
    PlainLayout,
    SentBodies,
    begin_edits,
    decode_bodies,
    decode_edits,
    open_trace,
)


class Network(torch.nn.Module):
    """Two layers and a residual that is added in place, as fused operations do it."""

    def __init__(self, size: int = 4) -> None:
        super().__init__()
        self.first, self.second = torch.nn.Linear(size, size), torch.nn.Linear(size, size)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        residual = self.first(x)
        residual += self.second(torch.tanh(residual))
        return residual


class Seldom(Network):
    """Has a layer more, which it does not call in each forward.

    Args:
        calls: says whether it does in the one of this number; the first is 1.
    """

    def __init__(self, calls: Callable[[int], Any]) -> None:
        super().__init__()
        self.seldom, self.calls, self.count = torch.nn.Linear(4, 4), calls, 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.count += 1
        return super().forward(self.seldom(x) if self.calls(self.count) else x)


class ToyEngine:
    """Serves requests of a network.

    Args:
        module: the network.
        steps: how many steps a request takes; request n begins at step n.
        turn_seconds: see `Forwards`.
    """

    def __init__(self, module: torch.nn.Module, steps: int = 3, turn_seconds: float = 0) -> None:
        self.module = module
        self.steps = steps
        self.model = NNsight(module)
        self.forwards = Forwards(self.model, turn_seconds)
        #: The edits of all requests.
        self.standing: Any = ()
        #: Whether it computes something of its own in each forward.
        self.curious = False
        #: How many rows each forward had.
        self.batches: list[int] = []
        #: Where the rows lay in the last one: said again as long as nothing changes.
        self.where: dict[Any, tuple[int, int]] = {}

    def install(self, edits: bytes) -> None:
        self.standing = decode_edits(edits, self.model)

    def run(self, rows: torch.Tensor) -> Any:
        """Serve one request without a body; return its run and what it gave."""
        with torch.inference_mode():
            run = begin_edits(self.standing, self.forwards)
            given = [rows]
            for _ in range(self.steps):
                self._forward([0], given, {0: run})
                if run.wants_no_more:
                    break
            run.finish(None)
        return run, given[0]

    def serve(self, bodies: bytes, inputs: Any) -> list[dict[str, Any]]:
        return self.serve_sent(decode_bodies(bodies, self.model), inputs)

    def serve_sent(self, sent: SentBodies, inputs: Any) -> list[dict[str, Any]]:
        rows = [args[0] for args, _, _ in inputs]
        runs: dict[int, Any] = {}
        done: dict[int, torch.Tensor] = {}
        with torch.inference_mode():
            for step in range(self.steps + len(rows)):
                taking_part = [n for n in range(len(rows)) if n <= step < n + self.steps and n not in done]
                for n in taking_part:
                    if n not in runs:
                        runs[n] = sent.begin(n, self.forwards, self.standing)
                if taking_part:
                    self._forward(taking_part, rows, runs)
                for n in taking_part:
                    if step == n + self.steps - 1 or runs[n].wants_no_more:
                        done[n] = rows[n]
            for n, run in runs.items():
                run.finish(done[n])
        failures = [run.failure for run in runs.values() if run.failure is not None]
        if failures:
            raise failures[0]
        return [sent.saved(n) for n in range(len(rows))]

    def _forward(self, taking_part: list[int], rows: list[torch.Tensor], runs: dict[int, Any]) -> None:
        where, at = {}, 0
        for n in taking_part:
            where[runs[n]] = (at, len(rows[n]))
            at += len(rows[n])
        self.batches.append(at)
        if list(where.items()) != list(self.where.items()):
            self.where = where
        out = self._compute(self.where, torch.cat([rows[n] for n in taking_part]))
        ends = [start + count - 1 for start, count in where.values()]
        for n, end in zip(taking_part, ends):
            rows[n] = out[end : end + 1].clone()
        out.fill_(float("nan"))

    def _compute(self, where: dict[Any, tuple[int, int]], x: torch.Tensor) -> torch.Tensor:
        with self.forwards.forward(where, PlainLayout(len(x)), even=len(x) == len(where)):
            if self.curious:
                with self.forwards.aside():
                    self.module(torch.ones(2, x.shape[1]))
            return self.module(x)


class Served(NNsight):
    """A model whose traces run in a toy engine."""

    def __init__(self, engine: ToyEngine) -> None:
        super().__init__(engine.module)
        self.__dict__["engine"] = engine

    def trace(self, *inputs: Any, backend: Any = None, **kwargs: Any) -> Any:
        if backend is not None:
            return open_trace(self, inputs, kwargs, backend=backend)
        return self._tracer(self, inputs, kwargs, None)

    def _tracer(self, node: Any, inputs: Any, kwargs: Any, method: Any) -> EngineTracer:
        return EngineTracer(node, self, inputs, kwargs, self.__dict__["engine"])


class Patient:
    """A toy engine that does not wait: it serves what is under way when it is told to."""

    def __init__(self, engine: ToyEngine) -> None:
        self.module = engine.module
        self.engine = engine

    def serve(self, bodies: bytes, inputs: Any) -> Patience:
        return Patience(lambda: self.engine.serve(bodies, inputs))


class Patience:
    """What is under way there."""

    def __init__(self, serve: Any) -> None:
        self.serve = serve

    def deliver_to(self, bind: Any) -> None:
        self.bind = bind

    def __call__(self) -> Any:
        found = self.serve()
        self.bind(found)
        return found
