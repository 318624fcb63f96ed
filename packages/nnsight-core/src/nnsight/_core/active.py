"""Which bodies are being run by the code that asks: innermost last.

A context variable, so that threads and asyncio tasks do not see each other's traces; each body's greenlet has a context
of its own. A member is a mediator, or something else that can answer for a `with` of ours (a trace that is only being
defined, a backward block): see `Answers`.
"""

from __future__ import annotations

import inspect
import sys
from contextvars import ContextVar
from types import FrameType
from typing import TYPE_CHECKING, Any, Protocol

from .errors import NoTraceError

if TYPE_CHECKING:
    from .mediator import Mediator
    from .sites import Place


_SUSPENDS = inspect.CO_GENERATOR | inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR


class Answers(Protocol):
    """Something in whose scope sites may be asked for."""

    #: Places that it serves itself: for those it need not be asked.
    members: frozenset[Place]

    def mediator_for(self, place: Place) -> Mediator | None:
        """Return the mediator that serves this place, None if the place is not ours, or raise why not."""


active: ContextVar[tuple[Any, ...]] = ContextVar("nnsight_active", default=())


def members() -> tuple[Any, ...]:
    """Return the active members, but for bodies that ended in another context (a generator, collected elsewhere)."""
    stack = active.get()
    for member in stack:
        if getattr(member, "done", False):
            return tuple(member for member in stack if not getattr(member, "done", False))
    return stack


def enter(member: Any, frame: FrameType | None = None) -> None:
    """Make `member` the innermost; `frame` is where its `with` stands."""
    stack = active.get()
    if frame is not None and frame.f_code.co_flags & _SUSPENDS:
        member.frame = frame
    if not stack:
        active.set((member,))
        return
    stack = members()
    suspended = [other for other in stack if getattr(other, "frame", None) is not None and not _is_running(other.frame)]
    active.set((*stack, member, Guard(member, suspended, stack)) if suspended else (*stack, member))


def leave(member: Any) -> None:
    """Take `member` out, wherever it is: generators leave in any order."""
    if getattr(member, "frame", None) is not None:
        member.frame = None
    stack = active.get()
    if stack and stack[-1] is member:
        active.set(stack[:-1])
    else:
        active.set(tuple(m for m in stack if m is not member and getattr(m, "guarded", None) is not member))


class Guard:
    """Stands before a member that was entered while a generator around it was suspended.

    A generator that yields from its block leaves its member active, as a context manager made of one needs it to. What
    the generator asks for once it goes on is its own, though another block was entered meanwhile.
    """

    members: frozenset[Place] = frozenset()

    def __init__(self, guarded: Any, suspended: list[Any], below: tuple[Any, ...]) -> None:
        self.guarded = guarded
        self.suspended = suspended
        self.below = below

    @property
    def done(self) -> bool:
        """Whether the member has ended."""
        return bool(getattr(self.guarded, "done", False))

    def mediator_for(self, place: Place) -> Mediator | None:
        """Answer from below the member while the generator is running."""
        if not any(other.frame is not None and _is_running(other.frame) for other in self.suspended):
            return None
        answers = (other.mediator_for(place) for other in reversed(self.below))
        return next((mediator for mediator in answers if mediator is not None), None)


def _is_running(frame: FrameType) -> bool:
    caller: FrameType | None = sys._getframe(1)
    while caller is not None and caller is not frame:
        caller = caller.f_back
    return caller is not None


def mediator_for(place: Place) -> Mediator:
    """Return the mediator of the innermost run that has this place.

    Raises:
        NoTraceError: there is no run, or none that has the place.
    """
    stack = active.get()
    for member in reversed(stack):
        mediator: Mediator | None = member.mediator_for(place)
        if mediator is not None:
            return mediator
    if not stack:
        raise NoTraceError(
            f"`{place.path}` was asked for outside any trace. Values exist while the model runs: open "
            "`with model.trace(input):` and ask inside the block."
        )
    raise NoTraceError(
        f"`{place.path}` does not belong to the model that is being traced here. Open a trace on the model (or the "
        "part of it) that it belongs to."
    )
