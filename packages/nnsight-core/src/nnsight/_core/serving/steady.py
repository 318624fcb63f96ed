"""Forwards that are like the one before: the same requests, with the same rows, whose bodies do the same in each.

One idea: an engine takes thousands of steps, and most are alike. Where every body waits for the next round of a loop that
can be done for it (`rounds.py`), nothing is left to be found out: who stands where, who is lent what, and who has nothing to
say is known before the forward begins. As soon as anything changes (a request comes, ends or fails, a loop comes to its last
round) the forward that follows is one like any other, and knows nothing of this.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..batching import Layout, Rows
from ..interleaver import RESULT
from ..sites import OUTPUT, Place
from ..taps import running
from ..turns import getcurrent
from .loan import Loan
from .oneforward import Surrounding
from .shortest import shortest

if TYPE_CHECKING:
    from .forwards import Forwards
    from .mediator import ServedMediator
    from .request import ServedRun

#: After how many forwards it is worth while to take off the taps that nobody waits for.
_SOME = 4


class Steady(Surrounding):
    """What is done in each of some forwards.

    Each line here is one that every step of an engine goes through, with all that it touches gone from the processor's
    cache: a call more takes about a microsecond.

    Args:
        forwards: the engine's.
        taking_part, layout: as for `Forwards.forward`.
        bodies: the runs that are told of a forward, and the body of each.
        until: how many of these forwards there may be: then a loop comes to its last round.
    """

    __slots__ = ("_at", "_bodies", "_gone_by", "_usual", "changes", "left", "met")

    def __init__(
        self,
        forwards: Forwards,
        taking_part: Mapping[ServedRun, Rows],
        layout: Layout,
        bodies: list[tuple[ServedRun, ServedMediator]],
        until: float,
    ) -> None:
        super().__init__(forwards, taking_part, layout)
        #: What `Forwards.changes` has to be.
        self.changes = forwards.changes
        self._bodies = bodies
        #: How many of them there may be yet, and how many have been.
        self.left = until
        self._gone_by = 0
        #: To how many of the places the model came in this one.
        self.met = 0
        #: Who waits at which place, and what is lent there. Each body waits at one.
        self._at: dict[Place, list[tuple[ServedRun, ServedMediator, Loan]]] = {}
        #: Where something lies that is lent the usual way.
        self._usual: set[Place] = set()
        for run, mediator in bodies:
            run.lie_in(taking_part)
            rounds = mediator.rounds
            assert rounds is not None
            place = _first(mediator)
            loan = Loan(mediator.rows, rounds, layout, place.path)
            self._at.setdefault(place, []).append((run, mediator, loan))

    def __enter__(self) -> None:
        forwards = self._forwards
        current = self._current = forwards.model = getcurrent()
        self._outer = running.get(current)
        running[current] = forwards
        self.over = False
        self.left -= 1
        self.met = 0
        self._gone_by += 1
        if self._gone_by == _SOME:
            forwards.rigging.narrow(self._at)
        forwards.layout = self._layout
        for run, _ in self._bodies:
            run.model = current
            run.step += 1
            run.scheduled = True
        for place in self._at:
            forwards.at_output[place] = []

    def leave(self, place: Place, value: Any, visit: int) -> Any:
        """Come out of a place where bodies wait: their rounds are done. It stands for `Forwards.leave` meanwhile."""
        bodies = self._at.get(place)
        if bodies is None:  # of a body that is not in its loop any more
            return self._forwards.leave_in_full(place, value, visit)
        del self._forwards.at_output[place]  # a loop asks for the first visit in each step
        self.met += 1
        lent: list[Any] = []
        if place not in self._usual:
            for _, _, loan in bodies:
                given = loan.lend(value)
                if given is None:
                    self._usual.add(place)
                    break
                lent.append(given)
        if place in self._usual:
            value = self._leave_the_usual_way(place, value)
        else:
            for (run, mediator, loan), given in zip(bodies, lent):
                mediator.do_round(given)
                if mediator.raised is not None:
                    self.let_raise(mediator)
                if loan.take_back():
                    run.wrote = True
        if self.met == len(self._at) and self.changes == self._forwards.changes:
            self.finish()  # before the engine says so: then it need not
            if self._gone_by == 1:
                self._shorten(place, bodies)
        return value

    def _shorten(self, place: Place, bodies: list[tuple[ServedRun, ServedMediator, Loan]]) -> None:
        """Take a shorter way from now on, if there is one."""
        if len(self._bodies) == 1 and place not in self._usual:
            ((_, mediator, loan),) = bodies
            way = shortest(self._forwards, self, place, mediator, loan)
            if way is not None:
                self._forwards.leave = way  # type: ignore[method-assign, assignment]  # as `Forwards.forward` does

    def _leave_the_usual_way(self, place: Place, value: Any) -> Any:
        forwards, bodies = self._forwards, self._at[place]
        here = forwards.here = forwards._stand(place, OUTPUT, value, 0, len(bodies) > 1)
        for _, mediator, _ in bodies:
            mediator.do_round_at(here)
            if mediator.raised is not None:
                self.let_raise(mediator)
        for run, _, _ in bodies:
            forwards._carry_back(run, here)
        forwards._join(here)
        forwards.here = None
        return here.value

    def let_raise(self, mediator: ServedMediator) -> None:
        """Let a body raise what its round has raised."""
        self._forwards.thread.read()
        mediator.begin_round()
        self._forwards.settle()

    def __exit__(self, *error: object) -> None:
        if self.over:
            return
        forwards = self._forwards
        if self.met < len(self._at):
            for place in self._at:
                forwards.at_output.pop(place, None)
            self._let_begin()
        self.finish()
        if self.changes != forwards.changes:
            self._dismiss_all()
            forwards.rest_if_idle()

    def finish(self) -> None:
        """End it: all is done that anybody wants of it."""
        forwards = self._forwards
        if self._outer is None:
            del running[self._current]
        else:
            running[self._current] = self._outer
        for run, _ in self._bodies:
            run.scheduled = False
        forwards.here = forwards.layout = None
        forwards.count += 1
        self.over = True

    def _let_begin(self) -> None:
        """Let those begin their round whom the model did not come to: they see for themselves what is to be had."""
        forwards = self._forwards
        forwards.leave_as_usual()
        forwards.entered.clear()  # nothing was counted
        forwards.left.clear()
        forwards.thread.read()
        self.left = 0
        for run, mediator in self._bodies:
            if mediator in run.step_waiters and mediator.step is not None and mediator.step <= run.step:
                mediator.begin_round()
        forwards.settle()


def steady(
    forwards: Forwards, taking_part: Mapping[ServedRun, Rows], layout: Layout, told: list[ServedRun]
) -> Steady | None:
    """Return the forwards that begin with the next one, if what every body does there is the round of a loop.

    Args:
        forwards: the engine's.
        taking_part, layout: as for `Forwards.forward`.
        told: the runs that are told of it: of those in groups their groups.
    """
    if forwards.newcomers or not forwards.tapped or forwards.learning or forwards.parts or forwards.graphs:
        return None
    if forwards.watchers or forwards.parked or forwards.ahead or not forwards.serves_together or forwards.at_input:
        return None
    if any(place is not RESULT for place in forwards.at_output):
        return None
    bodies, until = [], float("inf")
    for run in told:
        mediator = run.in_rounds(taking_part)
        if mediator is None or mediator.loop is None:
            return None
        place = _first(mediator)
        if place not in forwards.exact or place in forwards.late or place.owner is not place:
            return None
        until = min(until, mediator.loop.until - 1 - run.step - 1)
        bodies.append((run, mediator))
    return Steady(forwards, taking_part, layout, bodies, until)


def _first(mediator: ServedMediator) -> Place:
    rounds = mediator.rounds
    assert rounds is not None and rounds.first is not None
    return rounds.first[0]
