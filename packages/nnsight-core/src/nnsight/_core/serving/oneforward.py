"""One forward of an engine, from the model's call to the tokens that are drawn, and whom to tell of it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING

from ..batching import Layout, Rows
from ..taps import running
from ..turns import getcurrent

if TYPE_CHECKING:
    from .forwards import Forwards
    from .request import ServedRun


class Surrounding(ABC):
    """What surrounds a forward: while it is on, the taps that are gone through here ask the forwards.

    Classes, since every step of an engine goes through one.

    Args:
        forwards: the engine's.
        taking_part, layout: see `Forwards.forward`.
    """

    __slots__ = ("_current", "_forwards", "_layout", "_outer", "over", "taking_part")

    def __init__(self, forwards: Forwards, taking_part: Mapping[ServedRun, Rows], layout: Layout) -> None:
        #: Whether it has ended before the engine says so: all that anybody wanted of it is done.
        self.over = False
        self._forwards = forwards
        self.taking_part = taking_part
        self._layout = layout

    @abstractmethod
    def __enter__(self) -> None: ...

    @abstractmethod
    def __exit__(self, *error: object) -> None: ...

    def _dismiss_all(self) -> None:
        """Say of all that they take part no more: some may have left their groups meanwhile."""
        for run in self.taking_part:
            run.scheduled = False


class OneForward(Surrounding):
    """A forward of which nothing is known before it begins."""

    __slots__ = ("_who",)

    def __enter__(self) -> None:
        forwards, taking_part = self._forwards, self.taking_part
        self._who: Who | None = None
        current = self._current = forwards.model = getcurrent()
        self._outer = running.get(current)
        running[current] = forwards
        anew = forwards.newcomers
        try:
            forwards._begin_forward(taking_part, self._layout)
            self._who = who = forwards._sorted(taking_part)
            for run in who.runs:
                run.begin_in(taking_part)
            forwards.settle()
            if anew:  # forwards that are alike may follow, and need not be gone through in full before they do
                forwards.narrow(who.runs)
        except BaseException:
            self.__exit__()
            raise

    def __exit__(self, *error: object) -> None:
        forwards, who = self._forwards, self._who
        if forwards.ahead:
            forwards._catch_up()
        if self._outer is None:
            del running[self._current]
        else:
            running[self._current] = self._outer
        if who is not None:
            for run in who.runs:
                run.scheduled = False
        if who is None or who.changes != forwards.changes:
            self._dismiss_all()
        forwards._end_forward()


class Who:
    """Whom to tell of a forward."""

    def __init__(self, taking_part: Mapping[ServedRun, Rows], changes: int) -> None:
        self._taking_part = taking_part
        self.changes = changes
        self.runs = list(dict.fromkeys(run if run.group is None else run.group for run in taking_part))

    def is_of(self, taking_part: Mapping[ServedRun, Rows]) -> bool:
        """Say whether it is those who take part now."""
        return taking_part is self._taking_part or list(taking_part) == list(self._taking_part)
