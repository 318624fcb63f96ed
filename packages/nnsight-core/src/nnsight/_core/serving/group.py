"""One body at work for several requests: those whose bodies are alike, and that began in one forward.

One idea: what a body does is done once for all of them, on `Together` values, as long as they are in step. What it bound is
each request's own as soon as that leaves: it is over, it stopped, the loop is. From there on a request goes on by itself, as
if it had been alone all the time, with the rest of its body (`plan.py`): the loop from the next step on, and what follows it.
"""

from __future__ import annotations

import sys
import types
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from .. import complaints
from ..batching import Rows
from ..blocks import Names
from ..invoke import Invoke
from ..steps import StepLoop
from ..turns import ThreadState, getcurrent
from .mediator import ServedMediator
from .owned import Own, Shares
from .plan import STEPS, Plan
from .request import ServedRun
from .rounds import Rounds
from .together import Several, Together

if TYPE_CHECKING:
    from ..active import Answers
    from .forwards import Forwards


class Membership:
    """What a request brings into a group: its invoke, and the plan that it shares with all that are alike."""

    __slots__ = ("fresh", "invoke", "likeness", "plan", "stack")

    def __init__(self, likeness: object, plan: Plan, invoke: Invoke, stack: tuple[Answers, ...]) -> None:
        self.likeness = likeness
        self.plan = plan
        self.invoke = invoke
        self.stack = stack
        #: What was made for this request alone, by its id.
        self.fresh: dict[int, Any] = {}

    def rounds(self) -> Rounds:
        """Return the rounds of its loop over steps, as far as its text tells what they do."""
        body, names = self.invoke.body, self.invoke.names
        assert body is not None and names is not None
        return Rounds(self.plan, body, names)


#: How many ways for rows to lie there are in one forward, of those that are kept: of tokens, and of requests.
_LAID = 2


