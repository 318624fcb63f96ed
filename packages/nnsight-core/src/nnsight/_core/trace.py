"""`model.trace(...)`: one `with`, one run.

With an input, the block is the body: it runs inline, in the caller's own frame, and the model starts when the block
first asks for a value. Without one, the block defines invokes, which run when it ends. Both end in an `Interleaver`;
what is captured and run later is in `invoke.py` and `blocks/`, what is sent elsewhere in `backend.py`.
"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from types import FrameType
from typing import TYPE_CHECKING, Any

import torch

from . import active as scopes
from . import complaints, sofar
from .barrier import Barrier
from .batching import Batchable, Layout, Prepared, Rows
from .blocks import captured_frame, fold
from .cache import Cache, CacheWatcher, chosen, stages
from .config import CONFIG
from .ending import close, forget
from .errors import InvokeError, NoInputError, NoTraceError
from .here import narrow
from .interleaver import RESULT, Interleaver
from .invoke import Invoke, join_names, refuse, running, write_back_all
from .mediator import Abandon, EarlyStop, InlineMediator, Mediator
from .sharded import ShardedRun
from .sites import OUTPUT, Place
from .steps import Steps

if TYPE_CHECKING:
    from .blocks import Body, Names
    from .tree import Node

#: Puts something that watches into a run, for some of its rows or all.
Install = Callable[[Interleaver, "Rows | None"], None]

_here = os.path.dirname(os.path.abspath(__file__)) + os.sep


def is_library(filename: str) -> bool:
    """Say whether a frame of this file is nnsight's own, and so folded out of tracebacks."""
    return filename.startswith(_here)


