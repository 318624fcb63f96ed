"""A trace whose bodies an engine runs: what stands in the caller's frame.

One idea: the block of a trace with an input is a body itself; the block of one without is run here, and the blocks of its
invokes are bodies. All are captured, and travel together (`sent.py`). Only what they saved comes back; an engine that does
not wait for its requests gives what stands for them (`Underway`), and the values when they are there. An input may stand for
several requests; then its body runs once for each.
"""

from __future__ import annotations

import functools
import itertools
import sys
from collections.abc import Callable, Mapping, Sequence
from types import FrameType
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from .. import active as scopes
from ..backend import hidden_with
from ..batching import Batchable, Prepared
from ..blocks import Body, fold, skipped, write_back
from ..config import CONFIG
from ..errors import NNsightError, NoInputError, NoTraceError
from ..invoke import Invoke
from ..saved import Collector
from ..trace import Install, Tracer
from .local import LocalBodies, local_bodies
from .sent import encode_bodies
from .unsaved import warn_of_unsaved

if TYPE_CHECKING:
    from ..blocks import Body, Names
    from ..tree import Node


@runtime_checkable
class Underway(Protocol):
    """The requests of a trace that nobody has waited for yet: `tracer.backend`."""

    def deliver_to(self, bind: Callable[[Sequence[Mapping[str, Any]]], None]) -> None:
        """Take what binds the saved values where the bodies stand. To be called once, with those of each body, by name."""


class Engine(Protocol):
    """Where the requests of a trace are served."""

    def serve(self, bodies: bytes, inputs: Sequence[Prepared]) -> list[Mapping[str, Any]] | Underway:
        """Serve one request for each input, with the body of the same number; return what each saved, by name.

        Raises what a body raised, once the others are done. An engine that does not wait returns what is under way instead.
        """


class LocalEngine(Engine, Protocol):
    """One that may be in this process, where bodies that read nothing of the user's need no bytes."""

    def serve_here(self, bodies: LocalBodies, inputs: Sequence[Prepared]) -> list[Mapping[str, Any]] | Underway:
        """Do what `serve` does, with bodies as they are: `bodies.on(model)` where they run, or `bodies.encode()`."""


