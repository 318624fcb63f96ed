"""What a block has saved so far, for whoever wants to look at it while the block runs.

The one idea: whatever the block did since the last look is looked at before the model has its turn, which is where the time
goes. Nothing is put on lists or names, so a block that nobody looks at pays nothing. What is made of a look (what is new, how
it travels) is the business of whoever looks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import Any

from .active import active
from .blocks import Names, is_namespace
from .interleaver import Interleaver
from .mediator import Mediator
from .saved import Collector

#: Called with the values, by name.
Look = Callable[[Mapping[str, Any]], None]
#: Gives the names of bodies that run, each with the frame in which they will be bound.
Running = Callable[[], Iterable[tuple[FrameType, Names]]]


class SoFar(Collector):
    """Collects what a block saves, and shows it: at each `save`, before each turn of the model, when a trace ends.

    Args:
        names: those of the block.
        look: called each time.
    """

    def __init__(self, names: Names, look: Look) -> None:
        super().__init__()
        self._names = names
        self._look = look
        self.running: list[Running] = []

    def add(self, value: Any) -> None:
        """Take in a value that is saved; it has no name yet, but what was done before it may have."""
        self.show()
        super().add(value)

    def show(self) -> None:
        """Have it looked at; what the look raises is raised."""
        found = {name: value for name, value in self._names.items() if self.has(value)}
        for running in self.running:
            for frame, names in running():
                if is_namespace(frame, self._names):
                    found.update((name, value) for name, value in names.items() if self.has(value))
        try:
            self._look(found)
        except BaseException:
            self._look = _look_away  # who looks has said what is wrong, once
            raise


def follow(run: Interleaver) -> None:
    """Show what the code that opens a run saves while it lasts, if it is to be shown."""
    shown = _shown()
    if not shown:
        return
    before = run.before_turn

    def show() -> None:
        for so_far in shown:
            so_far.show()

    def before_turn(mediator: Mediator) -> None:
        show()
        if before is not None:
            before(mediator)

    run.show, run.before_turn = show, before_turn


@contextmanager
def including(running: Running) -> Iterator[None]:
    """Show also what bodies have bound whose names are written back when they have ended."""
    shown = _shown()
    for so_far in shown:
        so_far.running.append(running)
    try:
        yield
    finally:
        for so_far in shown:
            so_far.running.remove(running)


def _shown() -> list[SoFar]:
    return [member for member in active.get() if isinstance(member, SoFar)]


def _look_away(values: Mapping[str, Any]) -> None:
    """Look at nothing."""
