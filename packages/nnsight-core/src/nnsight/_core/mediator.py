"""A mediator: one body at work in a run.

It asks for sites, parks its body until the model is there, and remembers which step the body is in. An inline body
runs in the caller's own frame and parks the caller's greenlet; a captured body runs in a greenlet of its own. Both speak
to the same `Interleaver`, and the only difference is which side owns the greenlet that was spawned.
"""

from __future__ import annotations

import contextvars
from collections.abc import Callable
from types import FrameType
from typing import TYPE_CHECKING, Any

from . import complaints
from .active import active
from .batching import Rows
from .errors import NoTraceError
from .sites import INPUT, OUTPUT, Place
from .turns import Greenlet, GreenletExit, Worker, adopt, getcurrent, gettrace, hop, spawn, turn

if TYPE_CHECKING:
    from .here import Here
    from .interleaver import Interleaver
    from .rigging import Rigging


class EarlyStop(BaseException):
    """Leaves a body by `tracer.stop()`; the run ends there, quietly."""

    def __init__(self, run: Interleaver) -> None:
        super().__init__()
        self.run = run


class Loop:
    """A loop over steps that a body is in, as far as asking for sites concerns it.

    Args:
        until: it goes through all steps before this one, from that on where it began.
    """

    __slots__ = ("first", "until")

    def __init__(self, until: float = 0) -> None:
        self.until = until
        #: The place that the body asked for first: in a run without steps, its visits are the rounds.
        self.first: Place | None = None


