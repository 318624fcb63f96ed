"""A model in parts, each in a process of its own: a pipeline of stages.

One idea: **every part runs every body, and a journal answers for what lies elsewhere.** A part notes what it serves, in the
order in which each body asked. The other parts are told, and there the same body, when it comes to the same line, gets that
value at once. What it writes to such a value is for the part to carry out that has the place; here it changes the body's own
copy and nothing else. So a body sees all parts in order, and those that come first hear before their next step what was
served behind them.

How pages of the journal travel, and which place lies where, is the engine's to say.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from .. import complaints
from ..errors import ElsewhereError, NNsightError
from ..here import Here
from ..interleaver import RESULT
from ..sites import Place, site_name
from .joint import copied

if TYPE_CHECKING:
    from ..batching import Rows
    from .mediator import ServedMediator
    from .request import ServedRun

#: Which body of a request: its order there, and the step in which it began (edits begin in each).
Body = tuple[int, int]
#: A place by its path, and the stage.
Site = tuple[str, str]


@dataclass
class Page:
    """What one part served to the bodies of one request in one forward: plain, but for the values."""

    lines: list[tuple[Body, Site, Any]] = field(default_factory=list)
    #: Where in this part bodies wait in vain so far; None for one that cannot go on here.
    waiting: dict[Body, Site | None] = field(default_factory=dict)
    #: What ended the request here.
    failure: str | None = None


class EndedElsewhereError(NNsightError):
    """Another part of the model ended a request, and says why to its sender itself."""


class Told(Here):
    """What a body is told of a place that lies elsewhere."""

    __slots__ = ()

    def __init__(self, place: Place, stage: str, value: Any) -> None:
        super().__init__(place, stage, value, 0, None)

    def read(self, rows: Rows | None) -> Any:
        """Return the value as it was served there, with what this body has made of it."""
        if self.rough and self.backs:
            self._carry()
        return self.value

    def write(self, rows: Rows | None, value: Any) -> None:
        """Replace the value for this body. The part that has the place does so for the model."""
        self.value = value


class Parts:
    """One part of a model, among all.

    Args:
        number: which part this is.
        count: how many there are.
        owner: says in which part a place lies, at a stage.
    """

    def __init__(self, number: int, count: int, owner: Callable[[Place, str], int]) -> None:
        self.number = number
        self.count = count
        self._owner = owner
        self._pages: dict[ServedRun, Page] = {}
        self._lines: dict[tuple[ServedRun, Body, int], deque[tuple[Site, Any]]] = {}
        self._elsewhere: dict[tuple[ServedRun, int], dict[Body, Site | None]] = {}
        self._waiting: list[ServedMediator] = []
        self._lost: set[tuple[ServedRun, Body]] = set()

    def has(self, place: Place, stage: str) -> bool:
        """Say whether a place lies in this part."""
        return place is RESULT or self._owner(place, stage) == self.number

    # -- what is served here -------------------------------------------------------------------------------------------

    def note(self, mediator: ServedMediator, here: Here) -> None:
        """Note what a body is given, before it changes anything there."""
        if here.place is not RESULT:
            value = copied(here.read(mediator.rows))
            site = here.place.path, here.stage
            self._pages.setdefault(mediator.run, Page()).lines.append((_body(mediator), site, value))

    def page(self, run: ServedRun) -> Page:
        """Return what the other parts are to hear of a run after a forward."""
        page = self._pages.pop(run, None) or Page()
        for mediator in run.bodies:
            place, body = mediator.place, _body(mediator)  # type: ignore[arg-type]  # a run here has no others
            if (run, body) in self._lost:
                page.waiting[body] = None
            elif place is not None and any(mediator in queue.get(place, ()) for queue in (run.at_input, run.at_output)):
                page.waiting[body] = place.path, mediator.stage
        if run.failure is not None:
            page.failure = f"{type(run.failure).__name__}: {run.failure}"
        return page

    # -- what is told --------------------------------------------------------------------------------------------------

    def read(self, run: ServedRun, part: int, page: Page) -> None:
        """Take in what another part says of a run, and let bodies go on that waited for it."""
        if run.over:
            return
        for body, site, value in page.lines:
            self._lines.setdefault((run, body, part), deque()).append((site, value))
        self._elsewhere[run, part] = page.waiting
        if page.failure is not None and run.failure is None:
            run.fail(EndedElsewhereError(f"Another part of the model ended this request: {page.failure}"))
        for mediator in [mediator for mediator in self._waiting if mediator.run is run]:
            place, stage = mediator.place, mediator.stage
            if place is not None and (run, _body(mediator), self._owner(place, stage)) in self._lines:
                self._waiting.remove(mediator)
                mediator.served = True
                mediator.resume()
        run.forwards.settle()

    def ask(self, mediator: ServedMediator, place: Place, stage: str) -> Here:
        """Return what was served at a place of another part: at once, or when that is known here.

        Raises:
            OutOfOrderError: that part has passed the site.
            MissedProviderError: the run ended without it.
        """
        run, body, here = mediator.run, _body(mediator), mediator.here
        if isinstance(here, Told) and here.place is place and here.stage is stage:
            return here
        mediator.place, mediator.stage = place, stage
        owner = self._owner(place, stage)
        while (run, body, owner) not in self._lines:
            if run.over:
                raise complaints.passed(mediator, place, stage)
            if owner < self.number and run.scheduled:
                self._check(mediator, owner, (place.path, stage))
            self._waiting.append(mediator)
            mediator.served = False
            mediator.park()
            if not mediator.served:
                raise complaints.missed(mediator, place, stage)
        lines = self._lines[run, body, owner]
        site, value = lines.popleft()
        if not lines:
            del self._lines[run, body, owner]
        if site != (place.path, stage):
            raise ElsewhereError(
                f"{mediator.name} asks for {site_name(place.path, stage)} here, and asked for {site_name(*site)} in the "
                "process that has it. Each part of the model runs the block, so it must do the same in all: let it not "
                "depend on time, on random numbers without a seed, or on the process."
            )
        told = mediator.here = Told(place, stage, value)
        return told

    def _check(self, mediator: ServedMediator, owner: int, site: Site) -> None:
        """Refuse a site that an earlier part has passed in this step without this body."""
        waiting = self._elsewhere.get((mediator.run, owner), {})
        body = _body(mediator)
        if body in waiting and waiting[body] is None:
            raise ElsewhereError(
                f"{site_name(*site)} lies in a part of the model where this block could not go on: it used a weight or a "
                "module of another part before. Read all values first, and compute with weights after the last."
            )
        if waiting.get(body) != site:
            assert mediator.place is not None
            raise complaints.passed(mediator, mediator.place, mediator.stage)

    # -- the end -------------------------------------------------------------------------------------------------------

    def leaves(self, mediator: ServedMediator) -> bool:
        """Say whether a body that failed here is left to the other parts: it needed something that is there."""
        if not isinstance(mediator.failure, ElsewhereError) or self.number == self.count - 1:
            return False
        self._lost.add((mediator.run, _body(mediator)))
        return True

    def forget(self, run: ServedRun) -> None:
        """Let nobody of a run be told anything any more."""
        self._waiting[:] = [mediator for mediator in self._waiting if mediator.run is not run]
        if run.over:
            self._pages.pop(run, None)
            tables: tuple[dict[Any, Any], ...] = (self._lines, self._elsewhere)
            for known in tables:
                for key in [key for key in known if key[0] is run]:
                    del known[key]
            self._lost = {lost for lost in self._lost if lost[0] is not run}


def _body(mediator: ServedMediator) -> Body:
    return mediator.order, mediator.born
