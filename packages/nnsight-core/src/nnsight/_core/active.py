"""Which bodies are being run by the code that asks: innermost last.

A context variable, so that threads and asyncio tasks do not see each other's traces; each body's greenlet has a context
of its own. A member is a mediator, or something else that can answer for a `with` of ours (a trace that is only being
defined, a backward block): see `Answers`.
"""

from __future__ import annotations

from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Protocol

from .errors import NoTraceError

if TYPE_CHECKING:
    from .mediator import Mediator
    from .sites import Place


class Answers(Protocol):
    """Something in whose scope sites may be asked for."""

    def mediator_for(self, place: Place) -> Mediator | None:
        """Return the mediator that serves this place, None if the place is not ours, or raise why not."""


active: ContextVar[tuple[Any, ...]] = ContextVar("nnsight_active", default=())


def enter(member: Any) -> None:
    """Make `member` the innermost."""
    active.set(active.get() + (member,))


def leave(member: Any) -> None:
    """Take `member` out, wherever it is: generators leave in any order."""
    stack = active.get()
    if stack and stack[-1] is member:
        active.set(stack[:-1])
    else:
        active.set(tuple(other for other in stack if other is not member))


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
