"""One run: the model's side, the mediators, who waits where, and how the run ends.

The model runs until it reaches a site that somebody waits for; there it stands (`Here`) while each of them has a turn,
in the order in which they were defined, and goes on when nobody wants more of it. With an inline body the model's
forward is in a greenlet of its own; with captured bodies the model stays in the caller's and the bodies are spawned.
What is put on the modules to make them stop is `taps.py`, what has been passed so far `visits.py`; what a body asks for
and how it parks is `mediator.py`.
"""

from __future__ import annotations

import contextvars
from collections.abc import Callable, Collection, Iterable
from typing import TYPE_CHECKING, Any, Protocol

import torch

from . import ending
from .active import active
from .batching import Layout, Rows
from .here import Here, assembled
from .mediator import Abandon, BodyMediator, InlineMediator, Mediator
from .rigging import Rigging
from .sites import INPUT, OUTPUT, Place
from .taps import Tap, running
from .turns import Greenlet, GreenletExit, ThreadState, Worker, getcurrent, spawn
from .visits import Visits

if TYPE_CHECKING:
    from .sharded import Ranks

#: The place of what the traced call returns, in every run.
RESULT = Place("result", stepless=True)


class Watcher(Protocol):
    """Something that looks at every visit of a place and never holds the run up (a cache)."""

    #: Whether it has seen anything.
    seen: bool

    def see(self, place: Place, stage: str, value: Any, layout: Layout | None) -> None:
        """Look at what lies at a place, after everybody has had their turn."""

    def end(self) -> None:
        """Hear that the run is over, well or not."""