class GroupRun(ServedRun):
    """The run of several requests whose bodies are alike.

    Args:
        forwards: the engine's.
        members: the requests, and what each brings.
    """

    rows: Any

    def __init__(self, forwards: Forwards, members: Mapping[ServedRun, Membership]) -> None:
        first = next(iter(members.values()))
        super().__init__(forwards, first.stack)
        self.plan = first.plan
        self.members = dict(members)
        #: Those that are in it still.
        self.runs: tuple[ServedRun, ...] = tuple(members)
        self.loop: StepLoop | None = None
        #: Whether an operation was ever done for each of them by itself.
        self.parted = False
        self._spans: Mapping[ServedRun, Rows] = {}
        #: Where rows lie, as it was said in the last forward: for one that is like it.
        self._laid: dict[int, tuple[Mapping[ServedRun, Rows], Several]] = {}
        self._alone: tuple[int, frozenset[int]] | None = None
        #: What is made for all who leave, once all of them do.
        self._shares: Shares | None = None
        body = first.invoke.body
        assert body is not None
        self.body = body
        self.names = Names(body.outer, body.real)
        name = f"{first.invoke.name} and {len(members) - 1} like it"
        self.mediator = self.add_body(self._run, None, name, first.invoke.number)
        self.mediator.to_come = Rounds(self.plan, body, self.names)
        for run in members:
            run.group = self
            run.bodies.clear()
            member = members[run]
            member.invoke.mediator = None
        forwards.changes += 1

    def _run(self) -> None:
        around = self.body._globals(self.names)
        if self.plan.before is not None:
            exec(self.plan.before, around, self.names)
        if self.plan.steps is not None and self.plan.loop is not None:
            found = eval(self.plan.steps, around, self.names)
            self.loop = found if isinstance(found, StepLoop) else found[:]
            self.names[STEPS] = self.loop
            exec(self.plan.loop, around, self.names)

    # -- steps -------------------------------------------------------------------------------------------------------

    def in_rounds(self, taking_part: Mapping[ServedRun, Rows]) -> ServedMediator | None:
        """Return its body, if all take part and what that does is the round of a loop, which can be done for it."""
        return super().in_rounds(taking_part) if taking_part.keys() >= set(self.runs) else None

    def begin_in(self, taking_part: Mapping[ServedRun, Rows]) -> None:
        """Take part in a forward, with the rows of each; those that do not take part leave."""
        if id(taking_part) not in self._laid:
            self.part_with([run for run in self.runs if run not in taking_part])
        if self.runs:
            self.begin_step(self._several(taking_part))

    def lie_in(self, taking_part: Mapping[ServedRun, Rows]) -> None:
        """Say where the rows of each lie in the values that follow."""
        if self.runs:
            self.lie_at(self._several(taking_part))

    def _several(self, taking_part: Mapping[ServedRun, Rows]) -> Any:
        self._spans = taking_part
        laid = self._laid.get(id(taking_part))
        if laid is None:
            if len(self._laid) > _LAID:
                self._laid.clear()
            laid = self._laid[id(taking_part)] = taking_part, self._lay(taking_part)
        return laid[1]

    def _lay(self, taking_part: Mapping[ServedRun, Rows]) -> Several:
        found = Several(self, self.runs, [taking_part[run] for run in self.runs])
        if found.all is None:
            # An engine may have moved some since: in the order of their rows they may lie one behind the other again.
            runs = tuple(sorted(self.runs, key=lambda run: taking_part[run]))
            other = Several(self, runs, [taking_part[run] for run in runs])
            if other.all is not None:
                self.runs, found = runs, other
        return found

    # -- leaving -----------------------------------------------------------------------------------------------------

    def part_with(self, runs: Sequence[ServedRun], over: bool = False) -> None:
        """Let requests leave, with what the body has bound for them, and with what is left of it.

        Args:
            runs: the requests.
            over: whether they have no further step.
        """
        if not runs:
            return
        last = self.plan.after is None and (over or self.mediator.done or self.stopped)
        if last and self._shares is None and len(runs) == len(self.runs):
            self._share()
        self._leave(runs)
        for run in runs:
            self._give(run, last)
            self._set_out(run, over)
        if not self.runs:
            self.close()

    def end_at_once(self) -> None:
        """Hear that all of its requests end now, one after another."""
        if self.plan.after is None:
            self.thread.read()
            self.part_with(self.runs, over=True)

    def _share(self) -> None:
        (collector,) = self.stack
        self._shares = Shares(self._unshared(), collector)

    def let_look(self, run: ServedRun) -> None:
        """Bind what the body has bound so far for one request, which goes on by itself if that can be now."""
        if self.mediator.done or self.mediator in self.step_waiters:
            self.part_with((run,))
        else:
            self._give(run, last=False)

    def leave_out(self, failed: Sequence[tuple[ServedRun, Exception]]) -> None:
        """Go on without those for which an operation failed; raise the last of the errors if nobody is left."""
        frame: types.FrameType | None = sys._getframe(1)
        while frame is not None and frame.f_code.co_filename != self.body.filename:
            frame = frame.f_back
        for run, error in failed:
            if len(self.runs) == 1:
                raise error
            self._leave((run,))
            run.fail(_at(error, frame))

    def look_idle(self) -> None:
        """Let everybody go on by themselves, now that what is done together is done."""
        self.part_with(self.runs)

    def fail(self, error: BaseException) -> None:
        """End all of them because of an error of the body."""
        super().fail(error)
        runs = self.runs
        self._leave(runs)
        for run in runs:
            run.fail(error)

    def drop(self, run: ServedRun, error: BaseException) -> None:
        """Go on without a request, whose error this is; called on the engine's side."""
        if run.group is self:
            self.abandon(run)
        run.fail(error)

    def abandon(self, run: ServedRun) -> None:
        """Let a request leave that is given up."""
        self._leave((run,))
        if not self.runs:
            self.close()

    def _leave(self, runs: Sequence[ServedRun]) -> None:
        for run in runs:
            run.group = None
            # It is where all are.
            run.stepping, run.step, run.joined, run.scheduled = self.stepping, self.step, self.joined, self.scheduled
            run.wrote |= self.wrote
        self.runs = tuple([run for run in self.runs if run.group is self])
        self._laid.clear()
        self.forwards.changes += 1

    def _give(self, run: ServedRun, last: bool) -> None:
        """Bind for one request what the body has bound for all; `last` if nothing of its body is left to be done."""
        names = self.members[run].invoke.names
        assert names is not None
        (collector,) = self.stack
        unshared = self._unshared() if last else frozenset()
        own = Own(run, collector, self.members[run].fresh, unshared, self._shares if last else None)
        for name, value in self.names.items():
            if name != STEPS:
                names[name] = own.of(value)

    def _unshared(self) -> frozenset[int]:
        """Return the values, by their ids, whose memory no other has, so that a request may have a copy of its rows."""
        if self._alone is None or self._alone[0] != self.step:
            found: dict[int, list[int]] = {}
            seen: set[int] = set()
            waiting = list(self.names.values())
            while waiting:
                value = waiting.pop()
                if type(value) in (list, tuple, dict):
                    waiting += value.values() if type(value) is dict else value
                elif type(value) is Together and id(value) not in seen:
                    seen.add(id(value))
                    parts = [value.whole] if value.whole is not None else value.parts()
                    for part in parts:
                        if isinstance(part, torch.Tensor):
                            found.setdefault(part.untyped_storage()._cdata, []).append(id(value))
            self._alone = self.step, frozenset(ids[0] for ids in found.values() if len(ids) == 1)
        return self._alone[1]

    def _set_out(self, run: ServedRun, over: bool) -> None:
        """Let a request go on with what is left of its body."""
        if self.stopped:
            run.stopped = True
            return
        invoke, plan, mediator = self.members[run].invoke, self.plan, self.mediator
        names, body = invoke.names, invoke.body
        assert body is not None and names is not None
        left: list[types.CodeType | None] = [plan.after]
        if not mediator.done:
            if mediator not in self.step_waiters:
                assert mediator.place is not None
                run.fail(_at(complaints.missed(mediator, mediator.place, mediator.stage), self._stands()))
                return
            assert self.loop is not None and mediator.step is not None
            if plan.after is None and over and not self.loop.bounded:
                return
            names[STEPS] = self.loop.rest(mediator.step)
            left = [plan.loop, plan.after]
        codes = [code for code in left if code is not None]
        if not codes:
            run.rest(True)
            return
        around = body._globals(names)

        def go_on() -> None:
            for code in codes:
                exec(code, around, names)
            names.pop(STEPS, None)

        invoke.mediator = made = run.add_body(go_on, None, invoke.name, invoke.number)
        if plan.loop in left:
            made.to_come = self.members[run].rounds()
        run.lie_at(self._spans.get(run, run.rows))
        run.model = getcurrent()
        run.body_thread = ThreadState()
        invoke.mediator.begin()

    def _stands(self) -> types.FrameType | None:
        """Return the frame of the body, which waits."""
        frame = self.mediator.greenlet.gr_frame if self.mediator.greenlet is not None else None
        while frame is not None and frame.f_code.co_filename != self.body.filename:
            frame = frame.f_back
        return frame


def form_groups(forwards: Forwards, taking_part: Iterable[ServedRun]) -> None:
    """Make groups of the requests that begin now and whose bodies are alike."""
    alike: dict[object, dict[ServedRun, Membership]] = {}
    for run in taking_part:
        member = run.membership
        if member is not None and not run.stepping and len(run.bodies) == 1 and not run.wants_no_more:
            alike.setdefault(member.likeness, {})[run] = member
    for members in alike.values():
        if len(members) > 1:
            GroupRun(forwards, members)
            continue
        for run, member in members.items():  # by itself, it may have its rounds done for it all the same
            (mediator,) = run.bodies
            if isinstance(mediator, ServedMediator):
                mediator.to_come = member.rounds()


def _at(error: Any, frame: types.FrameType | None) -> BaseException:
    """Return an error as if it had been raised in this frame."""
    found: BaseException = error
    if frame is None:
        return found
    return found.with_traceback(types.TracebackType(found.__traceback__, frame, frame.f_lasti, frame.f_lineno))
