"""Tracebacks that show the user's lines only.

The one idea: a traceback is a linked list whose links can be written, so frames of the library are unlinked where
they are. Because the list itself changes, a re-raise on 3.10, which goes back to the list that the interpreter
remembers instead of the exception's own, shows the folded one too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import FrameType, TracebackType
from typing import TypeVar

from .names import BodyGlobals
from .skip import Skipped

Raised = TypeVar("Raised", bound=BaseException)


def fold(error: Raised, hidden: Callable[[str], bool], *, debugging: bool = False) -> Raised:
    """Take the frames of files that `hidden(filename)` accepts out of an exception, its causes, contexts and members.

    The exception is changed in place and returned. Nothing is folded when `debugging`.

        except Exception as error:
            fold(error, lambda filename: filename.startswith(library))
            raise
    """
    for one in _related(error):
        # How a block is skipped is never news: what went wrong while it was skipped stands on its own.
        while isinstance(one.__context__, Skipped):
            one.__context__ = one.__context__.__context__
        if not debugging:
            one.__traceback__ = _unlink(one.__traceback__, hidden)
    return error


def captured_frame(error: BaseException) -> FrameType | None:
    """Return the frame of the captured block that an error left; None if it left none."""
    entry = error.__traceback__
    while entry is not None:
        if isinstance(entry.tb_frame.f_globals, BodyGlobals):
            return entry.tb_frame
        entry = entry.tb_next
    return None


def _unlink(head: TracebackType | None, hidden: Callable[[str], bool]) -> TracebackType | None:
    first: TracebackType | None = None
    last: TracebackType | None = None
    entry = head
    while entry is not None:
        following = entry.tb_next
        if not hidden(entry.tb_frame.f_code.co_filename):
            first = first or entry
            if last is not None:
                last.tb_next = entry
            last = entry
        entry = following
    if last is not None:
        last.tb_next = None
    if head is not None and head is not first:
        head.tb_next = first
    return first


def _related(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    waiting = [error]
    while waiting:
        one = waiting.pop()
        if id(one) in seen:
            continue
        seen.add(id(one))
        yield one
        waiting += [other for other in (one.__cause__, one.__context__) if other is not None]
        # An exception group (3.11), or any exception that carries others the same way.
        members = getattr(one, "exceptions", ())
        waiting += (
            [other for other in members if isinstance(other, BaseException)] if isinstance(members, tuple) else []
        )
