"""Requests that come while others run: the loop that `VLLM` has, with somebody at the door.

`Arrivals` stands where an engine stands for a trace, and keeps what it is to run. `run` then lets each come at the step that
was said for it, drives vLLM's engine, and notes what its scheduler does.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from vllm.v1.request import RequestStatus

from nnsight.plugin import EngineTracer, decode_error, decode_results, inspect_bytes
from nnsight_vllm.engine import traced
from nnsight_vllm.scheduling import is_traced


@dataclass
class Guest:
    """One request.

    Attributes:
        at: the step of the engine before which it comes.
        inputs: its prompt and options.
        bodies: what looks into it, if anything does.
        aborted_after: after how many steps somebody gives it up; 0 for never.
        output: what vLLM gave.
        left: after which step it was over.
        saved: what its body saved, or the error that it raised.
    """

    at: int
    inputs: Any
    bodies: bytes | None = None
    aborted_after: int = 0
    output: Any = None
    left: int = -1
    saved: Any = None
    request: str = ""
    internal: str = ""


@dataclass
class Arrivals:
    """Requests that come to one engine."""

    model: Any
    guests: list[Guest] = field(default_factory=list)
    #: What happened: how often a request of a kind was preempted, cut into chunks, paused, or had to wait.
    seen: Counter[str] = field(default_factory=Counter)
    #: What else is to be done before a step.
    at_step: dict[int, Callable[[], Any]] = field(default_factory=dict)
    step: int = 0
    _at: int = 0

    def trace(self, ids: Any, at: int = 0, **options: Any) -> EngineTracer:
        """Open a trace whose body looks into a request that comes at a step."""
        self._at = at
        return EngineTracer(self.model, self.model, (ids,), options, self)

    def serve(self, bodies: bytes, inputs: Any) -> list[dict[str, Any]]:
        """Keep a trace for later."""
        self.guests.append(Guest(self._at, inputs[0], bodies))
        return [{}]

    def plain(self, ids: Any, at: int = 0, **options: Any) -> Guest:
        """Let a request without a body come at a step."""
        self.guests.append(Guest(at, self.model._prepare_input(ids, **options)))
        return self.guests[-1]

    @property
    def last(self) -> Guest:
        """The one that was announced last."""
        return self.guests[-1]

    @property
    def engine(self) -> Any:
        """vLLM's."""
        own = self.model.__dict__["_engine"]
        own.start()
        return own.engine

    @property
    def scheduler(self) -> Any:
        """vLLM's, in this process."""
        return self.engine.engine_core.engine_core.scheduler

    def run(self, most: int = 3000) -> Arrivals:
        """Let everybody come, and drive the engine until all are done."""
        engine, self.step = self.engine, 0
        due = sorted(self.guests, key=lambda guest: guest.at)
        inside = self._inside = dict[str, Guest]()
        since = self._since = dict[str, int]()
        while due or inside:
            assert self.step < most, (
                f"still there after {self.step} steps: {[(g.at, g.inputs[0]) for g in inside.values()]}"
            )
            while due and due[0].at <= self.step:
                self.enter_now(due.pop(0))
            if self.step in self.at_step:
                self.at_step[self.step]()
            for guest in list(inside.values()):
                if guest.aborted_after and self.step - since[guest.request] >= guest.aborted_after:
                    engine.abort_request([guest.internal], internal=True)
                    self._leave(inside.pop(guest.request), None)
            for output in engine.step() if engine.has_unfinished_requests() else ():
                if output.finished:
                    self._leave(inside.pop(output.request_id), output)
            self._look()
            self.step += 1
        return self

    def enter_now(self, guest: Guest) -> None:
        """Let somebody come."""
        self._enter(guest)
        self._inside[guest.request], self._since[guest.request] = guest, self.step

    def _enter(self, guest: Guest) -> None:
        number = guest.request = f"guest-{id(guest)}"
        (prompt, params), others, _ = guest.inputs
        if guest.bodies is not None:
            assert not any(self.engine.collective_rpc("nnsight_open", args=(number, guest.bodies)))
            (((prompt, params), others, _),) = traced(number, [guest.inputs])
        guest.internal = self.engine.add_request(number, prompt, params, **others)

    def _leave(self, guest: Guest, output: Any) -> None:
        guest.output, guest.left = output, self.step
        if guest.bodies is None:
            return
        if output is None:
            self.engine.collective_rpc("nnsight_drop", args=(guest.request,))
            return
        (answer,), _ = self.engine.collective_rpc("nnsight_finish", args=(guest.request, {}))[0]
        wrong = inspect_bytes(answer)["kind"] == "error"
        guest.saved = decode_error(answer) if wrong else decode_results(answer)

    def _look(self) -> None:
        scheduler = self.scheduler
        if scheduler._paused_before:
            self.seen["pauses"] += 1
        self.seen["most running"] = max(self.seen["most running"], len(scheduler.running))
        for request in scheduler.requests.values():
            kind = "traced" if is_traced(request) else "plain"
            if request.status == RequestStatus.PREEMPTED:
                self.seen[f"{kind} preempted"] += 1
            if request in scheduler.running and request.num_computed_tokens < request.num_prompt_tokens:
                self.seen[f"{kind} cut"] += 1
            if request.status == RequestStatus.WAITING:
                self.seen[f"{kind} waiting"] += 1
