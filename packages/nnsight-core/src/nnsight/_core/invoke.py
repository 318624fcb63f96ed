"""An invoke: one body of a batch, captured where it is written and run when the batch is known.

Names flow between invokes as the text suggests: a body that reads what an earlier invoke binds waits for it, at the
site where the run then stands. How a body is captured and built is `blocks/`; the run itself is `interleaver.py`.
"""

from __future__ import annotations

import ast
import builtins
import functools
import sys
from collections.abc import Mapping, Sequence
from types import FrameType
from typing import TYPE_CHECKING, Any

from . import complaints
from .batching import Prepared, Rows
from .blocks import Body, Names, capture, skip, skipped, snapshot, write_back
from .errors import CrossInvokeError, InvokeError
from .mediator import BodyMediator

if TYPE_CHECKING:
    from .trace import Tracer


class Invoke:
    """One body of a batch, with its input and its options.

    Attributes:
        rows: where its rows start among those of the batch and how many they are; None when it sees the whole batch.
        prepared: its input as the model takes it; None without an input of its own.
    """

    rows: Rows | None = None
    body: Body | None = None
    names: Names | None = None
    frame: FrameType | None = None
    mediator: BodyMediator | None = None

    def __init__(self, tracer: Tracer, number: int, prepared: Prepared | None) -> None:
        self.tracer = tracer
        self.number = number
        self.prepared = prepared

    @property
    def name(self) -> str:
        """How messages call it: its number and its line."""
        where = f" (line {self.body.lineno})" if self.body is not None else ""
        return f"invoke {self.number}{where}"

    @property
    def tokens(self) -> Any:
        """Where its own tokens lie in the values of the run; see `Tracer.tokens`. Siblings may ask for it too."""
        return self.tracer._tokens_of(self.rows)

    def __enter__(self) -> Invoke:
        self.capture(sys._getframe(1))
        return self

    def capture(self, frame: FrameType) -> None:
        """Take the block of the `with` that the frame is entering as the body, and have the frame skip it."""
        body = self.body = capture(frame)
        block = body.block
        if block.found.index:
            _check_before(self.tracer, body, frame)
        earlier = self.tracer._invokes
        body.share(earlier[-1].body if earlier else None)
        self.frame = frame
        names = self.names = Names(body.outer, body.real)
        if block.found.item.optional_vars is not None:
            body.assign(names, self)
        skip(frame, block.entered)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> bool:
        if not skipped(error):
            return False
        self.tracer._invokes.append(self)
        return True

    # -- in the run --------------------------------------------------------------------------------------------------

    def join(self, binders: Binders) -> None:
        """Let names that siblings bind be waited for; `binders` are those of the same frame."""
        assert self.names is not None and self.body is not None
        # Most bodies read nothing that any of them binds; then there is nobody to ask.
        if self.body.reads_anything or not self.body.reads.isdisjoint(binders):
            self.names.elsewhere = lambda name: self._from_siblings(name, binders.get(name, ()))

    def _from_siblings(self, name: str, binders: Sequence[Invoke]) -> Any:
        # Others that run the same body draw from the same input: each is by itself.
        binders = [other for other in binders if other.body is not self.body]
        if not binders:
            raise KeyError(name)
        # The nearest before this one in the text, and what it may leave unbound, the one before that.
        writers = [other for other in binders if other.number < self.number][::-1]
        if not writers and not self._is_outside(name):
            # In the order of the text nobody has bound it yet, but a later invoke will, and nothing else can be meant.
            writers = [other for other in binders if other.number > self.number]
        if not writers:
            raise KeyError(name)
        assert self.mediator is not None
        for writer in writers:
            names = writer.names
            assert isinstance(names, InvokeNames)
            self.mediator.wait_until(functools.partial(names.is_settled, name, self.mediator.step))
            if name in names:
                if sum(other.body is writer.body for other in writers) > 1:
                    raise CrossInvokeError(complaints.bound_often(name, self.name, writer.name))
                return names[name]
        if self._is_outside(name):
            raise KeyError(name)
        raise CrossInvokeError(complaints.never_bound(name, self.name, [other.name for other in writers]))

    def _is_outside(self, name: str) -> bool:
        assert self.names is not None
        return name in self.names.outer or name in self.names.real or hasattr(builtins, name)

    def run(self) -> None:
        """Run the body."""
        assert self.body is not None and self.names is not None
        self.body.run(self.names)

    def release(self) -> None:
        """Let go of the caller's frame and of all values."""
        self.frame = self.names = self.mediator = None


