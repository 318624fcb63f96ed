"""How a run ends: well, given up, or with somebody's error.

A run that ends well lets every body that still waits know it. A run that is given up is unwound from the inside out:
the bodies first, then the model, whose `finally` blocks run. Afterwards nothing of it is left on the model, and whoever
still holds the run holds no values by it.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

from . import complaints
from .errors import UnmetSiteWarning
from .mediator import Abandon, BodyMediator
from .sites import Place
from .taps import running
from .turns import Worker, adopt, getcurrent, hop, turn

if TYPE_CHECKING:
    from .interleaver import Interleaver


def end_bodies(run: Interleaver) -> None:
    """Let every body that still waits know that the run is over."""
    run.settle()
    met = {body.order for body in run.bodies if body.done}
    for body in run.bodies:
        if not body.done and body.tree is not None:
            place, stage = body.place, body.stage
            # One replay that met its sites is enough. A method that never calls the model has nothing to edit.
            if place is not None and body.order not in met and (run.entered or run.earlier):
                met.add(body.order)
                warnings.warn(complaints.unmet_edit(body, place, stage), UnmetSiteWarning, stacklevel=3)
            _close_body(run, body)
        while not body.done:
            if body in run.parked:
                run.parked.remove(body)
            body.served = False
            body.resume()
            run.settle()


def end_watchers(run: Interleaver) -> None:
    """Let watchers know that the run is over, and say so where one saw nothing."""
    blind: dict[int, list[Place]] = {}
    for place, watchers in run.watchers.items():
        for watcher in watchers:
            if not watcher.seen:
                blind.setdefault(id(watcher), []).append(place)
    _dismiss_watchers(run)
    for places in blind.values():
        warnings.warn(complaints.unmet_cache(places), UnmetSiteWarning, stacklevel=3)


def _dismiss_watchers(run: Interleaver) -> None:
    for watcher in {watcher for watchers in run.watchers.values() for watcher in watchers}:
        watcher.end()
    run.watchers.clear()


def close(run: Interleaver) -> None:
    """Give up what is left of the run: the bodies first, then the model. Safe to call twice."""
    run.closing = True
    run.dismiss()
    try:
        for body in run.bodies:
            if not body.done:
                _close_body(run, body)
        _leave_model(run)
    finally:
        run.over = True
        run.here = None
        run.untap()
        if run.watchers:
            _dismiss_watchers(run)


def _leave_model(run: Interleaver) -> None:
    model = run.model
    if not isinstance(model, Worker) or model is getcurrent():
        return
    try:
        # If another thread has to unwind it (a generator that was collected elsewhere), greenlet sees to that.
        if model.standing and adopt(model):
            turn(run.thread, lambda: model.throw(Abandon))
            if run.error is not None and not isinstance(run.error, Abandon):
                raise run.error
    except Abandon:
        pass
    finally:
        run.error = None
        running.pop(model, None)


def _close_body(run: Interleaver, body: BodyMediator) -> None:
    greenlet = body.worker
    if greenlet is None or not greenlet.standing:
        return
    was, run.closing = run.closing, True
    try:
        if adopt(greenlet):
            hop(greenlet.switch)
    finally:
        run.closing = was


def forget(run: Interleaver) -> None:
    """Let go of bodies and values when all is over: whoever holds on to the run is not to hold on to those."""
    run.over = True
    run.result = run.failed = None
    for body in run.bodies:
        body.here = body.greenlet = body.worker = None  # whose context names the body
    run.bodies.clear()
    run.watchers.clear()
    run.stack = ()
