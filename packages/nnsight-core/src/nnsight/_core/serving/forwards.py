"""`Forwards`: the model's side of an engine, which many runs share.

One idea: an engine stands at a place once for all requests of a batch, so who waits where, and what was passed in the
forward that is on, is kept once, here; what a request has behind it is its own (`request.py`). Whatever goes wrong in a body
is the end of its own run: the model goes on, and so do the others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from ..backward import close_grads, open_grads
from ..batching import Layout, Rows
from ..errors import NNsightError
from ..here import Here
from ..interleaver import Interleaver
from ..mediator import Mediator
from ..sites import INPUT, OUTPUT, Place
from ..taps import running
from ..turns import getcurrent
from .graphs import Graphs
from .group import form_groups
from .joint import Check
from .lent import Lent
from .oneforward import OneForward, Surrounding, Who
from .parts import Parts
from .steady import Steady, steady
from .watch import Watch

if TYPE_CHECKING:
    from ..tree import Node
    from .mediator import ServedMediator
    from .request import ServedRun


#: As bodies ask for them: by identity.
_STAGES = {stage: stage for stage in (INPUT, OUTPUT)}


class Forwards(Interleaver):
    """The forwards of an engine, and the runs that take part in them.

    Args:
        root: the model that the engine calls.
        turn_seconds: how long one turn of a body may take; 0 for as long as it likes.
    """

    #: Whether requests whose bodies are alike may be served together.
    serves_together = True
    # Steps are the runs', each with its own count.
    steps_over = True
    #: Looks at whole numbers that bodies have changed: they say where kernels read.
    check_numbers: Check = staticmethod(lambda place, old, new: None)
    #: What of the model is compiled, if anything is.
    graphs: Graphs | None = None

    def __init__(self, root: Node, turn_seconds: float = 0) -> None:
        super().__init__(_never, root._rig())
        self.runs: list[ServedRun] = []
        #: Whether some have been admitted since groups were formed last.
        self.newcomers = False
        #: Counts what may change who takes part: runs that come, go, rest, are dismissed, or leave a group.
        self.changes = 0
        self._who: Who | None = None
        #: Where the model is in parts: this one, among all.
        self.parts: Parts | None = None
        self.watch_turns = Watch(turn_seconds)
        #: Bodies whose step has begun, but which need not hear of it before they are served; see `let_wait`.
        self.ahead: list[ServedMediator] = []
        #: How many forwards there were, and in which of them each place was entered last, but for the one that is on.
        self.count = 0
        self.last: dict[Place, int] = {}
        #: What is done in each forward while nothing changes.
        self._steady: Steady | None = None

    @staticmethod
    def current() -> Forwards | None:
        """Return the forwards of which one is on here."""
        found = running.get(getcurrent())
        return found if isinstance(found, Forwards) else None

    def admit(self, run: ServedRun) -> None:
        """Let a run take part from the next forward on."""
        if not self.runs:
            open_grads()
        self.runs.append(run)
        self.newcomers = True
        self.changes += 1

    def _tap_again(self) -> None:
        self.rigging.follow()
        self.tap()

    def forward(self, taking_part: Mapping[ServedRun, Rows], layout: Layout, even: bool = False) -> Surrounding:
        """Surround one forward of the engine, from the model's call to the tokens that are drawn.

        Args:
            taking_part: the runs whose rows are in it, and where they lie; the same object where nothing has changed.
            layout: how rows lie in its values; `lay_out` says another while it is on.
            even: whether they lie so in all of its values, and `lay_out` says nothing else.

        Returns:
            What surrounds it. Once that is `over`, all is done that anybody wants of it, and leaving it does nothing.
        """
        found = self._steady
        if found is not None:
            if found.taking_part is taking_part and found.changes == self.changes and found.left > 0:
                return found
            self._end_steady()
        if even:
            found = self._steady = steady(self, taking_part, layout, self._sorted(taking_part).runs)
            if found is not None:
                self.leave = found.leave  # type: ignore[method-assign]  # on the way of every step
                return found
        return OneForward(self, taking_part, layout)

    def _end_steady(self) -> None:
        """Forget what was known of forwards that are alike, and what was lent there."""
        if self._steady is not None:
            self.rigging.widen()
            self._steady = None
            self.leave_as_usual()

    def leave_as_usual(self) -> None:
        """Ask those who wait, and not what is known of forwards that are alike, where places are come out of."""
        vars(self).pop("leave", None)

    def _begin_forward(self, taking_part: Mapping[ServedRun, Rows], layout: Layout) -> None:
        if not self.tapped:
            self._tap_again()
        self.entered.clear()
        self.left.clear()
        self.layout = layout
        self.thread.read()
        self.rigging.widen()
        if self.newcomers and self.serves_together and self.parts is None:
            form_groups(self, taking_part)
            self.newcomers = False

    def _end_forward(self) -> None:
        if self.learning:
            self.learning = False
            self.rigging.learn(self.method)
            self.entered = dict(self.entered)
        for place in self.entered:
            self.last[place] = self.count
        self.count += 1
        self.here = self.layout = None
        self.rest_if_idle()

    def rest_if_idle(self) -> None:
        """Take the taps off if nobody wants anything of later forwards."""
        if all(run.idle for run in self.runs):
            self.untap()

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Surround calls of the model within a forward that are the engine's own affair: nobody sees them."""
        current = getcurrent()
        mine = running.pop(current, None)
        try:
            yield
        finally:
            if mine is not None:
                running[current] = mine

    def lay_out(self, taking_part: Mapping[ServedRun, Rows], layout: Layout) -> None:
        """Say how rows lie from here on: one for each request, say, where they were one for each token."""
        self.layout = layout
        for run in self._sorted(taking_part).runs:
            run.lie_in(taking_part)

    def narrow(self, told: Iterable[ServedRun]) -> None:
        """Let taps rest that nobody will wait at, if it is known what all who are told of this forward ask for.

        It holds until the next forward of which that is not known.
        """
        if self.watchers or self.parked or self.learning or self.parts or self.graphs or not self.serves_together:
            return
        places = set()
        for run in told:
            place = run.only_place()
            if place is None:
                return
            places.add(place)
        self.rigging.narrow(places)

    def let_wait(self, mediator: ServedMediator) -> bool:
        """Let a body whose step begins wait on, for what it is known to ask for first in each; say whether that can be.

        A turn less, which nobody can tell: what a body does before it asks is seen by itself alone.
        """
        rounds = mediator.rounds
        if rounds is None or rounds.first is None or self.parts is not None or not self.serves_together:
            return False
        place, stage = rounds.first
        if place not in self.exact or place.owner is not place:
            return False
        mediator.place, mediator.stage, mediator.ahead = place, stage, True
        (self.at_output if stage is OUTPUT else self.at_input).setdefault(place, []).append(mediator)
        self.ahead.append(mediator)
        return True

    def _catch_up(self) -> None:
        """Let those begin their step for whom the model did not come to where that begins."""
        waiting, self.ahead = [mediator for mediator in self.ahead if mediator.ahead], []
        for mediator in waiting:
            if mediator.ahead:  # those before it may have ended it
                mediator.ahead = False
                queue = self.at_output if mediator.stage is OUTPUT else self.at_input
                place = mediator.place
                assert place is not None
                queue[place].remove(mediator)
                if not queue[place] and place not in self.watchers:
                    del queue[place]
                mediator.resume()
        if waiting:
            self.settle()

    def _sorted(self, taking_part: Mapping[ServedRun, Rows]) -> Who:
        """Return whom to tell of a forward: these, but for those that are in groups their groups."""
        who = self._who
        if who is None or who.changes != self.changes or not who.is_of(taking_part):
            self._who = who = Who(taking_part, self.changes)
        return who

    # -- compiled graphs ---------------------------------------------------------------------------------------------

    def compiled(
        self, inside: Iterable[torch.nn.Module], sites: Sequence[tuple[torch.nn.Module, str]]
    ) -> list[tuple[str, str]]:
        """Hear that parts of the model are compiled, and at which sites the graphs end; see `graphs.py`.

        Args:
            inside: all modules that are compiled; no wrapper is put on these.
            sites: some of them, with `"input"` or `"output"`. Their numbers are what `pass_site` takes.

        Returns:
            The path and the stage of each site.
        """
        places = {tap.module: tap for tap in self.rigging.close(inside)}
        self.graphs = Graphs(places.values(), [(places[module], _STAGES[stage]) for module, stage in sites])
        return [(place.path, stage) for place, stage in self.graphs.sites]

    def pass_site(self, number: int, value: Any) -> Any:
        """Stand where a compiled graph ends, and return what the bodies made of the value.

        Args:
            number: of the site; see `compiled`.
            value: what lies there; `(args, kwargs)` for an input.
        """
        assert self.graphs is not None
        place, stage = self.graphs.sites[number]
        queue, counts = (self.at_input, self.entered) if stage is INPUT else (self.at_output, self.left)
        visit = counts.get(place, 0)
        self.entered[place] = visit + 1
        here = self._arrive(queue, place, stage, value, visit) if place in queue else None
        counts[place] = visit + 1
        return value if here is None else here.value

    leave = Interleaver.leave_in_full

    def _arrive(
        self, queue: dict[Place, list[Mediator]], place: Place, stage: str, value: Any, visit: int
    ) -> Here | None:
        waiting, watchers = queue[place], self.watchers.get(place, ())
        if len(waiting) == 1:
            due = waiting if waiting[0].due(visit) else []
        else:
            due = [mediator for mediator in waiting if mediator.due(visit)]
        if not due and not watchers:
            return None
        here = self.here = self._stand(place, stage, value, visit, len(due) > 1)
        if due:
            # Whoever is served may wait here again, so the list is out of the way before.
            left = [mediator for mediator in waiting if mediator not in due] if len(due) < len(waiting) else []
            if left or watchers:
                queue[place] = left
            else:
                del queue[place]
            for mediator in due:
                mediator.serve(here)
            self.settle()
            for run in self._served_at(here, due):
                self._carry_back(run, here)
            self._join(here)
        for watcher in watchers:
            watcher.see(place, stage, here.value, self.layout)
        self.here = None
        return here

    def _served_at(self, here: Lent, due: list[Mediator]) -> set[ServedRun]:
        """Return the runs whose bodies stood here: those that waited for it, and those that another let go on meanwhile."""
        served: set[ServedRun] = {mediator.run for mediator in due}  # type: ignore[misc]  # bodies of such runs only wait here
        others = (here.views.keys() | here.pieces.keys()).difference(run.rows for run in served)
        if others:
            served.update(run for run in self.runs if run.scheduled and run.rows in others)
        return served

    def _stand(self, place: Place, stage: str, value: Any, visit: int, several: bool) -> Lent:
        return Lent(place, stage, value, visit, self.layout, several)

    def _carry_back(self, run: ServedRun, here: Lent) -> None:
        try:
            here.carry_back(run.rows, self.check_numbers)
        except Exception as error:  # whatever a body did to its values is its own business
            run.fail(error)
        if here.changed and not run.wrote:
            run.wrote = True

    def _join(self, here: Lent) -> None:
        try:
            here.join()
        except Exception as error:  # no memory is left to put together what they wrote: the engine goes on as it was
            for run in self.runs:
                if run.scheduled and run.rows in here.pieces:
                    run.fail(error)

    def _skip(
        self,
        place: Place,
        visit: int,
        skipped: dict[Any, Any],
        call: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        # What a module keeps for later steps (keys and values), it keeps of all: else a later step would read there what
        # others have left. So it runs, and those who skip it get their own value.
        value = call(*args, **kwargs)
        here = Lent(place, OUTPUT, value, visit, self.layout)
        for run in self.runs:
            if run.scheduled and run.rows in skipped:
                try:
                    here.write(run.rows, skipped[run.rows])
                except Exception as error:
                    run.fail(error)
                else:
                    self._carry_back(run, here)
        self._join(here)
        return here.value

    def check_holder(self, place: Place) -> None:
        """Let it be if a place turns out to be called from elsewhere: those who came late for it are told at their end."""
        self.late = self.late.difference((place,))

    def give_turn(self, mediator: ServedMediator, switch: Callable[[], Any]) -> bool:
        """Let a body have its turn, and say whether it gave it back in time."""
        return self.watch_turns.turn(switch)

    # -- leaving -----------------------------------------------------------------------------------------------------

    def dismiss_run(self, run: ServedRun) -> None:
        """Let nobody of a run be served any more."""
        self.changes += 1
        for mediator in self.ahead:
            if mediator.run is run:
                mediator.ahead = False
        for queue in (self.at_input, self.at_output):
            for place in [place for place, waiting in queue.items() if any(m.run is run for m in waiting)]:
                left = [mediator for mediator in queue[place] if mediator.run is not run]
                if left or place in self.watchers:
                    queue[place] = left
                else:
                    del queue[place]
        self.parked[:] = [mediator for mediator in self.parked if mediator.run is not run]
        if self.parts is not None:
            self.parts.forget(run)

    def let_go(self, run: ServedRun) -> None:
        """Forget a run that is over. With the last one the taps come off."""
        if self.parts is not None:
            self.parts.forget(run)
        self.changes += 1
        if run not in self.runs:
            return
        self.runs.remove(run)
        self._end_steady()
        self._who = None  # which would hold it, and all that it saved
        if not self.runs:
            close_grads()
            self.untap()
            self.last.clear()


def _never() -> Any:
    raise NNsightError("an engine's forwards are its own to start")
