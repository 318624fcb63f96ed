"""From values to steps.

The one idea: a step refers to earlier steps only. What is immutable is written after its parts; what can hold itself is
written after them too, unless one of them refers back to it, and then it is made empty first and filled later. How a thing
of one type is written is left to the files that register with `kinds.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from ..errors import WireError
from . import kinds
from .format import Buffer, pack
from .room import room
from .texts import Sent

_LARGEST = 1 << 53
#: Returns the step for what is at the other end already, or None.
Referrer = Callable[[Any], "list[Any] | None"]


class Busy(Exception):
    """A value was reached again while it was being written, and cannot be made empty first."""


class _Open:
    """A value whose parts are being written."""

    def __init__(self, shell: list[Any] | None) -> None:
        self.shell = shell


class _At:
    """See `Encoder.at`. A class, since each name of each block goes through it."""

    __slots__ = ("_encoder", "_step")

    def __init__(self, encoder: Encoder, step: str) -> None:
        self._encoder = encoder
        self._step = step

    def __enter__(self) -> None:
        self._encoder._trail.append(self._step)

    def __exit__(self, *error: object) -> None:
        self._encoder._trail.pop()


class Encoder:
    """Writes one message.

    Args:
        referrers: asked, in order, of whatever is no plain value, whether it is at the other end already.
        results: whether objects are written as records, that can be read without running anything.
    """

    def __init__(self, referrers: list[Referrer] | None = None, results: bool = False) -> None:
        self.referrers = referrers or []
        self.results = results
        self.nodes: list[list[Any]] = []
        self.buffers: list[Buffer] = []
        self.files = Sent()
        self.packages: dict[str, str] = {}
        #: What other files keep for the length of one message, each under a name of its own.
        self.kept: dict[str, Any] = {}
        #: Called before the message is packed, for what is known only when all is written.
        self.closing: list[Callable[[], None]] = []
        #: What is done once in a message, and the number of the step that was next then.
        self.done: dict[Any, int] = {}
        self._memo: dict[int, int | _Open] = {}
        self._alive: list[Any] = []
        self._trail: list[str] = []
        self._waiting: list[tuple[list[str], Callable[[], None]]] = []
        #: The things that are being written, outermost first.
        self._writing: list[int] = []

    # -- writing -----------------------------------------------------------------------------------------------------

    def value(self, thing: Any, step: str = "") -> Any:
        """Write a thing and what it needs, and return what stands for it; `step` says how one gets to it."""
        kind = type(thing)
        if thing is None or kind is bool or kind is str:
            return thing
        if kind is int and -_LARGEST <= thing <= _LARGEST:
            return thing
        if kind is float and math.isfinite(thing):
            return thing
        known = self._memo.get(id(thing))
        if known is not None:
            return [known if isinstance(known, int) else self._reopen(thing, known)]
        if step:
            self._trail.append(step)
        try:
            if self._writing:
                return [self._write(thing, kind)]
            with room():
                return [self._write(thing, kind)]
        except RecursionError:
            raise self.refusal("it is nested too deeply", "send it as a flat list") from None
        finally:
            if step:
                self._trail.pop()

    def emit(self, *step: Any) -> int:
        """Write one step, and return its number."""
        self.nodes.append(list(step))
        return len(self.nodes) - 1

    def mutable(self, thing: Any, shell: list[Any], parts: Callable[[], Any]) -> int:
        """Write what can be made empty, as the step `shell`, and filled with what `parts` returns."""
        opened = _Open(shell)
        self._memo[id(thing)] = opened
        try:
            content = parts()
        except Busy:
            number = self._shell(thing)
            self._postpone(lambda: self._fill(number, parts))
            return number
        known = self._memo[id(thing)]
        if isinstance(known, int):
            self.emit("fill", known, content)
            return known
        return self.emit(*shell, content)

    def number(self, thing: Any, number: int) -> int:
        """Say that a step makes a thing, before all of what belongs to it is written."""
        self._memo[id(thing)] = number
        return number

    def when_free(self, write: Callable[[], None]) -> None:
        """Write something now, or if that leads back to what is being written, once that is done."""
        try:
            write()
        except Busy:
            self._postpone(write)

    def first_time(self, what: Any) -> bool:
        """Say whether something is done for the first time in this message, and note it."""
        if what in self.done:
            return False
        self.done[what] = len(self.nodes)
        return True

    def buffer(self, data: Buffer) -> int:
        """Add a buffer, and return its number."""
        self.buffers.append(data)
        return len(self.buffers) - 1

    def at(self, step: str) -> AbstractContextManager[None]:
        """Say where we are, for messages."""
        return _At(self, step)

    def refusal(self, why: str, instead: str) -> WireError:
        """Return the error for the thing that is being written."""
        trail = self._trail if len(self._trail) <= 16 else [*self._trail[:6], "...", *self._trail[-6:]]
        where = " -> ".join(trail)
        return WireError(f"{where + ': ' if where else ''}{why}, so it cannot travel. Instead, {instead}.")

    def pack(self, kind: str, root: Any, about: dict[str, Any]) -> bytes:
        """Return the bytes of the whole message."""
        return b"".join(self.pieces(kind, root, about))

    def pieces(self, kind: str, root: Any, about: dict[str, Any]) -> list[Buffer]:
        """Return the same in pieces, of which the large ones are no copies."""
        for close in self.closing:
            close()
        document: dict[str, Any] = {"kind": kind, "about": about, "buffers": [], "root": root, "nodes": self.nodes}
        if self.packages:
            document["packages"] = self.packages
        if self.files:
            document["files"] = self.files.as_json()
        return pack(document, self.buffers)

    # -- what is inside ----------------------------------------------------------------------------------------------

    def _write(self, thing: Any, kind: type) -> int:
        self._alive.append(thing)
        write = kinds.WRITERS.get(kind)
        self._memo[id(thing)] = _Open(None)
        self._writing.append(id(thing))
        start, waiting = len(self.nodes), len(self._waiting)
        try:
            number = None if write in _PLAIN else self._reference(thing)
            if number is None:
                number = (write or self._family(kind))(self, thing)
        except Busy:
            if isinstance(self._memo[id(thing)], _Open):
                del self._memo[id(thing)]
            raise
        except BaseException:
            self._forget(id(thing), start, waiting)
            raise
        finally:
            self._writing.pop()
        self._memo[id(thing)] = number
        if not self._writing:
            self._catch_up()
        return number

    def _forget(self, failed: int, start: int, waiting: int) -> None:
        """Forget what was written for a thing that cannot travel: parts of it may lack what it could not give them."""
        del self._waiting[waiting:]
        outer = set(self._writing[:-1])
        for known in (self._memo, self.done):
            late = [key for key, number in known.items() if isinstance(number, int) and number >= start]
            for key in late:
                if known is self.done or key not in outer:
                    del known[key]
        self._memo.pop(failed, None)

    def _catch_up(self) -> None:
        while self._waiting:
            waiting, self._waiting = self._waiting, []
            self._writing.append(0)  # no thing has this number
            for trail, write in waiting:
                self._trail, before = trail, self._trail
                write()
                self._trail = before
            self._writing.pop()

    def _postpone(self, write: Callable[[], None]) -> None:
        self._waiting.append((list(self._trail), write))

    def _reference(self, thing: Any) -> int | None:
        for refer in self.referrers:
            step = refer(thing)
            if step is not None:
                return self.emit(*step)
        return None

    def _family(self, kind: type) -> kinds.Write:
        for base in kind.__mro__:
            write = kinds.FAMILIES.get(base)
            if write is not None:
                return write
        raise AssertionError("everything is an object")

    def _reopen(self, thing: Any, known: _Open) -> int:
        if known.shell is None:
            raise Busy
        return self._shell(thing)

    def _shell(self, thing: Any) -> int:
        known = self._memo[id(thing)]
        if isinstance(known, int):
            return known
        assert known.shell is not None
        number = self._memo[id(thing)] = self.emit(*known.shell)
        return number

    def _fill(self, number: int, parts: Callable[[], Any]) -> None:
        self.emit("fill", number, parts())


#: The writers of plain values, about which no referrer is asked.
_PLAIN: set[kinds.Write | None] = set()


def plain(write: kinds.W) -> kinds.W:
    """Say that what a writer writes is never at the other end already."""
    _PLAIN.add(write)
    return write
