"""Loops over the steps of a run: `tracer.iter[...]`, as `for` and as `with`, and `tracer.all()`.

As `for`, the loop is plain Python: each round first waits until its step begins, and the loop ends when the run does.
As `with`, the body is captured and run once for each step. What a step is, and what asking inside one means, is decided
in `mediator.py` and `interleaver.py`.
"""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from .blocks import capture, skip, skipped, snapshot, write_back
from .errors import OutOfOrderError, UnmetSiteWarning
from .mediator import Loop, Mediator

#: Which steps: one, a range of them (open at the end: until the run ends), or some in rising order.
Selection = int | slice | Iterable[int]


class Steps:
    """What `tracer.iter` gives: index it with the steps to walk."""

    def __init__(self, mediator: Callable[[], Mediator]) -> None:
        self._mediator = mediator

    def __getitem__(self, selection: Selection) -> StepLoop:
        return StepLoop(self._mediator, selection)

    def __iter__(self) -> Iterator[int]:
        return iter(self[:])

    def __repr__(self) -> str:
        return "iter[...]: index it with a step, a slice or a list of steps"


class StepLoop:
    """A loop over chosen steps of a run.

    As `for`, it gives each step's number. As `with`, the block is run once for every step and `as` binds the number.
    A loop without end stops when the run does; one that names more steps than there are warns once and stops there.
    """

    def __init__(self, mediator: Callable[[], Mediator], selection: Selection) -> None:
        self._mediator = mediator
        self._selection = selection
        self._bounded = not (isinstance(selection, slice) and selection.stop is None)
        _check(selection)
        self._until: float = 0
        if isinstance(selection, slice) and selection.step in (None, 1):
            self._until = math.inf if selection.stop is None else selection.stop

    @property
    def bounded(self) -> bool:
        """Whether it names how many steps there are."""
        return self._bounded

    def rest(self, step: int) -> StepLoop:
        """Return the loop over those of its steps that are not before `step`."""
        chosen = self._selection
        if isinstance(chosen, slice):
            return StepLoop(self._mediator, slice(step, chosen.stop, chosen.step))
        return StepLoop(self._mediator, [one for one in _numbers(chosen) if one >= step])

    def __iter__(self) -> Iterator[int]:
        return self._rounds(stacklevel=3)

    def _rounds(self, stacklevel: int) -> Iterator[int]:
        mediator = self._mediator()
        mediator.loops_used = True
        outer_loop, outer_step = mediator.loop, mediator.step
        mediator.loop = Loop(self._until)
        try:
            entering = True
            for step in _numbers(self._selection):
                if step < mediator.rounds_done:
                    continue
                run = mediator.run
                if run.stepping and not run.over and step < run.step:
                    raise OutOfOrderError(
                        f"Step {step} has been passed already: the run is in step {run.step}. Walk steps in rising "
                        "order, and put this loop before what waits for later ones."
                    )
                reached = mediator.reach_step(step, entering)
                if reached and step < mediator.rounds_done:
                    continue
                if not reached:
                    if self._bounded:
                        self._warn(mediator, max(step, mediator.rounds_done), stacklevel)
                    return
                mediator.step = step
                entering = False
                yield step
        finally:
            mediator.loop, mediator.step, mediator.rounds_done = outer_loop, outer_step, 0
            mediator.here = None  # what was served in the loop is another visit outside of it

    def _warn(self, mediator: Mediator, step: int, stacklevel: int) -> None:
        run = mediator.run
        count = run.step + 1 if run.stepping or run.step_place is not None else _visits(mediator)
        warnings.warn(
            f"A loop over steps asked for step {step}, which was not reached: this run had {count} "
            f"step{'' if count == 1 else 's'}. The loop ended there.",
            UnmetSiteWarning,
            stacklevel=stacklevel,
        )

    # -- as `with` ---------------------------------------------------------------------------------------------------

    def __enter__(self) -> None:
        frame = sys._getframe(1)
        self._body = capture(frame)
        self._frame = frame
        skip(frame)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> bool:
        frame, body = self._frame, self._body
        del self._frame, self._body
        if not skipped(error):
            return False
        names = body.names()
        try:
            for step in self._rounds(stacklevel=4):
                names.outer = snapshot(frame, body.reads)
                body.assign(names, step)
                try:
                    body.run(names)
                finally:
                    write_back(frame, names)
        finally:
            del frame
        return True


def _visits(mediator: Mediator) -> int:
    first = mediator.loop.first if mediator.loop is not None else None
    return mediator.run.entered.get(first, 0) if first is not None else 1


def _check(selection: Any) -> None:
    if isinstance(selection, bool) or not isinstance(selection, (int, slice, Iterable)):
        raise TypeError(f"steps are chosen by a number, a slice or a list of numbers, not by {selection!r}")
    if isinstance(selection, int):
        numbers: list[Any] = [selection]
    elif isinstance(selection, slice):
        numbers = [n for n in (selection.start, selection.stop, selection.step) if n is not None]
        if selection.step is not None and selection.step <= 0:
            raise ValueError(f"steps go forward only, so a slice cannot have the stride {selection.step}")
    else:
        return
    if any(not isinstance(n, int) or n < 0 for n in numbers):
        raise ValueError(
            f"steps count from 0, and how many there will be is not known before the run ends: {selection!r} names none"
        )


def _numbers(selection: Selection) -> Iterator[int]:
    if isinstance(selection, int):
        yield selection
    elif isinstance(selection, slice):
        step, stride = selection.start or 0, selection.step or 1
        while selection.stop is None or step < selection.stop:
            yield step
            step += stride
    else:
        numbers = list(selection)
        if any(not isinstance(n, int) or isinstance(n, bool) or n < 0 for n in numbers):
            raise ValueError(f"a list of steps holds numbers from 0 on, not {numbers!r}")
        yield from sorted(set(numbers))
