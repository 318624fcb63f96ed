"""The mediator of a body of one request, which never leaves the model: what goes wrong ends its own run.

One idea: a body has its turns, as everywhere, or what it does in a step is done for it where the model stands, while it goes
on waiting (`rounds.py`). Which it is nobody can tell.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import torch

from ..active import active
from ..here import Here
from ..mediator import BodyMediator
from ..sites import Place
from ..turns import gettrace, hop
from .watch import TooLongError

if TYPE_CHECKING:
    from .request import ServedRun
    from .rounds import Rounds
    from .spread import Asked


class ServedMediator(BodyMediator):
    """The mediator of a body of one request. It is served while its request takes part, and never leaves the model."""

    run: ServedRun
    #: What it wants all ranks of the engine to do together; see `spread.py`.
    asked: Asked | None = None
    #: The state of the random numbers that it draws, where they are kept apart; see `draws.py`.
    drawn: list[torch.Tensor] | None = None
    #: The step of its run in which it began.
    born = 0
    #: The rounds of its next loop over steps, and of the one that it is in, as far as its text tells what they do.
    to_come: Rounds | None = None
    rounds: Rounds | None = None
    #: Whether it waits for what those ask for first, in a round that has not begun.
    ahead = False
    #: What a round raised that was done for it: it is raised again in its loop.
    raised: BaseException | None = None

    def begin(self) -> None:
        """Run the body until it first needs the model."""
        self.born = self.run.step
        super().begin()

    def ask(self, place: Place, stage: str) -> Here:
        """Return where the run stands once it is at this site; see `Mediator.ask`."""
        graphs, parts = self.run.forwards.graphs, self.run.forwards.parts
        if graphs is not None:
            graphs.check(place, stage)
        if parts is None:
            return super().ask(place, stage)
        if not parts.has(place, stage):
            return parts.ask(self, place, stage)
        before = self.here
        here = super().ask(place, stage)
        if here is not before:
            parts.note(self, here)
        return here

    def reach_step(self, step: int, entering: bool) -> bool:
        """Wait until a step begins, or until the model is where the step is known to begin for this body."""
        if entering:
            self.rounds, self.to_come = self.to_come, None
        served = super().reach_step(step, entering)
        if self.raised is not None:
            error, self.raised = self.raised, None
            raise error
        return served

    def serve(self, here: Here) -> None:
        """Hand the site over to the body and run it until it needs the model again."""
        if self.ahead:
            self.ahead = False
            if self.can_do_round():
                self.do_round_at(here)
                self.run.step_waiters.append(self)
                if self.raised is not None:
                    self.begin_round()
                return
        super().serve(here)

    # -- rounds that are done for it; see `rounds.py` ------------------------------------------------------------------

    def can_do_round(self) -> bool:
        """Say whether the round of its step can be done for it, and it waits for another one then."""
        rounds, loop, step = self.rounds, self.loop, self.step
        if rounds is None or loop is None or step is None or rounds.round is None:
            return False
        return step + 1 < loop.until and self.run.before_turn is None

    def do_round_at(self, here: Here) -> None:
        """Do the round of its step where the model stands, which is what it asks for."""
        try:
            value = here.read(self.rows)
        except Exception as error:  # what lies there cannot be shown
            value, self.raised = None, error
        self.do_round(value)

    def do_round(self, value: Any) -> None:
        """Do the round of its step with what it asks for, unless that has raised something."""
        step, rounds = self.step, self.rounds
        assert step is not None and rounds is not None and rounds.round is not None
        if self.raised is None:
            token = active.set((*self.run.stack, self)) if rounds.round.saves else None
            try:
                if rounds.round.is_brief:  # a few operations, which nobody has to watch
                    rounds.do(step, value)
                elif not self.run.forwards.watch_turns.turn(rounds.do, step, value):
                    self.raised = self._too_long()
            except BaseException as error:
                self.raised = error
            finally:
                if token is not None:
                    active.reset(token)
        self.step = self.rounds_done = step + 1

    def begin_round(self) -> None:
        """Give the body its turn in its loop, where it does the round of its step, or raises what one did."""
        self.run.step_waiters.remove(self)
        self.served = True
        self.resume()

    def due(self, visit: int) -> bool:
        """Say whether this visit of the place that the mediator waits at is the one it asked for."""
        return self.run.scheduled and super().due(visit)

    def look_left(self) -> None:
        """See whether the body was left where it stands, which is its end."""
        if self.worker is not None and self.run.forwards.watch_turns.has_left(self.worker):
            self.done, self.worker = True, None

    def resume(self) -> None:
        """Give the body its turn."""
        assert self.greenlet is not None
        switch, forwards = self.greenlet.switch, self.run.forwards
        if self.rounds is not None:
            self.rounds.forget()
        if not forwards.give_turn(self, switch if gettrace() is None else functools.partial(hop, switch)):
            self.failure = self._too_long()
            self.look_left()
        if self.failure is not None:
            parts = self.run.forwards.parts
            if parts is None or not parts.leaves(self):
                self.run.fail(self.failure)
        elif self.run.stopped:
            self.run.dismiss()
        if self.done:
            self.run.look_idle()

    def _too_long(self) -> TooLongError:
        return TooLongError(
            f"{self.name} had its turn for more than {self.run.forwards.watch_turns.seconds:g} s, while the engine and all "
            "of its requests waited. Let it do what takes long after the trace, with what it saved"
        )
