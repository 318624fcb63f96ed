"""Where a run happens: here, or wherever a backend takes it.

A backend gets a `Request`: the whole block of a trace or session, captured, and what it was opened with. It returns the
values that the block saved, by name, and those are bound in the caller's frame; nothing else comes back. One that was
asked not to wait returns a `Pending` instead, which stands after `as` and binds the values later. How a body travels is
the wire's business, and each backend's own.
"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from . import active as scopes
from . import plugins
from .blocks import Body, Names, capture, fold, skip, skipped
from .cache import Cache
from .config import CONFIG
from .errors import NNsightError
from .saved import Collector
from .session import Session
from .sofar import Look, SoFar
from .trace import Tracer, is_library
from .validate import ValidatingTracer

if TYPE_CHECKING:
    from .model import NNsight
    from .tree import Node


class Request:
    """One block to be run elsewhere.

    Attributes:
        node: the envoy that is traced.
        inputs, kwargs, method: what the trace was opened with.
        body: the captured block; `body.target` is the name of its tracer.
        names: the values of the names it reads.
        session: whether the block is a session, with traces inside.
    """

    def __init__(
        self,
        node: Node,
        inputs: tuple[Any, ...],
        kwargs: dict[str, Any],
        method: str | Callable[..., Any] | None,
        session: bool,
    ) -> None:
        self.node = node
        self.inputs = inputs
        self.kwargs = kwargs
        self.method = method
        self.session = session
        self.body: Body
        self.names: Names

    @property
    def model(self) -> NNsight:
        """The model that the envoy belongs to, its root."""
        return self.node._root  # type: ignore[return-value]  # roots are models

    def open(self) -> Tracer | Session:
        """Return the context that the block was written for, to be entered where it runs."""
        if self.session:
            return Session(self.node)
        return self.model._tracer(self.node, self.inputs, self.kwargs, self.method)

    def replay(self, look: Look | None = None) -> dict[str, Any]:
        """Run the block in this process as if it had been written here, and return what it saved, by name.

        Args:
            look: called while the block runs with what it has saved so far, by name: at each `save`, before each turn of
                the model, and when a trace or the block ends, well or not. The values are the block's own, which it may
                still change. What it raises is raised in the block.
        """
        collector = Collector() if look is None else SoFar(self.names, look)
        scopes.enter(collector)
        try:
            self.open().run_body(self.body, self.names)
            if isinstance(collector, SoFar):
                collector.show()
        except BaseException as error:
            if isinstance(collector, SoFar):
                try:
                    collector.show()
                except Exception as another:
                    raise error from another
            raise
        finally:
            scopes.leave(collector)
        # A cache is a result in itself; nobody has to save it.
        return {name: value for name, value in self.names.items() if collector.has(value) or isinstance(value, Cache)}


@runtime_checkable
class Pending(Protocol):
    """A block that is not finished: what a backend returns that was asked not to wait."""

    def deliver_to(self, bind: Callable[[Mapping[str, Any]], None]) -> None:
        """Take what binds saved values, by name, where the block stands. To be called once, when they are there."""


@runtime_checkable
class Backend(Protocol):
    """A place to run a block."""

    def run(self, request: Request) -> dict[str, Any] | Pending:
        """Run the block and return what it saved, by name; raise what it raised.

        A `Pending` in its place is bound to what stands after `as`.
        """


class HereBackend:
    """Runs a captured block in this process. Says nothing about travelling; it shows what a backend has to do."""

    def run(self, request: Request) -> dict[str, Any]:
        """Replay the block here."""
        return request.replay()


class Elsewhere:
    """The context of a block that a backend runs."""

    def __init__(self, request: Request, backend: Backend) -> None:
        self._request = request
        self._backend = backend

    def __enter__(self) -> Any:
        frame = sys._getframe(1)
        self._request.body = capture(frame)
        self._request.names = self._request.body.names()
        self._frame = frame
        skip(frame)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> bool:
        frame = self._frame
        del self._frame
        if not skipped(error):
            return False
        try:
            saved = self._backend.run(self._request)
        except BaseException as failure:
            fold(failure, hidden_with(self._backend), debugging=bool(CONFIG.APP.DEBUG))
            raise
        if isinstance(saved, dict):
            self._request.body.bring_back(frame, saved)
        else:
            saved.deliver_to(functools.partial(self._request.body.bring_back, frame))
            self._request.body.bind(frame, saved)
        return True


def hidden_with(backend: Any) -> Callable[[str], bool]:
    """Say which files' frames a user need not see: ours, and those of the plugin that a backend came with."""
    package = type(backend).__module__.partition(".")[0]
    file = getattr(sys.modules.get(package), "__file__", None)
    if file is None or package not in plugins.packages():
        return is_library
    folder = os.path.join(os.path.dirname(os.path.abspath(file)), "")
    return lambda filename: is_library(filename) or filename.startswith(folder)


def find_backend(backend: Any, remote: Any, blocking: bool = True) -> Backend | None:
    """Return the backend that the arguments of a trace name; None for here and inline."""
    if not blocking and (backend is not None or remote in (None, False, "local")):
        raise ValueError(
            "blocking=False is for blocks that a server runs: `remote=True` or `remote='http://...'`. "
            "A backend that can run a block without waiting says so when it is made."
        )
    if backend is None and remote in (None, False):
        return None
    made: Any
    if backend is None and remote == "local":
        from .rehearsal import Rehearsal

        made = Rehearsal()
    elif backend is None:
        made = plugins.lookup("backends", "remote")(remote, blocking=blocking)
    elif isinstance(backend, str):
        made = HereBackend() if backend == "here" else plugins.lookup("backends", backend)()
    else:
        made = backend
    if not isinstance(made, Backend):
        raise NNsightError(f"{made!r} is no backend: it has no `run(request)`.")
    return made


def open_trace(
    node: Node,
    inputs: tuple[Any, ...],
    kwargs: dict[str, Any],
    *,
    method: str | Callable[..., Any] | None = None,
    trace: bool = True,
    scan: bool = False,
    validate: bool = False,
    backend: Any = None,
    remote: Any = None,
    blocking: bool = True,
    session: bool = False,
) -> Any:
    """Return the context for a trace as it was asked for, or what the model returns if none was."""
    family = node._family()
    where = find_backend(backend, remote, blocking)
    if validate and not scan and trace:
        raise ValueError("validate=True checks the block against a scan: pass scan=True with it")
    if where is not None:
        if not trace or scan:
            asked = "trace=False" if not trace else "scan=True"
            raise ValueError(
                f"{asked} runs here, and this block runs elsewhere: leave it out, or `remote=` and `backend=`"
            )
        return Elsewhere(Request(node, inputs, kwargs, method, session), where)
    if not trace:
        return node._run_now(method, inputs, kwargs)
    if scan:
        return ValidatingTracer(node, family, inputs, kwargs, method, validate)
    return Tracer(node, family, inputs, kwargs, method)


_absent: Any = object()


def run_there(
    node: Node,
    inputs: tuple[Any, ...],
    kwargs: dict[str, Any],
    *,
    method: str | None,
    backend: Any,
    remote: Any,
    blocking: bool,
) -> Any:
    """Run elsewhere without a block of the user's, and return what the model returns; what is pending, if nobody waits."""
    import nnsight

    result = _absent
    with open_trace(node, inputs, kwargs, method=method, backend=backend, remote=remote, blocking=blocking) as tracer:
        result = nnsight.save(tracer.result)
    return tracer if result is _absent else result