class Interleaver(Visits):
    """One run of a model with the bodies that look into it.

    Args:
        call: runs the model and returns its result.
        rigging: the taps of the tree that runs.
        layout: how the rows of several invokes lie in the values; None with one input.
        step_place: the place each visit of which begins a step; None for a single forward.
    """

    # What a run starts with; set on the class, since most runs are short and change few of these.
    steps_over = False
    #: Whether this is a single forward, with an inline body beside it, that has been started and is not over.
    plain = False
    model: Greenlet | None = None
    #: Why nothing can be differentiated through the model, if that is so.
    no_gradients = ""
    #: What the model raised, on its way to the body that waits.
    error: BaseException | None = None
    stopped = False
    closing = False
    failed: BodyMediator | None = None
    result: Any = None
    #: Where the processes that the model is spread over compare what they do; None for a model in one process.
    ranks: Ranks | None = None
    #: Called before a body gives the model its turn: to compare with other processes, to show what is saved so far.
    before_turn: Callable[[Mediator], None] | None = None
    #: Shows what is saved so far, if somebody wants to look at it; see `sofar.py`.
    show: Callable[[], None] | None = None
    #: The active stack that bodies of this run start with.
    stack: tuple[Any, ...] = ()

    def __init__(
        self,
        call: Callable[[], Any],
        rigging: Rigging,
        layout: Layout | None = None,
        step_place: Place | None = None,
    ) -> None:
        self.rigging = rigging
        self.entered = {}
        self.left = {}
        self.call = call
        self.layout = layout
        self.step_place = step_place
        #: Who waits where, at either stage. A place is here as long as anybody has business there: the taps look here and
        #: nowhere else. The place of the steps is always among those at which something happens on the way in.
        self.at_input: dict[Place, list[Mediator]] = {} if step_place is None else {step_place: []}
        self.at_output: dict[Place, list[Mediator]] = {}
        self.watchers: dict[Place, list[Watcher]] = {}
        self.step_waiters: list[Mediator] = []
        self.bodies: list[BodyMediator] = []
        self.parked: list[BodyMediator] = []
        #: The thread state of the model's side, and the one that captured bodies start with: the caller's.
        self.thread = self.body_thread = ThreadState()

    # -- the hot path: called by the taps ----------------------------------------------------------------------------

    @property
    def started(self) -> bool:
        """Say whether the model has been called."""
        return self.model is not None or self.over

    def visit(self, place: Place, call: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Pass through a place where somebody has business."""
        if place is self.step_place:
            self._begin_step()
        if place in self.late:
            self.check_holder(place)
        visit = self.entered.get(place, 0)
        self.entered[place] = visit + 1
        skipped = None
        if place in self.at_input:
            here = self._arrive(self.at_input, place, INPUT, (args, kwargs), visit)
            if here is not None:
                args, kwargs = here.value
                skipped = here.skipped
                if isinstance(place, Tap):
                    call = place.call  # its forward may have been opened meanwhile
        if skipped is None:
            value = call(*args, **kwargs)
        else:
            value = self._skip(place, visit, skipped, call, args, kwargs)
        if place in self.at_output:
            here = self._arrive(self.at_output, place, OUTPUT, value, visit)
            if here is not None:
                value = here.value
        self.left[place] = visit + 1
        return value

    def leave(self, place: Place, value: Any, visit: int) -> Any:
        """Come out of a place where business came up before or while it was running."""
        if self.late and place in self.late:
            self.check_holder(place)
        waiting = self.at_output[place]
        if not waiting and not self.parked:
            for watcher in self.watchers.get(place, ()):
                watcher.see(place, OUTPUT, value, self.layout)
            return value
        if len(waiting) != 1 or visit or self.watchers or waiting[0].step is not None:
            here = self._arrive(self.at_output, place, OUTPUT, value, visit)
            return value if here is None else here.value
        # One body that waits for the first visit of a module: what `_arrive` does then, on the shortest way.
        del self.at_output[place]
        here = self.here = Here(place, OUTPUT, value, visit, self.layout)
        waiting[0].serve(here)
        if self.parked:
            self.settle()
        if here.rough:
            here.settle()
        self.here = None
        return here.value

    def leave_in_full(self, place: Place, value: Any, visit: int) -> Any:
        """Come out of a place without a shorter way: what `leave` is in a run whose `_arrive` is its own."""
        if self.late and place in self.late:
            self.check_holder(place)
        here = self._arrive(self.at_output, place, OUTPUT, value, visit)
        return value if here is None else here.value

    def _arrive(
        self, queue: dict[Place, list[Mediator]], place: Place, stage: str, value: Any, visit: int
    ) -> Here | None:
        waiting = queue[place]
        if len(waiting) == 1:
            due = waiting if waiting[0].due(visit) else []
        else:
            due = [mediator for mediator in waiting if mediator.due(visit)]
        if not due and place not in self.watchers:
            return None
        if place.stepless and not self.steps_over:
            self.end_steps()
        here = self.here = Here(place, stage, value, visit, self.layout)
        if due:
            # Whoever is served may wait here again, so the list is out of the way before.
            left = [] if len(due) == len(waiting) else [mediator for mediator in waiting if mediator not in due]
            if left or place in self.watchers or (stage is INPUT and place is self.step_place):
                queue[place] = left
            else:
                del queue[place]
            if len(due) > 1:
                due.sort(key=lambda mediator: mediator.order)
            for mediator in due:
                mediator.serve(here)
        if self.parked:
            self.settle()
        if here.rough:
            here.settle()
        if self.watchers:
            for watcher in self.watchers.get(place, ()):
                watcher.see(place, stage, here.value, self.layout)
        self.here = None
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
        if None in skipped:
            return skipped[None]
        if self.layout is not None and sum(count for _, count in skipped) == self.layout.total:
            return assembled(skipped)
        # Some invokes skip the module and others do not: it runs for all, and those who skip get their own value.
        value = call(*args, **kwargs)
        here = Here(place, OUTPUT, value, visit, self.layout)
        for rows, replacement in skipped.items():
            here.write(rows, replacement)
        here.settle()
        return here.value

    # -- who waits where ---------------------------------------------------------------------------------------------

    def watch(self, places: Iterable[Place], stages: Collection[str], watcher: Watcher) -> None:
        """Let a watcher see every visit of these places from now on, at these stages."""
        if not self.tapped:
            self.tap()
        queues = [self.at_output] * (OUTPUT in stages) + [self.at_input] * (INPUT in stages)
        for place in places:
            if place.owner not in self.exact:
                self.open_way(place)
            for queue in queues:
                queue.setdefault(place, [])
            self.watchers.setdefault(place, []).append(watcher)

    def settle(self) -> None:
        """Resume bodies that waited for one another, until none can go on."""
        while self.parked:
            mediator = next((m for m in self.parked if m.ready is not None and m.ready()), None)
            if mediator is None:
                return
            self.parked.remove(mediator)
            mediator.resume()

    # -- steps -------------------------------------------------------------------------------------------------------

    def _begin_step(self) -> None:
        if self.stepping:
            self.earlier = self.earlier.union(self.entered)
            self.entered.clear()
            self.left.clear()
            self.step += 1
            self._begin_edits()
        else:
            self.stepping = True
            self.plain = False
        if self.step_waiters:
            due = [m for m in self.step_waiters if m.step is not None and m.step <= self.step]
            for mediator in sorted(due, key=lambda m: m.order):
                self.step_waiters.remove(mediator)
                mediator.served = True
                mediator.resume()
        if self.parked:
            self.settle()

    def end_steps(self) -> None:
        """Say that no further step will begin: loops over steps end here, while the run goes on."""
        self.steps_over = True
        while self.step_waiters:
            mediator = self.step_waiters.pop(0)
            mediator.served = False
            mediator.resume()

    def _begin_edits(self) -> None:
        """Replay the edits for a step that has just begun, but for those that walk the steps themselves."""
        for edit in tuple(self.bodies):
            if edit.again is not None and not edit.loops_used:
                edit.again(self)

    # -- the run itself ----------------------------------------------------------------------------------------------

    def prepare(self, mediator: Mediator) -> None:
        """Spawn the model's side for an inline body; it starts with the first turn."""
        context = contextvars.copy_context()
        context.run(active.set, ())
        current = getcurrent()
        mediator.greenlet = current
        if not self.tapped:
            self.tap()
        model = self.model = spawn(self._record, current, context)
        running[model] = self
        self.plain = True

    def _record(self) -> None:
        try:
            self._main()
        except GreenletExit:
            raise
        except BaseException as error:
            self.error = error

    def add_body(self, body: Callable[[], Any], rows: Rows | None, name: str, order: int) -> BodyMediator:
        """Give the run a captured body."""
        mediator = BodyMediator(self, body, rows, name, order)
        self.bodies.append(mediator)
        return mediator

    def run_here(self) -> None:
        """Run the model in the caller's greenlet, with captured bodies beside it.

        Raises whatever the model or a body raised, as it was raised.
        """
        current = self.model = getcurrent()
        outer = running.get(current)
        running[current] = self
        token = active.set(())
        try:
            self._main()
        except Abandon:
            pass
        finally:
            active.reset(token)
            if outer is None:
                del running[current]
            else:
                running[current] = outer
            ending.close(self)
        self.raise_failure()

    def _main(self) -> None:
        if not self.tapped:
            self.tap()
        try:
            if self.bodies:
                self.body_thread = ThreadState()
            for body in self.bodies:
                body.begin()
            if self.parked:
                self.settle()
            result = self.call()
            if self.at_output or self.step_waiters or self.parked:
                result = self._offer_result(result)
            self.result = result
            self.over = True
            self.plain = False
            if self.learning:
                self.rigging.learn(self.method)
            # A model that swallows whatever is raised in it goes on although the run has been given up.
            if not (self.failed or self.stopped):
                if self.bodies:
                    ending.end_bodies(self)
                if self.watchers:
                    ending.end_watchers(self)
        finally:
            self.over = True
            self.plain = False
            self.untap()

    def _offer_result(self, result: Any) -> Any:
        if self.step_waiters:
            self.end_steps()
        self.steps_over = True
        if RESULT in self.at_output:
            here = self._arrive(self.at_output, RESULT, OUTPUT, result, 0)
            if here is not None:
                result = here.value
        return result

    def provide(self, place: Place, value: Any) -> Any:
        """Offer a value that comes from outside the modules, and return what the bodies made of it."""
        visit = self.entered.get(place, 0)
        self.entered[place] = visit + 1
        if place in self.at_output:
            here = self._arrive(self.at_output, place, OUTPUT, value, visit)
            if here is not None:
                value = here.value
        self.left[place] = visit + 1
        return value

    def finish_inline(self, mediator: InlineMediator) -> None:
        """Let the model run to its end after an inline body is done."""
        model = self.model
        assert isinstance(model, Worker)
        if model.done:
            ending.end_watchers(self)
            ending.close(self)
            return
        if not (self.at_output or self.at_input or self.bodies or self.learning):
            self.untap()
        try:
            mediator.park()
        finally:
            ending.close(self)

    def ended(self, mediator: Mediator, error: BaseException | None) -> None:
        """Hear that a body is over, with what it raised; called before the model runs to its end."""

    def written(self) -> list[torch.Tensor]:
        """Return what bodies have made of the value where the model stands, for other processes to compare."""
        return []

    def dismiss(self) -> None:
        """Let nobody be served any more, whatever the model still does."""
        self.plain = False
        self.at_input.clear()
        self.at_output.clear()
        self.parked.clear()
        self.step_waiters.clear()

    def raise_failure(self) -> None:
        """Raise what a captured body or the model raised, if one did and it was not raised yet."""
        failure, self.error = self.error, None
        if self.failed is not None:
            # The model was left because of it, by `Abandon`.
            failure, self.failed.failure = self.failed.failure, None
        if failure is None or isinstance(failure, Abandon):
            return
        try:
            raise failure
        finally:
            del failure  # or the traceback would hold this frame, and this frame the error
