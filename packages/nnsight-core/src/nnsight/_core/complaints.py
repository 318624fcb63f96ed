"""What is said when a site cannot be given: what happened, where, why, and what to write instead.

Errors are built here and raised where they happen, so that the code of a run stays readable.
"""

from __future__ import annotations

import linecache
import traceback
from types import FrameType
from typing import TYPE_CHECKING

import torch

from .errors import MissedProviderError, OutOfOrderError
from .sites import Place, site_name

if TYPE_CHECKING:
    from .interleaver import Interleaver
    from .mediator import Mediator


def _asked(mediator: Mediator, place: Place, stage: str) -> str:
    site = site_name(place.path, stage)
    if mediator.step is not None and not place.stepless:
        site += f" of step {mediator.step}" if mediator.run.stepping else f" (visit {mediator.step})"
    if mediator.rows is not None or mediator.order:
        site += f" was asked for by {mediator.name}, and"
    return site


def _standing(run: Interleaver) -> str:
    here = run.here
    if run.over:
        return "the run is over"
    if here is None:
        return "the model has gone on since"
    step = f" in step {run.step}" if run.stepping and run.step_place is not None else ""
    return f"the model now stands at {site_name(here.place.path, here.stage)}{step}"


def passed(mediator: Mediator, place: Place, stage: str) -> MissedProviderError:
    """Return the error for a site that the run has passed, or that a finished run never had."""
    run = mediator.run
    if run.over and place not in run.entered and place not in run.earlier:
        return MissedProviderError(
            f"{_asked(mediator, place, stage)} cannot be given: the run is over and never came there. Ask for it inside "
            "the block, before the model has finished."
        )
    return OutOfOrderError(
        f"{_asked(mediator, place, stage)} has been passed already: {_standing(run)}. Sites are given in the order in "
        "which the model reaches them: ask for this one earlier in the block, and keep its value in a name."
    )


def missed(mediator: Mediator, place: Place, stage: str) -> MissedProviderError:
    """Return the error for a site that was waited for and never came."""
    run = mediator.run
    site = _asked(mediator, place, stage)
    if mediator.step is not None and run.stepping and mediator.step > run.step:
        return MissedProviderError(
            f"{site} never came: the run ended after {run.step + 1} step{'s' if run.step else ''}. Ask for an earlier "
            "step, or let the run take more."
        )
    if mediator.step is not None and not run.stepping and run.entered.get(place):
        return MissedProviderError(
            f"{site} never came: this place was visited {run.entered[place]} time(s) in this run. Ask for an earlier visit."
        )
    return MissedProviderError(f"{site} never came: the run ended without reaching it. {_why_not_called(run, place)}")


def _why_not_called(run: Interleaver, place: Place) -> str:
    holder = run.rigging.above.get(place.owner)
    while holder is not None and holder not in run.entered:
        holder = run.rigging.above.get(holder)
    if holder is not None and isinstance(holder.module, torch.nn.MultiheadAttention):
        return (
            f"`{holder.path}` is a torch.nn.MultiheadAttention, which uses the weights of its parts without calling "
            "them. Ask for its own input and output, or for the operations of its forward (`.source`)."
        )
    if holder is not None and isinstance(
        holder.module, (torch.nn.TransformerEncoder, torch.nn.TransformerEncoderLayer)
    ):
        return (
            f"`{holder.path}` is a torch.nn.{type(holder.module).__name__}, which in eval mode may take torch's fast path "
            "and compute its parts without calling them. Call `torch.backends.mha.set_fastpath_enabled(False)` before."
        )
    return (
        "The module was not called in this run: it may be unused by this forward, lie inside a module that was skipped, "
        "or be called for other inputs only."
    )


def unmet_edit(mediator: Mediator, place: Place, stage: str) -> str:
    """Return the warning for an edit whose site never came."""
    return (
        f"The edit {mediator.name!r} waited for {site_name(place.path, stage)}, which this run never reached: it had "
        "no effect from there on. Trace a part of the model that contains it, or remove the edit."
    )


def unmet_cache(places: list[Place]) -> str:
    """Return the warning for a cache that has nothing in it."""
    paths = ", ".join(f"`{place.path}`" for place in places[:3]) + (", ..." if len(places) > 3 else "")
    return (
        f"A cache of {paths} is empty: the run did not pass there after the cache was made. Make it before the model "
        "comes to them, and of modules that this forward calls."
    )


def barrier(arrived: list[str], parties: int) -> str:
    """Return the message for a barrier that not everybody reached."""
    return (
        f"A barrier for {parties} invokes was reached by {len(arrived)} only ({', '.join(arrived)}) before the run ended. "
        "Call it in each of them, at a site that the run reaches, or make the barrier for fewer."
    )


def never_bound(name: str, reader: str, writers: list[str]) -> str:
    """Return the message for a name that one invoke reads and no other has bound."""
    return (
        f"name '{name}' is read by {reader} and would be bound by {' or '.join(writers)}, which ended without binding it. "
        "Bind it on every path, or read it only where it is bound."
    )


def bound_often(name: str, reader: str, writer: str) -> str:
    """Return the message for a name that one invoke reads and the several runs of another bind."""
    return (
        f"name '{name}' is read by {reader} and bound by {writer}, which runs once for each of several continuations, so "
        "there are several values. Save the name, and use the list of them in another trace."
    )


def note_where(error: BaseException, run: Interleaver, frame: FrameType, debugging: bool) -> None:
    """Note on an error that left a block which block it was, where the model stood, and how, when debugging is on."""
    if not hasattr(error, "add_note"):  # Python 3.10
        return
    line = linecache.getline(frame.f_code.co_filename, frame.f_lineno, frame.f_globals).strip()
    standing = _standing(run) if run.started else "the model had not started"
    error.add_note(f"nnsight: in `{line or 'with ...:'}` (line {frame.f_lineno}); {standing}.")
    inside = getattr(run.model, "gr_frame", None)
    if debugging and inside is not None:
        stack = "".join(traceback.format_stack(inside))
        error.add_note(f"The model's stack, outermost call first:\n{stack}")


def hoisted(place: Place, holder: Place) -> OutOfOrderError:
    """Return the error for a place that is called from elsewhere than inside the module that holds it."""
    return OutOfOrderError(
        f"`{place.path}` is called while `{holder.path}`, which holds it, is not running, so a visit of it may have gone "
        "by before this block asked for it. nnsight has learned this now: run the trace again, and it is counted from "
        "the start."
    )
