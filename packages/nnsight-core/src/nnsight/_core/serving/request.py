"""One request of an engine: its bodies, its steps among the forwards of all, and its end.

What all requests share (who waits where, what was passed in the forward that is on) is the engine's, `forwards.py`; a run
here reads it there. A body that raises, or stops, ends its own run and leaves the model alone.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Iterable, Mapping
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from .. import ending
from ..batching import Layout, Rows
from ..blocks import fold
from ..config import CONFIG
from ..here import Here, narrow
from ..interleaver import RESULT, Interleaver, Watcher
from ..mediator import BodyMediator, Mediator
from ..sites import OUTPUT, Place
from ..trace import is_library
from ..turns import ThreadState, adopt, getcurrent, hop
from .joint import copied
from .mediator import ServedMediator

if TYPE_CHECKING:
    from ..active import Answers
    from .forwards import Forwards
    from .group import GroupRun, Membership
    from .printed import Printed

#: What begins the steps of a run here: nothing that is called; the engine says it.
_STEP = Place("step")


def _of_forwards(name: str) -> Any:
    return property(attrgetter(f"forwards.{name}"))  # in C: bodies ask for these at each site


class ServedRun(Interleaver):
    """One request of an engine.

    Args:
        forwards: the engine's.
        stack: what is active for its bodies besides themselves.
    """

    at_input = _of_forwards("at_input")
    at_output = _of_forwards("at_output")
    entered = _of_forwards("entered")
    left = _of_forwards("left")
    here = _of_forwards("here")
    exact = _of_forwards("exact")
    layout = _of_forwards("layout")
    parked = _of_forwards("parked")
    thread = _of_forwards("thread")
    tapped = True
    no_gradients = (
        "An engine computes without gradients, so nothing can be differentiated through its model. Use `LanguageModel` with "
        "the same checkpoint and the same block. What a block computes itself can be differentiated here, within `with "
        "torch.inference_mode(False), torch.enable_grad():`."
    )

    #: Whether it takes part in the forward that is on, and where its rows lie there.
    scheduled = False
    rows: Rows = (0, 0)
    #: Whether nobody wants anything more of its steps: an engine may leave it out of its forwards.
    idle = False
    #: What its body has in common with others (`alike.py`), and those with which it is at work together (`group.py`).
    membership: Membership | None = None
    group: GroupRun | None = None
    #: Whether its bodies have changed anything that the engine has.
    wrote = False
    #: What the first of its bodies raised that did.
    failure: BaseException | None = None
    #: Takes what its bodies print, if somebody wants to hear it.
    printed: Printed | None = None

    def __init__(self, forwards: Forwards, stack: tuple[Answers, ...] = ()) -> None:
        self.forwards = forwards
        self.rigging = forwards.rigging
        self.step_place = _STEP
        self.step_waiters: list[Mediator] = []
        self.bodies: list[BodyMediator] = []
        self.stack = stack
        self.earlier: Any = _Earlier(self)
        self.joined = forwards.count
        self._watching: list[_Watching] = []

    def add_body(self, body: Callable[[], Any], rows: Rows | None, name: str, order: int) -> ServedMediator:
        """Give the run a body, which begins with its first step. Rows are the request's, whoever asks."""
        mediator = ServedMediator(self, body, self.rows, name, order)
        self.bodies.append(mediator)
        return mediator

    # -- steps -------------------------------------------------------------------------------------------------------

    def lie_at(self, rows: Rows) -> None:
        """Say where its rows lie in the values that follow."""
        self.rows = rows
        for body in self.bodies:
            body.rows = rows

    def begin_in(self, taking_part: Mapping[ServedRun, Rows]) -> None:
        """Take part in a forward, in which rows of these lie so."""
        self.begin_step(taking_part[self])

    def lie_in(self, taking_part: Mapping[ServedRun, Rows]) -> None:
        """Say where rows of those who take part lie in the values that follow."""
        self.lie_at(taking_part[self])

    def begin_step(self, rows: Rows) -> None:
        """Take part in a forward, as the next step of this run."""
        if self.over:
            return
        self.scheduled = True
        self.model = getcurrent()
        self.lie_at(rows)
        if not self.stepping:
            self.stepping = True
            self.joined = self.forwards.count
            self.body_thread = ThreadState()
            for body in list(self.bodies):
                body.begin()
        else:
            self.step += 1
            if len(self.bodies) != 1 or self.bodies[0].again is not None:
                self._begin_edits()
            due = [
                mediator for mediator in self.step_waiters if mediator.step is not None and mediator.step <= self.step
            ]
            if len(due) > 1:
                due.sort(key=lambda m: m.order)
            for mediator in due:
                self.step_waiters.remove(mediator)
                mediator.served = True
                if not (isinstance(mediator, ServedMediator) and self.forwards.let_wait(mediator)):
                    mediator.resume()

    def in_rounds(self, taking_part: Mapping[ServedRun, Rows]) -> ServedMediator | None:
        """Return its one body, if that waits for a forward of these to do the round of a loop, which can be done for it."""
        if len(self.step_waiters) != 1 or len(self.bodies) != 1 or self.over or self._watching:
            return None
        mediator = self.step_waiters[0]
        if mediator is not self.bodies[0] or not isinstance(mediator, ServedMediator) or mediator.again is not None:
            return None
        return mediator if mediator.step == self.step + 1 and mediator.can_do_round() else None

    def only_place(self) -> Place | None:
        """Return the one place that its body waits at and will ask for in this forward and any other, if that is known."""
        if len(self.bodies) != 1 or self._watching or self.wants_no_more:
            return None
        (mediator,) = self.bodies
        if not isinstance(mediator, ServedMediator) or mediator.again is not None:
            return None
        rounds, place = mediator.rounds, mediator.place
        if (
            rounds is None
            or rounds.first != (place, mediator.stage)
            or not rounds.are_all
            or not mediator.can_do_round()
        ):
            return None
        return (
            place if place is not None and place.owner is place and mediator in self.at_output.get(place, ()) else None
        )

    def settle(self) -> None:
        """Resume bodies that waited for one another, until none can go on."""
        self.forwards.settle()

    def _begin_edits(self) -> None:
        # A request may take thousands of steps: of the replays that are over, none is kept.
        met = {body.order for body in self.bodies if body.again is not None and body.done}
        self.bodies[:] = [
            body for body in self.bodies if body.again is not None or not body.done or body.order not in met
        ]
        super()._begin_edits()

    def passed(self, mediator: Mediator, place: Place, stage: str) -> bool:
        """Say whether the run has passed the visit that the mediator would ask for."""
        if self.over or self.scheduled or place.stepless:
            return super().passed(mediator, place, stage)
        # Its last forward is over, and the next one has not begun.
        return place in self.earlier if mediator.step is None else mediator.step <= self.step

    def _open(self, way: list[Place]) -> None:
        self.forwards._open(way)

    def watch(self, places: Iterable[Place], stages: Collection[str], watcher: Watcher) -> None:
        """Let a watcher see its rows of every visit of these places from now on, as copies."""
        if self.forwards.graphs is not None:
            places = list(places)
            for place in places:
                for stage in stages:
                    self.forwards.graphs.check(place, stage)
        watching = _Watching(self, watcher)
        self._watching.append(watching)
        self.rest(False)
        self.forwards.watch(places, stages, watching)

    def check_skip(self, place: Place) -> None:
        """Refuse to skip what runs as a compiled graph."""
        if self.forwards.graphs is not None:
            self.forwards.graphs.check_skip(place)

    def look_idle(self) -> None:
        """See whether anybody wants something of later steps, now that a body is done."""
        # Of a model in parts all must agree who takes part, and a body that is done here may go on elsewhere.
        if self.forwards.parts is None:
            self.rest(not self._watching and all(body.done and body.again is None for body in self.bodies))

    def rest(self, idle: bool) -> None:
        """Say whether nobody wants anything more of its steps."""
        if idle is not self.idle:
            self.idle = idle
            self.forwards.changes += 1

    # -- the end -----------------------------------------------------------------------------------------------------

    @property
    def has_written(self) -> bool:
        """Whether its bodies have changed anything that the engine has: if not, its memory is as it is without them."""
        return self.wrote or (self.group is not None and self.group.wrote)

    @property
    def wants_no_more(self) -> bool:
        """Whether the request need not go on: a body stopped it, or raised."""
        return self.stopped or self.failure is not None

    def finish(self, result: Any) -> None:
        """End well: bodies that wait for the result get it, and all others hear that there is no further step."""
        if self.over:
            return
        self.model = getcurrent()
        self.thread.read()
        if self.group is not None:
            self.group.part_with((self,), over=True)
        try:
            if not self.wants_no_more:
                self.result = result
                self.end_steps()
                self._give_result(result)
                self.over = True
                ending.end_bodies(self)
        finally:
            self.close()

    def _give_result(self, result: Any) -> None:
        waiting = [mediator for mediator in self.at_output.get(RESULT, ()) if mediator.run is self]
        if waiting:
            self.forwards.dismiss_run(self)
            here = self.forwards.here = Here(RESULT, OUTPUT, result, 0, None)
            for mediator in waiting:
                mediator.serve(here)
            self.forwards.here = None

    def fail(self, error: BaseException) -> None:
        """End because of an error that a body raised, or led to."""
        if self.failure is None:
            # It is told elsewhere, as text: with the lines of the user, and none of ours.
            self.failure = fold(error, is_library, debugging=bool(CONFIG.APP.DEBUG))
        self.dismiss()

    def dismiss(self) -> None:
        """Let nobody of it be served any more, whatever the engine still does."""
        self.forwards.dismiss_run(self)
        self.step_waiters.clear()

    def close(self) -> None:
        """Give up what is left of it. Safe to call twice."""
        if self.group is not None:
            self.group.abandon(self)
        self.model = getcurrent()
        self.closing = True
        self.dismiss()
        try:
            for body in self.bodies:
                if not body.done:
                    self._close_body(body)
        finally:
            self.over = True
            self._end_watching()
            self.forwards.let_go(self)

    def _close_body(self, body: BodyMediator) -> None:
        worker = body.worker
        if worker is not None and worker.standing and adopt(worker):
            # What it does when it is closed is a turn like any other: it may catch that, too.
            self.forwards.watch_turns.turn(functools.partial(hop, worker.switch))
            if isinstance(body, ServedMediator):
                body.look_left()

    def _end_watching(self) -> None:
        watchers = self.forwards.watchers
        for watching in self._watching:
            watching.end()
            for place in [place for place, among in watchers.items() if watching in among]:
                watchers[place].remove(watching)
                if not watchers[place]:
                    del watchers[place]
                    for queue in (self.at_input, self.at_output):
                        if queue.get(place) == []:
                            del queue[place]
        self._watching.clear()


class _Earlier:
    """The places that a run has passed in its earlier steps."""

    def __init__(self, run: ServedRun) -> None:
        self._run = run

    def __contains__(self, place: Place) -> bool:
        run = self._run
        return run.forwards.last.get(place, -1) >= run.joined

    def __bool__(self) -> bool:
        return self._run.step > 0


class _Watching:
    """A watcher of one run, among those of all."""

    def __init__(self, run: ServedRun, watcher: Watcher) -> None:
        self._run = run
        self._watcher = watcher
        self.seen = True  # a step that does not come to a module is no news here

    def see(self, place: Place, stage: str, value: Any, layout: Layout | None) -> None:
        """Show the watcher the rows of its own run."""
        run = self._run
        if not run.scheduled or layout is None:
            return
        try:
            self._watcher.see(place, stage, copied(narrow(value, run.rows, layout, place.path)), None)
        except Exception as error:  # no memory is left for its copies
            run.fail(error)

    def refuse(self, error: BaseException) -> None:
        """Hear that what lies where the model stands cannot be shown."""
        if self._run.scheduled:
            self._run.fail(error)

    def end(self) -> None:
        """Hear that the run is over."""
        self._watcher.end()
