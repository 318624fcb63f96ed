"""Saving a value: marking it as part of a trace's result.

A local body's names stay bound after the block anyway, so marking matters where a body runs elsewhere and only what was
saved comes back. `save` is also mounted as a method on the types of values that bodies make (`patches.py`).
"""

from __future__ import annotations

from typing import Any, TypeVar

from .active import active
from .errors import SaveOutsideTraceError

V = TypeVar("V")


class Collector:
    """Collects what is saved while it is active, for a backend that must send it."""

    members: frozenset[Any] = frozenset()

    def __init__(self) -> None:
        self._kept: dict[int, Any] = {}

    def mediator_for(self, place: Any) -> None:
        """Serve nothing; see `active.py`."""
        return

    def has(self, value: Any) -> bool:
        """Say whether this very value was saved."""
        return id(value) in self._kept

    def add(self, value: Any) -> None:
        """Take in a value that is saved."""
        self._kept[id(value)] = value

    @property
    def values(self) -> list[Any]:
        """What was saved, in that order."""
        return list(self._kept.values())


def save(value: V) -> V:
    """Mark a value as part of the result of the trace (or session) around it, and return it.

    Example::

        with model.trace(x):
            hidden = nnsight.save(model.layers[0].output)

    Raises:
        SaveOutsideTraceError: there is no trace or session around the call.
    """
    outside = True
    for member in active.get():
        if isinstance(member, Collector):
            member.add(value)
            outside = False
        elif outside and not getattr(member, "done", False):  # as `members` leaves out what is over
            outside = False
    if outside:
        raise SaveOutsideTraceError(
            "save() was called outside any trace, where there is nothing to save for. Call it inside `with "
            "model.trace(...):`; values that you have already are yours."
        )
    return value
