"""A run of a model that is spread over several processes: bodies see whole values, and all ranks are kept in step.

One idea: whatever a rank's bodies do next (wait for a site, end, raise) is compared with the other ranks *before* the model
goes on, while it stands at the same site everywhere. So when it comes to a site where anybody waits, everybody does, and
the value can be put together there. How that is done is the family's statement (`sharding.py`).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from . import ending
from .batching import Layout
from .errors import RanksError
from .here import Here, Mark, changed, mark
from .interleaver import Interleaver, Watcher
from .lockstep import Lockstep, Print, fingerprint
from .mediator import BodyMediator, EarlyStop, InlineMediator, Mediator
from .rigging import Rigging
from .sharding import Sharding
from .sites import OUTPUT, Place, site_name
from .structures import leaves

_here = str(Path(__file__).parent)


class Ranks:
    """What this rank tells the others in one run, and the backward passes inside it.

    Attributes:
        parted: set once the ranks have parted; nothing is told after that.
    """

    def __init__(self, lockstep: Lockstep) -> None:
        self.lockstep = lockstep
        self.parted: RanksError | None = None

    def meet(self, doing: str, values: Iterable[torch.Tensor] = ()) -> None:
        """Compare with the others; see `Lockstep.meet`."""
        if self.parted is not None:
            raise self.parted
        prints: list[Print] = [fingerprint(tensor) for tensor in values]
        try:
            self.lockstep.meet(doing, _where(), prints)
        except RanksError as parted:
            self.parted = parted
            raise

    def agree(self, mediator: Mediator) -> None:
        """Compare what a body waits for, and what it has written where the model stands."""
        if not mediator.done:
            self.meet(_waits(mediator), mediator.run.written())

    def ended(self, mediator: Mediator, error: BaseException | None) -> None:
        """Compare that a body is over; if it raised, tell the others and do not wait for them."""
        whose = _whose(mediator) or "its block"
        if error is None:
            self.meet(f"has come to the end of {whose}", mediator.run.written())
        elif isinstance(error, EarlyStop):
            self.meet("stops the run", mediator.run.written())
        elif self.parted is None:
            text = f"{type(error).__name__}: {error}"
            self.lockstep.part(f"raised {text if len(text) < 300 else text[:300] + '...'} in {whose}", _where())
            self.parted = RanksError(f"This rank has left the run: it raised {text}")


class ShardedRun(Interleaver):
    """One run of such a model.

    Args:
        call, rigging, layout, step_place: see `Interleaver`.
        sharding: how its values lie.
        given: what the model is called with.
    """

    _shown: Any = None

    def __init__(
        self,
        call: Callable[[], Any],
        rigging: Rigging,
        layout: Layout | None,
        step_place: Place | None,
        sharding: Sharding,
        given: Any,
    ) -> None:
        super().__init__(call, rigging, layout, step_place)
        self.sharding = sharding
        lockstep = sharding.lockstep
        if not isinstance(lockstep, Lockstep):
            raise RanksError(
                f"`{rigging.path}` is a model that an engine calls, spread over several processes. It cannot be traced in "
                "the middle of that: open traces of it where its engine was started."
            )
        self.ranks = Ranks(lockstep)
        self.before_turn = self.ranks.agree
        lockstep.begin()
        self.ranks.meet(f"opens a run of `{rigging.path}`", leaves(given))

    def ended(self, mediator: Mediator, error: BaseException | None) -> None:
        """See `Interleaver.ended`."""
        assert self.ranks is not None
        try:
            self.ranks.ended(mediator, error)
        except RanksError:
            if isinstance(mediator, InlineMediator):
                ending.close(self)
            raise

    def watch(self, places: Iterable[Place], stages: Collection[str], watcher: Watcher) -> None:
        """Let a watcher see every visit of these places, on all ranks."""
        assert self.ranks is not None
        places = list(places)
        self.ranks.meet(
            f"makes a cache of {len(places)} modules ({', '.join(place.path for place in places[:3])}, ...)"
        )
        super().watch(places, stages, watcher)

    def written(self) -> list[torch.Tensor]:
        """Return what bodies have made of the value where the model stands, if they have."""
        here = self.here
        if here is None or self._shown is None:
            return []
        found = leaves(here.value) if self._is_changed(here.value) else []
        if here.rough:
            found += leaves(list(here.pieces.values()))
        return found + leaves(list((here.skipped or {}).values()))

    leave = Interleaver.leave_in_full

    def _arrive(
        self, queue: dict[Place, list[Mediator]], place: Place, stage: str, value: Any, visit: int
    ) -> Here | None:
        if place not in self.watchers and not any(mediator.due(visit) for mediator in queue[place]):
            return None
        whole = self.sharding.gather(place.path, stage, value)
        self._show(whole)
        here = super()._arrive(queue, place, stage, whole, visit)
        if here is not None and whole is not value:
            grown = any(tensor.requires_grad for tensor in leaves(here.value))
            if grown or self._is_changed(here.value):
                here.value = self.sharding.split(place.path, stage, here.value, value)
            else:
                here.value = value
        self._shown = None
        return here

    def _skip(
        self,
        place: Place,
        visit: int,
        skipped: dict[Any, Any],
        call: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        def whole_call(*args: Any, **kwargs: Any) -> Any:
            return self.sharding.gather(place.path, OUTPUT, call(*args, **kwargs))

        whole = super()._skip(place, visit, skipped, whole_call, args, kwargs)
        return self.sharding.split(place.path, OUTPUT, whole, None)

    def _show(self, whole: Any) -> None:
        marks: list[tuple[torch.Tensor, Mark]] = [(tensor, mark(tensor)) for tensor in leaves(whole)]
        self._shown = (whole, marks)

    def _is_changed(self, value: Any) -> bool:
        whole, marks = self._shown
        return value is not whole or any(changed(tensor, before) for tensor, before in marks)


def _waits(mediator: Mediator) -> str:
    run, place = mediator.run, mediator.place
    if mediator in run.step_waiters:
        return f"waits for step {mediator.step}"
    if mediator.ready is not None:
        return f"waits in {_whose(mediator)} for another invoke"
    assert place is not None, "whoever parks waits for a site, a step or another body"
    step = f" of step {mediator.step}" if mediator.step is not None else ""
    whose = _whose(mediator)
    return f"waits for {site_name(place.path, mediator.stage)}{step}" + (f" in {whose}" if whose else "")


def _whose(mediator: Mediator) -> str:
    """Return whose body it is, among several; without a number that may be another one in each process."""
    if isinstance(mediator, BodyMediator) and mediator.tree is not None:
        return "an edit"
    return mediator.name if mediator.rows is not None or mediator.order else ""


def _where() -> str:
    """Return the line of the user's code that is running."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_code.co_filename.startswith(_here):
        frame = frame.f_back
    return "" if frame is None else f"{Path(frame.f_code.co_filename).name}, line {frame.f_lineno}"
