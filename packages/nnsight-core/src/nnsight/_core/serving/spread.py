"""Forwards of an engine whose model is spread over several processes: bodies see whole values, on every rank.

One idea: every rank runs all bodies. Where a value is shared out among the ranks, it is put together before bodies see it,
and what they made of it is shared out again; how, is the family's statement (`..sharding`). Whatever else ranks must do
together (put a parameter together, call a module by hand) a body asks for, and gives its turn back: it is done when all
ranks have asked. What keeps the ranks in step is `ranks.py`.
"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from ..active import active
from ..batching import Layout, Rows
from ..errors import RanksError
from ..here import Here
from ..mediator import Mediator
from ..sharding import Sharding
from ..sites import OUTPUT, Place
from ..structures import leaves
from .draws import draw_apart
from .forwards import Forwards
from .lent import Lent
from .mediator import ServedMediator
from .ranks import Agreement, Peers

if TYPE_CHECKING:
    from ..tree import Node
    from .request import ServedRun

T = TypeVar("T")


class Asked:
    """Something that a body wants all ranks to do together."""

    def __init__(self, doing: str, what: Callable[[], Any]) -> None:
        self.doing = doing
        self.what = what
        self.value: Any = None
        self.error: BaseException | None = None


class Gathered(Lent):
    """Where an engine stands, with a whole value that was put together."""

    __slots__ = ("entire", "given", "part")

    def __init__(self, place: Place, stage: str, whole: Any, part: Any, visit: int, layout: Layout | None) -> None:
        super().__init__(place, stage, whole, visit, layout)
        self.entire = whole
        self.part = part
        #: What each request gave the model here, by its rows.
        self.given: dict[Rows, list[torch.Tensor]] = {}

    def join(self) -> None:
        """Make `value` what the requests have made of it, and note what that is."""
        skipped = {rows: value for rows, value in (self.skipped or {}).items() if rows is not None}
        for rows in {*self.pieces, *self.edited, *skipped}:
            edited = self.views[rows] if rows in self.edited else None
            self.given[rows] = leaves((self.pieces.get(rows, edited), skipped.get(rows)))
        super().join()


class SpreadForwards(Forwards):
    """The forwards of an engine, on one of its ranks.

    Args:
        root, turn_seconds: see `Forwards`.
        sharding: how values lie on the ranks.
        peers: how the ranks talk to one another.
    """

    # What ranks put together is asked for by each request.
    serves_together = False

    def __init__(self, root: Node, turn_seconds: float, sharding: Sharding, peers: Peers) -> None:
        super().__init__(root, turn_seconds)
        self.sharding = sharding
        self.agreement = Agreement(peers)
        self._asking: list[ServedMediator] = []
        #: Where the words of bodies go: those of all ranks are the same, so only one rank's are heard.
        self._silence: Any = open(os.devnull, "w") if peers.rank else None  # noqa: SIM115  # as long as the process

    def admit(self, run: ServedRun) -> None:
        """Let a run take part from the next forward on."""
        super().admit(run)
        self.agreement.admit(run)

    def let_go(self, run: ServedRun) -> None:
        """Forget a run that is over."""
        super().let_go(run)
        self.agreement.forget(run)

    # -- turns -------------------------------------------------------------------------------------------------------

    def give_turn(self, mediator: ServedMediator, switch: Callable[[], Any]) -> bool:
        """Let a body have its turn, and say whether it gave it back in time."""
        agreement, give = self.agreement, functools.partial(super().give_turn, mediator, switch)
        agreement.due[mediator.run] = None
        seed = agreement.seed(mediator.run, mediator.order)
        if self._silence is None:
            return bool(draw_apart(mediator, seed, give))
        heard = sys.stdout, sys.stderr
        sys.stdout = sys.stderr = self._silence
        try:
            return bool(draw_apart(mediator, seed, give))
        finally:
            sys.stdout, sys.stderr = heard

    def settle(self) -> None:
        """Resume bodies that waited for one another or for all ranks, until none can go on."""
        while True:
            super().settle()
            here = self.here
            if isinstance(here, Lent):
                for run in list(self.agreement.due):
                    if run.scheduled:
                        self._carry_back(run, here)  # which may be the end of it, and that has to be known
            self.agreement.reach()
            if not self._asking:
                return
            asking, self._asking = self._asking, []
            for mediator in asking:
                if not mediator.run.wants_no_more:
                    self._answer(mediator)

    def together(self, doing: str, what: Callable[[], T]) -> T:
        """Let all ranks do something at once, and return what it gives here; called in a body's turn, or outside of all.

        Args:
            doing: what it is, as a sentence about a body goes on.
            what: does it; it may be collective.
        """
        mediator = _asking_one(self)
        if mediator is None:
            return what()
        asked = mediator.asked = Asked(doing, what)
        self._asking.append(mediator)
        mediator.park()
        mediator.asked = None
        if asked.error is not None:
            raise asked.error
        value: T = asked.value
        return value

    def _answer(self, mediator: ServedMediator) -> None:
        asked = mediator.asked
        assert asked is not None, "whoever is among those that ask has asked for something"
        with self.aside():
            try:
                asked.value = asked.what()
            except Exception as error:  # the body's, as if it had done so by itself
                asked.error = error
        mediator.resume()

    # -- places ------------------------------------------------------------------------------------------------------

    def _stand(self, place: Place, stage: str, value: Any, visit: int, several: bool) -> Lent:
        try:
            whole = self.sharding.gather(place.path, stage, value)
        except RanksError as error:
            refused = Gathered(place, stage, value, value, visit, self.layout)
            refused.refusal = str(error)
            for watcher in self.watchers.get(place, ()):
                watcher.refuse(error)  # type: ignore[attr-defined]  # those who watch here are of requests
            return refused
        return Gathered(place, stage, whole, value, visit, self.layout)

    def _arrive(
        self, queue: dict[Place, list[Mediator]], place: Place, stage: str, value: Any, visit: int
    ) -> Here | None:
        here = super()._arrive(queue, place, stage, value, visit)
        if isinstance(here, Gathered):
            if here.given:
                for run in self.runs:
                    if run.scheduled and run.rows in here.given:
                        self.agreement.gave(run, here.given[run.rows])
            if here.skipped:
                # Those who parted are over, and where one of them skipped, the others did not.
                left = {run.rows for run in self.runs if run.scheduled and run.failure is None}
                here.skipped = {rows: value for rows, value in here.skipped.items() if rows in left} or None
            self._share_out(here)
        return here

    def _share_out(self, here: Gathered) -> None:
        path, stage, whole, part = here.place.path, here.stage, here.entire, here.part
        if whole is part:
            return
        if here.edited:
            # In place, as it was edited: the model may have what lies here by another name.
            for mine, new in zip(leaves(part), leaves(self.sharding.split(path, stage, whole, part))):
                if mine is not new:
                    mine.copy_(new)
        here.value = part if here.value is whole else self.sharding.split(path, stage, here.value, part)

    def _skip(
        self,
        place: Place,
        visit: int,
        skipped: dict[Any, Any],
        call: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        part = call(*args, **kwargs)
        skipping = [run for run in self.runs if run.scheduled and run.rows in skipped]
        try:
            whole = self.sharding.gather(place.path, OUTPUT, part)
        except RanksError as error:
            for run in skipping:
                run.fail(error)
            return part
        value = super()._skip(place, visit, skipped, lambda: whole, (), {})
        self.agreement.due.update(dict.fromkeys(skipping))
        self.agreement.reach()
        return part if value is whole else self.sharding.split(place.path, OUTPUT, value, part)

    def _end_forward(self) -> None:
        self.agreement.reach_values()
        super()._end_forward()


def _asking_one(forwards: SpreadForwards) -> ServedMediator | None:
    for member in reversed(active.get()):
        if isinstance(member, ServedMediator) and member.run.forwards is forwards:
            return member
    return None