class InvokeNames(Names):
    """The names of an invoke that others may wait for: they know in which step of a loop each was bound last."""

    __slots__ = ("invoke", "steps")

    def __init__(self, names: Names, invoke: Invoke) -> None:
        super().__init__(names.outer, names.real)
        self.invoke = invoke
        self.steps: dict[str, int | None] = {}
        self.update(names)

    def __setitem__(self, name: str, value: Any) -> None:
        mediator = self.invoke.mediator
        self.steps[name] = mediator.step if mediator is not None and mediator.loop is not None else None
        super().__setitem__(name, value)

    def is_settled(self, name: str, step: int | None) -> bool:
        """Say whether a sibling in this step may read the name now: it is bound, and not left from an earlier round."""
        mediator = self.invoke.mediator
        if mediator is None or mediator.done:
            return True
        if name not in self:
            return False
        bound = self.steps.get(name)
        # A loop that bound it in an earlier step will bind it again in this one.
        return bound is None or step is None or bound >= step or mediator.loop is None


#: For each name, the invokes of one frame that bind it, in their order.
Binders = Mapping[str, Sequence[Invoke]]


def join_names(invokes: Sequence[Invoke]) -> None:
    """Let the names that invokes bind be waited for by the others that were written in the same frame."""
    frames: dict[int, list[Invoke]] = {}
    for invoke in invokes:
        frames.setdefault(id(invoke.frame), []).append(invoke)
    for together in frames.values():
        # Most bodies read nothing that any of them binds, and many are made of one block.
        blocks = {invoke.body.block for invoke in together if invoke.body is not None}
        written = frozenset[str]().union(*(block.binds for block in blocks))
        if any(block.reads_anything or not (block.reads - {block.target}).isdisjoint(written) for block in blocks):
            binders: dict[str, list[Invoke]] = {}
            for invoke in together:
                assert invoke.body is not None and invoke.names is not None
                invoke.names = InvokeNames(invoke.names, invoke)
                for name in invoke.body.block.binds:
                    binders.setdefault(name, []).append(invoke)
            for invoke in together:
                invoke.join(binders)


def running(invokes: Sequence[Invoke]) -> list[tuple[FrameType, Names]]:
    """Give what each of the invokes that have not been written back yet has bound, and where it will be bound."""
    return [(invoke.frame, invoke.names) for invoke in invokes if invoke.frame is not None and invoke.names is not None]


def write_back_all(invokes: Sequence[Invoke]) -> None:
    """Bind in the frames of the callers what the bodies bound, the last one of them last, and let go of the frames."""
    # Binding names in a frame takes as long for one as for many, and most invokes stand in one frame.
    bound: dict[int, tuple[FrameType, dict[str, Any]]] = {}
    for invoke in invokes:
        if invoke.frame is not None and invoke.names is not None:
            bound.setdefault(id(invoke.frame), (invoke.frame, {}))[1].update(invoke.names)
        invoke.release()
    for frame, names in bound.values():
        write_back(frame, names)


def refuse(what: str) -> InvokeError:
    """Return the error for an invoke in a trace that has its input already."""
    return InvokeError(
        f"Cannot invoke during an active model execution: {what} was given an input, so its block runs in that one run. "
        "Give each input to an invoke instead: `with model.trace() as tracer:` and, inside, `with tracer.invoke(input):`."
    )


def _check_before(tracer: Tracer, body: Body, frame: FrameType) -> None:
    """Raise if the `with` of an invoke has items before it that would be over before the body runs."""
    foreign = body.items_before
    for position, item in enumerate(foreign):
        target = item.optional_vars
        if isinstance(target, ast.Name) and snapshot(frame, [target.id]).get(target.id) is tracer:
            foreign = foreign[position + 1 :]  # what surrounds the whole trace surrounds its run
            break
    if foreign:
        raise InvokeError(
            f"`{ast.unparse(foreign[0])}` stands before `tracer.invoke(...)` in the same `with`, but it would be over "
            "before the body runs. Put it inside: `with tracer.invoke(...):` and, below it, `with ...:`."
        )
