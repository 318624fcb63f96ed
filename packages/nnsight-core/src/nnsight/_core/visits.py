"""What a run has passed so far: how often each place was entered and left, and the taps that count it.

A body may ask for a module that nobody has tapped yet. Whether it can still be served is decided here: its taps go on
now if none of its visits can have gone by uncounted. Which modules hold which is the business of `rigging.py`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from . import complaints
from .rigging import Learning, Rigging, running
from .sites import INPUT, Place

if TYPE_CHECKING:
    from .here import Here
    from .mediator import Mediator


class Visits:
    """The visits of one run, step by step."""

    rigging: Rigging
    #: How often each place was entered and left, in this step.
    entered: dict[Place, int]
    left: dict[Place, int]
    # What a run starts with; set on the class, since most runs are short and change few of these.
    #: Where the run stands, while somebody is served.
    here: Here | None = None
    step = 0
    #: Whether the first step has begun, in a run that has steps.
    stepping = False
    over = False
    #: The places that were entered in earlier steps.
    earlier: frozenset[Place] = frozenset()
    #: The places whose visits are counted from the start of the run, or from before they could begin.
    exact: frozenset[Place] = frozenset()
    #: Those among them that were tapped during the run, and not visited since.
    late: frozenset[Place] = frozenset()
    tapped = False
    #: The method of the root that runs; None is its forward.
    method: str | None = None
    #: Whether this is the first run of its tree by this method; see `rigging.py`.
    learning = False

    def passed(self, mediator: Mediator, place: Place, stage: str) -> bool:
        """Say whether the run has passed the visit that the mediator would ask for."""
        if self.over:
            return True
        visit, step = 0, mediator.step
        if not place.stepless:
            if self.stepping:
                if step is None:
                    if place in self.earlier:
                        return True
                elif step != self.step:
                    return step < self.step
            elif step is not None:
                visit = step
        return (self.entered if stage is INPUT else self.left).get(place, 0) > visit

    def tap(self) -> None:
        """Put the taps on that this run starts with."""
        rigging = self.rigging
        self.exact = rigging.put(self.method)
        self.tapped = True
        if self.method not in rigging.learned:
            self.learning = True
            self.entered = Learning(rigging, self.left)

    def reach(self, place: Place, mediator: Mediator) -> bool:
        """See to it that the visits of a place are counted. Return False where some may have gone by uncounted."""
        way = self._way(place)
        later = self.stepping and mediator.step is not None and mediator.step > self.step
        if way and not later:
            top, here = way[-1], self.here
            waits = here is not None and here.place is top and here.stage is INPUT
            if not waits and (self.entered.get(top) or (mediator.step is None and top in self.earlier)):
                return False
        self._open(way)
        return True

    def open_way(self, place: Place) -> None:
        """Count the visits of a place from now on, whatever went by before."""
        self._open(self._way(place))

    def open_inside(self, owner: Place) -> None:
        """Count the visits of what a module holds, if it has not begun: who asks for a value inside may ask for them next."""
        here = self.here
        if not self.entered.get(owner) or (here is not None and here.place is owner and here.stage is INPUT):
            self._open([owner])

    def _way(self, place: Place) -> list[Place]:
        """Return the modules around a place from the inside out, up to the first whose visits are counted."""
        way: list[Place] = []
        at: Place | None = place.owner
        while at is not None and at not in self.exact:
            at = self.rigging.above.get(at)  # none around what is no module's: a result, a gradient
            if at is not None:
                way.append(at)
        return way

    def _open(self, way: list[Place]) -> None:
        for holder in reversed(way):
            # One that is known to be called from elsewhere was tapped from the start.
            opened = [tap for tap in self.rigging.open(holder) if tap not in self.exact]
            self.exact = self.exact.union(opened)
            self.late = self.late.union(opened)

    def check_holder(self, place: Place) -> None:
        """Refuse a place that turns out to be called from elsewhere: a visit may have gone by before it was tapped."""
        self.late = self.late.difference((place,))
        holder = self.rigging.above.get(place)
        if holder is not None and self.entered.get(holder, 0) <= self.left.get(holder, 0):
            self.rigging.hoist(place, running(self.entered, self.left))
            raise complaints.hoisted(place, holder)

    def check_skip(self, place: Place) -> None:
        """Refuse to skip a module that runs in any case."""

    def untap(self) -> None:
        """Take the taps off; nobody has business anywhere any more."""
        if self.tapped:
            self.tapped = False
            self.rigging.take_off()