class EngineTracer(Tracer):
    """One trace on an engine.

    Args:
        node, family, inputs, kwargs: see `Tracer`.
        engine: where it runs.
    """

    _under_way: Underway | None = None

    def __init__(
        self, node: Node, family: Batchable, inputs: tuple[Any, ...], kwargs: dict[str, Any], engine: Engine
    ) -> None:
        super().__init__(node, family, inputs, kwargs)
        self._engine = engine
        self._own: Invoke | None = None

    def __enter__(self) -> Any:
        if self._entered:
            raise NoTraceError("a trace can be entered once: call `model.trace(...)` again for another run")
        self._entered = True
        self._collector = Collector()
        if self._has_own:
            try:
                self._own_invoke().capture(sys._getframe(1))
            except BaseException as failure:
                self._fold(failure)
                raise
            return None
        scopes.enter(self._collector)
        scopes.enter(self)
        return self

    def run_body(self, body: Body, names: Names) -> None:
        """Run a captured body: one that came from elsewhere, and goes on to the engine as it is."""
        if not self._has_own:
            return super().run_body(body, names)
        self._collector = Collector()
        own = self._own_invoke()
        own.body, own.names = body, names
        try:
            self._run_invokes([own])
        except BaseException as failure:
            self._fold(failure)
            raise

    @property
    def _has_own(self) -> bool:
        return self._family._has_input(self._inputs, self._kwargs)

    def _own_invoke(self) -> Invoke:
        self._own = Invoke(self, 0, self._family._prepare_input(*self._inputs, **self._kwargs))
        return self._own

    def invoke(self, *inputs: Any, **kwargs: Any) -> Invoke:
        """Open one request: `with tracer.invoke(input):`. Options of the trace hold for it where it says none."""
        options = self._family._options
        return super().invoke(*inputs, **{**options(self._kwargs), **options(kwargs)})

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> bool:
        try:
            if self._own is None:
                return self._end_definition(error)
            if not skipped(error):
                return False
            self._run_invokes([self._own])
            return True
        except BaseException as failure:
            self._fold(failure)
            raise

    def _end_definition(self, error: BaseException | None) -> bool:
        scopes.leave(self)
        scopes.leave(self._collector)
        return super()._end_definition(error)

    def _run_invokes(self, invokes: list[Invoke]) -> None:
        for invoke in invokes:
            if invoke.prepared is None:
                raise NoInputError(
                    f"{invoke.name} has no input. An engine serves each input as a request of its own, so there is no "
                    "whole batch that an invoke without one could see."
                )
        requests = [self._family._requests(invoke.prepared) for invoke in invokes if invoke.prepared is not None]
        bodies = [invoke.body for invoke, own in zip(invokes, requests) for _ in own if invoke.body is not None]
        around = [member for member in scopes.active.get() if isinstance(member, Collector)]
        saved_before = {id(value): value for collector in (*around, self._collector) for value in collector.values}
        serve = self._serving(bodies, list(saved_before.values()))
        self._ready()
        found = serve(list(itertools.chain(*requests)))
        stands = [
            (invoke.frame or invoke.names, invoke.body, len(own))
            for invoke, own in zip(invokes, requests)
            if invoke.body is not None
        ]
        bind = functools.partial(_deliver, stands, around)
        if isinstance(found, list):
            bind(found)
        else:
            self._leave_under_way(found, bind)
        for invoke in invokes:
            invoke.release()

    def _serving(self, bodies: list[Body], saved: list[Any]) -> Callable[[list[Prepared]], Any]:
        """Return what serves requests with these bodies."""
        alone, engine = self._own is not None, self._engine
        serve_here = getattr(engine, "serve_here", None)
        if serve_here is not None:
            local = local_bodies(self, bodies, saved, alone)
            if local is not None:
                return functools.partial(serve_here, local)
        return functools.partial(engine.serve, encode_bodies(self, bodies, saved, alone=alone))

    @property
    def backend(self) -> Any:
        """What is under way, where the engine did not wait for it: how to get at it is the engine's to say."""
        if self._under_way is None:
            raise NNsightError(
                "nothing of this trace is under way: its engine waits for it where its block ends, and what it saved is "
                "bound there. `tracer.backend()` is for engines that do not wait"
            )
        return self._under_way

    def _leave_under_way(self, found: Underway, bind: Callable[[Sequence[Mapping[str, Any]]], None]) -> None:
        own = self._own
        if own is not None and own.body is not None:
            if own.frame is None:
                raise NNsightError(
                    "this block came from elsewhere, and whoever sent it waits for it; the engine here does not wait for "
                    "its requests. Let one that does serve the model"
                )
            if not own.body.has_target:
                raise NNsightError(
                    "this engine does not wait for its requests: what stands after `as` is asked for what they give, and "
                    "this `with` has none. Write `as tracer`, and then `tracer.backend()`"
                )
            own.body.bind(own.frame, self)
        self._under_way = found
        found.deliver_to(bind)

    def _fold(self, error: BaseException) -> None:
        fold(error, hidden_with(self._engine), debugging=bool(CONFIG.APP.DEBUG))

    def _install(self, install: Install) -> None:
        raise NoTraceError(
            "a cache on an engine belongs to one request: call `tracer.cache()` in the invoke whose values it is to keep"
        )


def joined(body: Body, saved: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return what one body saved in its requests: as it is, or where there were several, in a list for each name.

    A list holds None for a request that did not save the name. What was around the body before it began is one thing, which
    all of them saw.
    """
    if len(saved) == 1:
        return dict(saved[0])
    names = dict.fromkeys(name for one in saved for name in one)
    return {
        name: [one.get(name) for one in saved]
        if name in body.writes
        else next(one[name] for one in reversed(saved) if name in one)
        for name in names
    }


def _deliver(
    stands: Sequence[tuple[FrameType | Names | None, Body, int]],
    around: Sequence[Collector],
    found: Sequence[Mapping[str, Any]],
) -> None:
    """Bind what was saved in the requests of each body where it stands."""
    given = iter(found)
    bound: dict[int, tuple[FrameType, dict[str, Any]]] = {}
    named: set[str] = set()
    for place, body, requests in stands:
        saved = joined(body, list(itertools.islice(given, requests)))
        named |= saved.keys()
        # Of a session that runs here, this is a result like any other that a block saves.
        for collector in around:
            for value in saved.values():
                collector.add(value)
        if isinstance(place, FrameType):
            bound.setdefault(id(place), (place, {}))[1].update(saved)
        elif place is not None:
            place.update(saved)
    for frame, names in bound.values():
        write_back(frame, names)
    # What came from elsewhere is the business of whoever sent it.
    warn_of_unsaved([body for place, body, _ in stands if isinstance(place, FrameType)], named)
