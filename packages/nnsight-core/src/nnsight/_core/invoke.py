"""An invoke: one body of a batch, captured where it is written and run when the batch is known.

Names flow between invokes as the text suggests: a body that reads what an earlier invoke binds waits for it, at the
site where the run then stands. How a body is captured and built is `blocks/`; the run itself is `interleaver.py`.
"""

from __future__ import annotations

import builtins
import functools
import sys
from types import FrameType
from typing import TYPE_CHECKING, Any

from . import complaints
from .batching import Prepared, Rows
from .blocks import Body, Names, capture, skip, skipped, write_back
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

    def __init__(self, tracer: Tracer, number: int, prepared: Prepared | None) -> None:
        self.tracer = tracer
        self.number = number
        self.prepared = prepared
        self.rows: Rows | None = None
        self.body: Body | None = None
        self.names: Names | None = None
        self.frame: FrameType | None = None
        self.mediator: BodyMediator | None = None

    @property
    def name(self) -> str:
        """How messages call it: its number and its line."""
        where = f" (line {self.body.lineno})" if self.body is not None else ""
        return f"invoke {self.number}{where}"

    def __enter__(self) -> Invoke:
        frame = sys._getframe(1)
        self.body = capture(frame)
        self.tracer._check_before(self.body, frame)
        self.frame = frame
        self.names = self.body.names()
        self.body.assign(self.names, self)
        skip(frame)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> bool:
        if not skipped(error):
            return False
        self.tracer._invokes.append(self)
        return True

    # -- in the run --------------------------------------------------------------------------------------------------

    def join(self, siblings: list[Invoke], cross: bool) -> None:
        """Let names that siblings bind be waited for."""
        assert self.names is not None and self.body is not None
        if not cross:
            return
        mine = [s for s in siblings if s is not self and s.frame is self.frame and s.body is not None]
        before = [s for s in mine if s.number < self.number][::-1]
        after = [s for s in mine if s.number > self.number]
        if mine:
            self.names.elsewhere = lambda name: self._from_siblings(name, before, after)

    def _from_siblings(self, name: str, before: list[Invoke], after: list[Invoke]) -> Any:
        writers = [s for s in before if s._binds(name)]
        if not writers and not self._is_outside(name):
            # In the order of the text nobody has bound it yet, but a later invoke will, and nothing else can be meant.
            writers = [s for s in after if s._binds(name)]
        if not writers:
            raise KeyError(name)
        for writer in writers:
            names, other = writer.names, writer.mediator
            assert names is not None and other is not None and self.mediator is not None
            self.mediator.wait_until(functools.partial(_is_settled, names, name, other))
            if name in names:
                return names[name]
        if self._is_outside(name):
            raise KeyError(name)
        raise CrossInvokeError(complaints.never_bound(name, self.name, [s.name for s in writers]))

    def _binds(self, name: str) -> bool:
        return self.body is not None and name in self.body.writes

    def _is_outside(self, name: str) -> bool:
        assert self.names is not None
        return name in self.names.outer or name in self.names.real or hasattr(builtins, name)

    def run(self) -> None:
        """Run the body."""
        assert self.body is not None and self.names is not None
        self.body.run(self.names)

    def write_back(self) -> None:
        """Bind in the caller's frame what the body bound, and let go of the frame."""
        if self.frame is not None and self.names is not None:
            write_back(self.frame, self.names)
        self.frame = self.names = self.mediator = None


def _is_settled(names: Names, name: str, other: BodyMediator) -> bool:
    return name in names or other.done


def refuse(what: str) -> InvokeError:
    """Return the error for an invoke in a trace that has its input already."""
    return InvokeError(
        f"Cannot invoke during an active model execution: {what} was given an input, so its block runs in that one run. "
        "Give each input to an invoke instead: `with model.trace() as tracer:` and, inside, `with tracer.invoke(input):`."
    )