class Mediator:
    """One body at work in a run."""

    # What a mediator starts with; most bodies change few of these.
    #: The step the body asks in. None outside of any loop: then a site means its first visit in the run.
    step: int | None = None
    loop: Loop | None = None
    loops_used = False
    #: Before which step the rounds of its loop were done for it while it waited; see `serving/rounds.py`.
    rounds_done = 0
    place: Place | None = None
    stage = ""
    here: Here | None = None
    served = False
    done = False
    #: Ends the wait of a parked body that waits for no site (a name, a barrier); see `Interleaver.settle`.
    ready: Callable[[], bool] | None = None
    greenlet: Greenlet | None = None
    #: Where the `with` of an inline body stands, if that is code that can be suspended; see `active.py`.
    frame: FrameType | None = None
    #: The step, and what was noted in it; see `notes.py`.
    noted: tuple[int | None, dict[Any, Any]] | None = None

    def __init__(self, run: Interleaver, rows: Rows | None = None, name: str = "the body", order: int = 0) -> None:
        self.run = run
        self.members = run.rigging.members
        self.rows = rows
        self.name = name
        self.order = order

    def mediator_for(self, place: Place) -> Mediator | None:
        """Answer for a place of this run's tree; see `active.py`."""
        run = self.run
        if place.owner in self.members:
            return self
        if not run.rigging.has(place):
            return None
        self.members = run.rigging.members
        return self

    # -- asking ------------------------------------------------------------------------------------------------------

    def ask(self, place: Place, stage: str) -> Here:
        """Return where the run stands once it is at this site: at once, or after turns of the model.

        Raises:
            OutOfOrderError: the run has passed the site.
            MissedProviderError: the run ended without reaching it.
        """
        run = self.run
        here = run.here
        self.place, self.stage = place, stage
        if self.loop is not None and self.loop.first is None:
            self.loop.first = place
        if here is not None and here.place is place and here.stage is stage:
            if self.here is here or self.due(here.visit):
                self.here = here
                return here
        if run.model is None and not run.over:
            run.prepare(self)
        if place.owner not in run.exact and not run.over and not run.reach(place, self):
            raise complaints.passed(self, place, stage)
        if place.owner is not place and not run.over:
            run.open_inside(place.owner)
        # The first test is there for speed: what it lets through cannot have been passed.
        if (place in (run.left if stage is OUTPUT else run.entered) or run.stepping or run.over) and run.passed(
            self, place, stage
        ):
            raise complaints.passed(self, place, stage)
        self.served = False
        queue = run.at_output if stage is OUTPUT else run.at_input
        waiting = queue.get(place)
        if waiting is None:
            queue[place] = [self]
        else:
            waiting.append(self)
        self.park()
        if not self.served:
            raise complaints.missed(self, place, stage)
        assert self.here is not None
        return self.here

    def due(self, visit: int) -> bool:
        """Say whether this visit of the place that the mediator waits at is the one it asked for."""
        place, step = self.place, self.step
        run = self.run
        if step is None or (place is not None and place.stepless):
            return visit == 0 and place not in run.earlier
        return visit == (step if not run.stepping else 0) and (not run.stepping or step == run.step)

    def serve(self, here: Here) -> None:
        """Hand the site over to the body and run it until it needs the model again."""
        self.here = here
        self.served = True
        self.resume()

    # -- steps -------------------------------------------------------------------------------------------------------

    def reach_step(self, step: int, entering: bool) -> bool:
        """Wait until a step begins, `entering` the loop or in its later rounds. Return False when the run ends before."""
        run = self.run
        self.here = None
        if run.over or run.steps_over:
            return False
        if run.stepping or self._counts_steps():
            if step <= run.step:
                return True
            if run.model is None:
                run.prepare(self)
            run.step_waiters.append(self)
            self.step, self.served = step, False
            self.park()
            return self.served
        first = self.loop.first if self.loop is not None else None
        if first is None:
            # On entering, the round decides the visit of whatever is asked for first. A round that asked for nothing
            # has nothing to go on.
            return entering
        if run.entered.get(first, 0) > step:
            return True
        # A single forward: the round begins when the place that the body asked for first is reached again.
        self.step, self.place, self.stage, self.served = step, first, INPUT, False
        run.at_input.setdefault(first, []).append(self)
        self.park()
        return self.served

    def _counts_steps(self) -> bool:
        """Say whether steps are the rounds of this run although none has begun yet."""
        first = self.loop.first if self.loop is not None else None
        return self.run.step_place is not None and (first is None or first not in self.run.entered)

    def advance(self, by: int = 1) -> None:
        """Move the body to a later step: what it asks for next, it asks for there."""
        self.loops_used = True
        self.step = (self.step or 0) + by
        self.here = None  # the model may still stand where the last step was served

    # -- turns -------------------------------------------------------------------------------------------------------

    def park(self) -> None:
        """Give the model its turn; return when somebody resumes this body."""
        raise NotImplementedError

    def resume(self) -> None:
        """Give the body its turn; called on the model's side."""
        raise NotImplementedError


class InlineMediator(Mediator):
    """The mediator of a body that runs where it is written: the model's forward gets the greenlet."""

    def ask(self, place: Place, stage: str) -> Here:
        """Return where the run stands once it is at this site; see `Mediator.ask`."""
        run = self.run
        here = run.here
        if here is not None and here.place is place and here.stage is stage:
            return here if here is self.here else super().ask(place, stage)
        if (
            stage is not OUTPUT
            or not run.plain
            or self.step is not None
            or place in run.left
            or place in run.at_output
            or place not in run.exact
            or self.loop is not None
        ):
            return super().ask(place, stage)
        # What most bodies ask for, an output that lies ahead in a single forward, on the shortest way.
        self.place, self.stage = place, OUTPUT
        self.served = False
        run.at_output[place] = [self]
        self.park()
        if not self.served:
            raise complaints.missed(self, place, stage)
        return self.here  # type: ignore[return-value]  # it was served

    def park(self) -> None:
        """Give the model its turn. An error of the model comes out here, at the line that waited."""
        run = self.run
        if run.before_turn is not None:
            run.before_turn(self)
        if self.greenlet is not getcurrent():
            self._move()
        turn(run.thread, run.model.switch)  # type: ignore[union-attr]  # it was asked for a site, so it is prepared
        if run.error is not None or run.failed is not None:
            run.raise_failure()

    def _move(self) -> None:
        # A body that yields or awaits may be resumed elsewhere: the model is to return to where the body is now.
        run = self.run
        assert isinstance(run.model, Worker)
        if not adopt(run.model):
            run.dismiss()
            raise NoTraceError(
                "This trace runs in another thread, and only there can its model go on. Ask for values in the thread "
                "that opened the trace, or open one in each thread."
            )
        self.greenlet = getcurrent()

    def serve(self, here: Here) -> None:
        """Hand the site over to the caller's frame."""
        self.here = here
        self.served = True
        if gettrace() is None:
            self.greenlet.switch()  # type: ignore[union-attr]  # it parked, so it has one
        else:
            self.resume()

    def resume(self) -> None:
        """Give the caller's frame its turn."""
        assert self.greenlet is not None
        hop(self.greenlet.switch)


