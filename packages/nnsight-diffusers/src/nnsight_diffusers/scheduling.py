"""A pipeline's scheduler while it runs: its steps pass through a place in the tree, and in a scan it computes nothing.

Schedulers look up where they are in tables of numbers, which fake tensors have not got. So in a scan they prepare with real
ones, and what they would compute has the shape of what they are given.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

from torch.utils._python_dispatch import _disable_current_modes

#: What a scheduler makes of a sample, beside a step: something of the sample's shape.
_SHAPED = ("scale_model_input", "add_noise", "scale_noise")


@contextlib.contextmanager
def watched(scheduler: Any, place: Callable[..., Any], fake: bool) -> Iterator[Callable[..., Any]]:
    """Let the steps of a scheduler be calls of something else, and give what a step was before.

    Args:
        scheduler: the scheduler.
        place: what is called instead.
        fake: compute nothing.
    """
    own = vars(scheduler)
    before = dict(own)
    step = scheduler.step
    # Pipelines look at what a step takes, so it keeps its signature.
    own["step"] = functools.wraps(step)(lambda *args, **kwargs: place(*args, **kwargs))
    if fake:
        step = _without_numbers
        own["set_timesteps"] = _for_real(scheduler.set_timesteps)
        own.update({name: _unchanged(getattr(scheduler, name)) for name in _SHAPED if hasattr(scheduler, name)})
    try:
        yield step
    finally:
        if fake:
            own.clear()  # nothing of what it noted meanwhile is true
        own.pop("step", None)
        own.update(before if fake else {name: before[name] for name in ("step",) if name in before})


def _for_real(method: Callable[..., Any]) -> Callable[..., Any]:
    """Return a method that computes with numbers, whatever the mode."""

    @functools.wraps(method)
    def for_real(*args: Any, **kwargs: Any) -> Any:
        # relies on: torch.utils._python_dispatch._disable_current_modes, torch 2.6 to 2.13
        with _disable_current_modes():
            return method(*args, **kwargs)

    return for_real


def _unchanged(method: Callable[..., Any]) -> Callable[..., Any]:
    """Return a method that returns the first thing that it is given."""

    @functools.wraps(method)
    def unchanged(*args: Any, **kwargs: Any) -> Any:
        return args[0] if args else next(iter(kwargs.values()))

    return unchanged


def _without_numbers(
    prediction: Any, timestep: Any, sample: Any, *args: Any, return_dict: bool = True, **kwargs: Any
) -> Any:
    """Stand in for a step: what it makes has the shape of the sample."""
    if not return_dict:
        return (sample,)
    from diffusers.schedulers.scheduling_utils import SchedulerOutput

    return SchedulerOutput(prev_sample=sample)