class Tracer:
    """One trace of a model, and what a block can ask of it.

    Made by `model.trace(...)`, `model.generate(...)` and the like; it is the `as` target of their `with`.
    """

    members: frozenset[Place] = frozenset()  # while a block only defines invokes, no place is given in it; `active.py`
    _run: Interleaver | None = None
    _mediator: InlineMediator | None = None
    _invoked = 0
    _entered = False
    #: The arguments of the run, while it lasts.
    _called: tuple[tuple[Any, ...], dict[str, Any]] | None = None

    def __init__(
        self,
        node: Node,
        family: Batchable,
        inputs: tuple[Any, ...],
        kwargs: dict[str, Any],
        method: str | Callable[..., Any] | None = None,
    ) -> None:
        self._node = node
        self._family = family
        self._inputs = inputs
        self._kwargs = kwargs
        # Named, the forward is still called through the module, so that its hooks run and its sites are there.
        self._method = None if method == "forward" else method
        self._invokes: list[Invoke] = []
        self._later: list[Install] = []
        self._tokens: dict[Rows | None, Any] = {}

    @property
    def model(self) -> Any:
        """The envoy that is traced."""
        return self._node

    # -- the `with` --------------------------------------------------------------------------------------------------

    def __enter__(self) -> Tracer:
        if self._entered:
            raise NoTraceError("a trace can be entered once: call `model.trace(...)` again for another run")
        self._entered = True
        if self._family._has_input(self._inputs, self._kwargs):
            prepared = self._family._prepare_input(*self._inputs, **self._kwargs)
            self._ready()
            args, kwargs = self._called = self._family._batch([prepared])
            run = self._run = self._interleaver(args, kwargs, None)
            mediator = self._mediator = InlineMediator(run)
            scopes.enter(mediator, sys._getframe(1))
        else:
            scopes.enter(self)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> bool:
        if self._mediator is None:
            try:
                return self._end_definition(error)
            except BaseException as failure:
                # Folded here and not where it was raised: only now is every frame of ours in its traceback.
                self._fold(failure)
                raise
        mediator, run = self._mediator, self._run
        assert run is not None
        scopes.leave(mediator)
        mediator.done = True
        if error is not None:
            return self._give_up(run, error)
        try:
            run.ended(mediator, None)
            if run.model is not None:
                run.finish_inline(mediator)
            elif run.bodies or run.watchers:
                run.run_here()
            else:
                # Nobody asked for anything: a plain call, with nothing put on the model.
                run.call()
        except EarlyStop as stop:
            if stop.run is not run:
                raise
        except BaseException as failure:
            self._fold(failure)
            raise
        finally:
            self._forget(run)
        if run.show is not None:
            run.show()
        return False

    def run_body(self, body: Body, names: Names) -> None:
        """Run a captured body as the block of this trace."""
        with self as tracer:
            body.assign(names, tracer)
            body.run(names)

    def _give_up(self, run: Interleaver, error: BaseException) -> bool:
        if not isinstance(error, (EarlyStop, GeneratorExit)):
            complaints.note_where(error, run, captured_frame(error) or _caller(), _debugging())
        try:
            assert self._mediator is not None
            run.ended(self._mediator, error)
            close(run)
        except BaseException as another:
            _put_behind(another, error)
            raise
        finally:
            self._forget(run)
        if isinstance(error, EarlyStop) and error.run is run:
            return True
        self._fold(error)
        return False

    def _forget(self, run: Interleaver) -> None:
        # The tracer may outlive the run in the caller's frame; the run's values must not.
        forget(run)
        run.call = _no_call
        if self._mediator is not None:
            self._mediator.here = None
        self._inputs, self._kwargs = (), {}
        self._called = None

    def _fold(self, error: BaseException) -> None:
        fold(error, is_library, debugging=_debugging())

    # -- invokes -----------------------------------------------------------------------------------------------------

    def invoke(self, *inputs: Any, **kwargs: Any) -> Invoke:
        """Open one body of a batch: `with tracer.invoke(input):`. Without an input it sees the whole batch.

        Raises:
            InvokeError: the trace has an input of its own, or its block is over.
        """
        if self._mediator is not None:
            raise refuse(f"`{self._node._path}`")
        if self not in scopes.active.get():
            raise InvokeError("An invoke is opened in the block of its own trace: `with model.trace() as tracer:`.")
        prepared: Prepared | None = None
        if self._family._has_input(inputs, kwargs):
            prepared = self._family._prepare_input(*inputs, **kwargs)
        number = self._invoked
        self._invoked += 1
        return Invoke(self, number, prepared)

    def mediator_for(self, place: Place) -> Mediator | None:
        """Answer for the block that only defines invokes; see `active.py`."""
        if not self._node._rig().has(place):
            return None
        if self._invoked:
            raise NoInputError(
                f"`{place.path}` was asked for outside the invokes. The model runs when this block ends; ask inside "
                "`with tracer.invoke(...):`, or in `with tracer.invoke():` for the whole batch."
            )
        raise NoInputError(
            f"`{place.path}` was asked for, but this trace has no input, so nothing runs. Write `with "
            "model.trace(input):`, or open `with tracer.invoke(input):` inside the block."
        )

    def _end_definition(self, error: BaseException | None) -> bool:
        scopes.leave(self)
        invokes, self._invokes = self._invokes, []
        if error is not None:
            self._fold(error)
            return False
        try:
            if not any(invoke.prepared is not None for invoke in invokes):
                raise NoInputError(
                    "This trace was given no input, and none of its invokes has one. Write `with model.trace(input):`, "
                    "or open `with tracer.invoke(input):` inside the block."
                )
            self._run_invokes(invokes)
        finally:
            write_back_all(invokes)
            if self._run is not None:
                self._forget(self._run)
        if self._run is not None and self._run.show is not None:
            self._run.show()
        return False

    def _run_invokes(self, invokes: list[Invoke]) -> None:
        self._ready()
        given = [invoke for invoke in invokes if invoke.prepared is not None]
        prepared = [invoke.prepared for invoke in given if invoke.prepared is not None]
        args, kwargs = self._family._batch(prepared)
        # Options that were given to the trace itself hold for the whole batch.
        kwargs = {**self._family._options(self._kwargs), **kwargs}
        self._called = args, kwargs
        layout: Layout | None = None
        if len(given) > 1:
            total = sum(p[2] for p in prepared)
            layout = self._family._layout(total, args, kwargs, self._method_name())
            start = 0
            for invoke, (_, _, count) in zip(given, prepared):
                invoke.rows = (start, count)
                start += count
        run = self._run = self._interleaver(args, kwargs, layout)
        if CONFIG.APP.CROSS_INVOKER:
            join_names(invokes)
        for invoke in invokes:
            invoke.mediator = run.add_body(invoke.run, invoke.rows, invoke.name, invoke.number)
        for install in self._later:
            install(run, None)
        run.stack = scopes.active.get()
        with sofar.including(functools.partial(running, invokes)) if run.show else nullcontext():
            run.run_here()

    # -- the run -----------------------------------------------------------------------------------------------------

    def _ready(self) -> None:
        self._node._root._ready()

    def _method_name(self) -> str | None:
        method = self._method
        return method if method is None or isinstance(method, str) else getattr(method, "__name__", "call")

    def _interleaver(self, args: tuple[Any, ...], kwargs: dict[str, Any], layout: Layout | None) -> Interleaver:
        node = self._node
        target = node._target(self._method)
        step_place = node._step_place(self._method)
        call = functools.partial(target, *args, **kwargs)
        sharding = node._root.__dict__["_sharding"]
        if sharding is None:
            run = Interleaver(call, node._rig(), layout, step_place)
        else:
            run = ShardedRun(call, node._rig(), layout, step_place, sharding, (args, kwargs))
        run.method = self._method_name()
        if scopes.active.get():
            sofar.follow(run)
        edits = node._root.__dict__["_edits"]
        if edits:
            run.stack = scopes.active.get()
            edits.begin_in(run)
        return run

    def _current(self) -> Mediator:
        for member in reversed(scopes.active.get()):
            if isinstance(member, Mediator) and member.run is self._run:
                return member
        if self._run is None and self in scopes.active.get() and not self._invoked:
            raise NoInputError(
                "This was asked of a trace that has no input, so nothing runs. Write `with model.trace(input) as tracer:`, "
                "or open `with tracer.invoke(input):` inside the block and ask there."
            )
        raise NoTraceError(
            "This can be asked of a tracer inside its block only"
            + (", within one of its invokes." if self._mediator is None else ".")
        )

    # -- what a block asks for ---------------------------------------------------------------------------------------

    @property
    def result(self) -> Any:
        """What the traced call returned: waits for the end of the run. In an invoke, its rows of it."""
        mediator = self._current()
        run = mediator.run
        if run.over:
            if mediator.rows is None or run.layout is None:
                return run.result
            return narrow(run.result, mediator.rows, run.layout, RESULT.path)
        return mediator.ask(RESULT, OUTPUT).read(mediator.rows)

    @result.setter
    def result(self, value: Any) -> None:
        mediator = self._current()
        mediator.ask(RESULT, OUTPUT).write(mediator.rows, value)

    @property
    def tokens(self) -> Any:
        """Where the tokens of the input lie in the values of this run, as the family tells; in an invoke, its own."""
        return self._tokens_of(self._current().rows if self._mediator is None else None)

    def _tokens_of(self, rows: Rows | None) -> Any:
        if rows not in self._tokens:
            if self._called is None:
                raise NoTraceError(
                    "Where tokens lie is known while the model runs: ask for `.tokens` inside the block."
                )
            args, kwargs = self._called
            self._tokens[rows] = self._family._tokens(args, kwargs, rows, self._method_name())
        return self._tokens[rows]

    @property
    def iter(self) -> Steps:
        """Loop over steps: `for step in tracer.iter[:3]:`, or `with tracer.iter[:3] as step:`."""
        return Steps(self._current)

    def all(self) -> Any:
        """Loop over every step there is: `for step in tracer.all():`, or `with tracer.all() as step:`."""
        return Steps(self._current)[:]

    def next(self, by: int = 1) -> Tracer:
        """Ask in a later step from here on."""
        self._current().advance(by)
        return self

    def barrier(self, parties: int) -> Barrier:
        """Make a barrier for `parties` invokes; see `Barrier`."""
        return Barrier(parties)

    def stop(self) -> None:
        """End the run here: the rest of the block and of the forward do not run."""
        raise EarlyStop(self._current().run)

    def log(self, *values: Any) -> None:
        """Print values from inside a body, wherever it runs."""
        print(*values)

    def cache(
        self,
        modules: Iterable[Any] | None = None,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        detach: bool = True,
        copy: bool = False,
        include_output: bool = True,
        include_inputs: bool = False,
    ) -> Cache:
        """Keep what modules give (and take) from here on; no need to save it.

        Args:
            modules: envoys or their paths; all modules of the tree if not given.
            device: where to keep the tensors; where they are if not given.
            dtype: the type to keep them in; for those of a floating-point type.
            detach: keep them without their graph.
            copy: keep copies, for what the model or a later line changes in place.
            include_output: keep outputs, after interventions.
            include_inputs: keep the pair of positional and keyword arguments too.

        Returns:
            A mapping from paths to entries with `.output`, `.inputs` and `.input`; see `Cache`.
        """
        cache = Cache(self._node)
        nodes = None if modules is None else chosen(self._node, modules)
        kept = stages(include_output, include_inputs)

        def install(run: Interleaver, rows: Rows | None) -> None:
            watcher = CacheWatcher(cache, rows, device, dtype, detach, copy, kept)
            watcher.install(run, nodes)

        self._install(install)
        return cache

    def _install(self, install: Install) -> None:
        """Let something watch the run: that of the body at work, or the one that is to come."""
        if self._run is None:
            self._later.append(install)
        else:
            mediator = self._current()
            install(mediator.run, mediator.rows)


def _caller() -> FrameType:
    """Return the innermost frame that is not ours: the one with the `with`."""
    frame = sys._getframe(1)
    while is_library(frame.f_code.co_filename) and frame.f_back is not None:
        frame = frame.f_back
    return frame


def _put_behind(another: BaseException, error: BaseException) -> None:
    """Let an error that the model raised on its way out say what was being handled: it comes from another greenlet."""
    while another.__context__ is not None and not isinstance(another.__context__, Abandon):
        another = another.__context__
    another.__context__ = error


def _no_call() -> Any:
    raise NoTraceError("this run is over")


def _debugging() -> bool:
    return bool(CONFIG.APP.DEBUG)