class BodyMediator(Mediator):
    """The mediator of a captured body, which runs in a greenlet of its own."""

    def __init__(self, run: Interleaver, body: Callable[[], Any], rows: Rows | None, name: str, order: int) -> None:
        super().__init__(run, rows, name, order)
        self.body = body
        #: The greenlet of the body.
        self.worker: Worker | None = None
        self.failure: BaseException | None = None
        #: For an edit: the whole tree that it was made for, of which the run may have a part only.
        self.tree: Rigging | None = None
        #: For an edit: replays it for another step.
        self.again: Callable[[Interleaver], None] | None = None

    def mediator_for(self, place: Place) -> Mediator | None:
        """Answer for a place of this run's tree; an edit may wait in vain in other parts of its model."""
        found = super().mediator_for(place)
        return self if found is None and self.tree is not None and self.tree.has(place) else found

    def begin(self) -> None:
        """Run the body until it first needs the model."""
        assert self.run.model is not None
        context = contextvars.copy_context()
        stack = self.run.stack + (self,)
        context.run(active.set, stack)
        self.greenlet = self.worker = spawn(self._main, self.run.model, context)
        self.resume()

    def _main(self) -> None:
        run = self.run
        run.thread.read()
        run.body_thread.restore()
        try:
            try:
                self.body()
            except (Closed, GreenletExit):
                raise
            except BaseException as error:
                run.ended(self, error)
                raise
            if run.show is not None:
                run.show()
            run.ended(self, None)
        except EarlyStop as stop:
            if stop.run is not run:
                self.failure = stop
            else:
                run.stopped = True
        except Closed:
            pass
        except GreenletExit:
            raise
        except BaseException as error:
            self.failure = error
        finally:
            self.done = True
            run.thread.restore()

    def park(self) -> None:
        """Give the model its turn."""
        run = self.run
        assert run.model is not None
        if not run.closing:
            if run.before_turn is not None:
                run.before_turn(self)
            turn(run.thread, run.model.switch)
        if run.closing:
            raise Closed

    def resume(self) -> None:
        """Give the body its turn; if it failed or stopped the run, leave the model."""
        assert self.greenlet is not None
        if gettrace() is None:
            self.greenlet.switch()
        else:
            hop(self.greenlet.switch)
        run = self.run
        if self.failure is not None or run.stopped:
            if self.failure is not None and run.failed is None:
                run.failed = self
            if not run.closing:
                run.dismiss()
                raise Abandon

    def wait_until(self, ready: Callable[[], bool]) -> None:
        """Park until `ready` says yes: the run looks whenever it stands at a site, and when it ends."""
        while not ready():
            if self.run.over:
                return
            self.ready = ready
            self.run.parked.append(self)
            self.park()
            self.ready = None


class Closed(BaseException):
    """Leaves a captured body whose run is being given up."""


class Abandon(BaseException):
    """Leaves the model: nobody wants the rest of this run. No `except Exception` in a model catches it."""
