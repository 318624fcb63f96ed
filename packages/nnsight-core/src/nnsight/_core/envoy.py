"""The envoy: a node of the tree that serves values while the model runs.

`.output`, `.input`, `.inputs`, `.skip` and `.source` are sites of its module; `trace`, `scan`, `edit` and `session` open
the contexts in which they can be asked for. The tree itself is `tree.py`.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any

from . import served
from .active import active
from .backend import open_trace
from .batching import Batchable
from .blocks import is_with_head
from .edit import EditContext, Edits
from .errors import NoInputError, NoTraceError
from .mediator import Mediator
from .scan import ScanTracer
from .served import eproperty
from .session import Session
from .sites import INPUT, Place
from .sources import Source, source_of
from .steps import Steps
from .trace import Tracer
from .tree import Node

_plain = Batchable()


def _current() -> Mediator:
    for member in reversed(active.get()):
        if isinstance(member, Mediator):
            return member
    raise NoTraceError("Steps are walked inside a trace: `with model.generate(...) as tracer:` and `tracer.iter[...]`.")


class Envoy(Node):
    """Mirrors one module of a model: its submodules as attributes, its values as sites.

    Inside a trace `envoy.output` is the value itself at that moment of the forward pass, and assigning to it changes
    the run. A submodule whose name is one of ours (BERT's `output`) keeps its name; ours is then reachable with the
    prefix `nns_`.
    """

    output = eproperty()
    input = eproperty(served.first_input, site=INPUT).setter(served.replace_first_input)
    inputs = eproperty(site=INPUT)
    # Always there, so that libraries can read the output of any module without knowing its submodules' names.
    nns_output = output
    nns_input = input
    nns_inputs = inputs

    def skip(self, value: Any) -> None:
        """Let the module not run in this visit, and take `value` as its output.

        What lies inside is not reached then. Among several invokes the module runs for those that did not skip it.
        """
        served.skip(self, value)

    @property
    def source(self) -> Source:
        """The operations inside the module's forward; print it to see them."""
        return source_of(self)

    nns_source = source

    def next(self, by: int = 1) -> Any:
        """Ask in a later step from here on, and return this envoy; the same as `tracer.next()`."""
        _current().advance(by)
        return self

    @property
    def iter(self) -> Steps:
        """Loop over steps; the same as `tracer.iter`, which is to be preferred."""
        return Steps(_current)

    def all(self) -> Any:
        """Loop over every step; the same as `tracer.all()`, which is to be preferred."""
        return Steps(_current)[:]

    # -- contexts ----------------------------------------------------------------------------------------------------

    def trace(
        self,
        *inputs: Any,
        trace: bool = True,
        fn: str | Callable[..., Any] | None = None,
        scan: bool = False,
        validate: bool = False,
        backend: Any = None,
        remote: Any = None,
        blocking: bool = True,
        **kwargs: Any,
    ) -> Any:
        """Run the model and look inside: `with model.trace(input):`.

        Without an input, the block opens invokes, each with its own: `with model.trace() as tracer:` and inside it
        `with tracer.invoke(input):`.

        Args:
            inputs: the input, as the model (or its family) takes it; keyword arguments count too.
            trace: False runs the model at once and returns what it returns.
            fn: trace another method than the forward: its name, or a callable.
            scan: run the forward on fake tensors first, so that an input that does not fit fails before any work.
            validate: with `scan`, run the block on them too. It then runs twice: prints and appends happen twice.
            backend: where to run, a backend or its name; here if not given.
            remote: run on a server: True for the one in `CONFIG.API.HOST`, or its address; needs `nnsight-remote`. "local"
                rehearses that: a fresh interpreter on this machine runs the block, which has none of your own modules, so
                what passes there passes on a server.
            blocking: False, with a server, goes on at once; what stands after `as` is then the job.

        Returns:
            A `Tracer`.
        """
        if trace and backend is None and blocking and not (scan or validate or remote):
            return Tracer(self, self._family(), inputs, kwargs, fn)
        return open_trace(
            self,
            inputs,
            kwargs,
            method=fn,
            trace=trace,
            scan=scan,
            validate=validate,
            backend=backend,
            remote=remote,
            blocking=blocking,
        )

    def scan(self, *inputs: Any, fn: str | Callable[..., Any] | None = None, **kwargs: Any) -> ScanTracer:
        """Run the block on fake tensors: shapes and types without weights or work.

        Example::

            with model.scan(x):
                size = model.layers[0].output.shape[-1]
        """
        return ScanTracer(self, self._family(), inputs, kwargs, fn)

    def edit(self, *, inplace: bool = False, name: str | None = None) -> EditContext:
        """Store a block as an edit of the model, replayed in each of its runs: `with model.edit() as edited:`.

        Args:
            inplace: edit this model itself, not a new reference to it.
            name: a name for listing and removing it.
        """
        return EditContext(self, inplace, name)

    def session(self, *, backend: Any = None, remote: Any = None, blocking: bool = True) -> Any:
        """Group several traces: `with model.session():`. Elsewhere, all of them are one job."""
        if backend is None and blocking and remote in (None, False):
            return Session(self)
        return open_trace(self, (), {}, backend=backend, remote=remote, blocking=blocking, session=True)

    # -- edits -------------------------------------------------------------------------------------------------------

    @property
    def edits(self) -> Edits:
        """The edits of the model, in the order in which they are replayed."""
        edits: Edits = self._root.__dict__["_edits"]
        return edits

    def clear_edits(self) -> None:
        """Remove every edit of the model."""
        self._root.__dict__["_edits"].clear()

    def remove_edit(self, edit: Any) -> None:
        """Remove one edit, given itself or its name.

        Raises:
            KeyError: the model has no such edit.
        """
        edits = self._root.__dict__["_edits"]
        edits.remove(edits.find(edit))

    # -- what the contexts need --------------------------------------------------------------------------------------

    def _family(self) -> Batchable:
        return _plain

    def _target(self, method: str | Callable[..., Any] | None) -> Callable[..., Any]:
        """Return what a run calls."""
        if method is None:
            return self._module
        return method if callable(method) else getattr(self._module, method)

    def _step_place(self, method: str | Callable[..., Any] | None) -> Place | None:
        """Return the place whose visits are the steps of such a run: the module itself, where a method calls it."""
        return None if method is None else self._place()

    def _method(self, name: str, method: Callable[..., Any]) -> Any:
        return Method(self, name, method)

    def _run_now(self, method: str | None, inputs: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run without a block, with the model's edits, and return what the model returns."""
        if not self._family()._has_input(inputs, kwargs):
            raise NoInputError(f"`{self._path}` was to run without a block, and was given no input to run on.")
        tracer = Tracer(self, self._family(), inputs, kwargs, method)
        with tracer:
            return tracer.result

    def _call_edited(self, method: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call a method of the module while the model's edits hold; the arguments need not be inputs."""
        run = Tracer(self, self._family(), (), {}, method)._interleaver(args, kwargs, None)
        run.run_here()
        return run.result


class Method:
    """A method of a wrapped module: a plain call, or at the head of a `with` a trace of it."""

    def __init__(self, envoy: Envoy, name: str, method: Callable[..., Any]) -> None:
        functools.update_wrapper(self, method)
        self._envoy = envoy
        self._name = name
        self._plain = method

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if is_with_head(sys._getframe(1)):
            return Tracer(self._envoy, self._envoy._family(), args, kwargs, self._name)
        envoy = self._envoy
        if envoy._parent is None and envoy.edits and not active.get():
            return envoy._call_edited(self._name, args, kwargs)
        return self._plain(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._plain, name)

    def __repr__(self) -> str:
        return repr(self._plain)
