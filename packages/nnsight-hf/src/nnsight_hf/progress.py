"""Bars for what takes long, and only for that: they appear once it has taken a while.

Loading is transformers' own work, and so is its bar; it is told to wait. The steps of a generation are counted by a
stopping criterion that never stops: unlike a streamer, it may be passed with beams too.
"""

from __future__ import annotations

import builtins
import contextlib
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
import transformers
from transformers import StoppingCriteria, StoppingCriteriaList

#: After how many seconds a bar appears that nobody asked for.
PATIENCE = 2.0


@contextlib.contextmanager
def patient() -> Iterator[None]:
    """Let the bars that transformers shows meanwhile wait: a model that is loaded in a moment needs none."""
    logging: Any = transformers.utils.logging
    # relies on: transformers.utils.logging.set_tqdm_hook, transformers 5.15 to 5.23
    # The hook gets the class of the bar, or an empty shim where bars are switched off, and what it was called with.
    before: Callable[..., Any] | None = None

    def wait(bar: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        kwargs = {"delay": PATIENCE, **kwargs}
        return bar(*args, **kwargs) if before is None else before(bar, args, kwargs)

    before = logging.set_tqdm_hook(wait)
    try:
        yield
    finally:
        logging.set_tqdm_hook(before)


def interactive() -> bool:
    """Say whether somebody sits before this process: a notebook, IPython, or Python's own prompt."""
    return hasattr(sys, "ps1") or hasattr(builtins, "__IPYTHON__")


class Steps(StoppingCriteria):
    """A bar over the steps of a generation, moved by transformers after each of them.

    Args:
        total: how many there will be at most; None if nobody said.
        delay: after how many seconds it appears.
    """

    def __init__(self, total: int | None, delay: float) -> None:
        from tqdm.auto import tqdm

        self._bar = tqdm(total=total, desc="Generating", unit="token", delay=delay)
        self._length: int | None = None

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> Any:
        """Move the bar, and stop no row."""
        length = input_ids.shape[1]
        # The prompt's length is not told, but the first step adds one token to it. Assisted ones may add several later.
        self._bar.update(1 if self._length is None else length - self._length)
        self._length = length
        return torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)

    def close(self) -> None:
        """Take the bar off, or leave it as it is if it is on the page."""
        self._bar.close()


@contextlib.contextmanager
def over_steps(wanted: bool | None, module: torch.nn.Module, options: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Give the options of a generation, with a bar among them if there is to be one.

    Args:
        wanted: show it or not; None shows it to somebody who sits there and has waited for a while.
        module: the model that generates.
        options: those of its `generate`.
    """
    if not (interactive() if wanted is None else wanted):
        yield dict(options)
        return
    config = options.get("generation_config") or getattr(module, "generation_config", None)
    total = options.get("max_new_tokens") or getattr(config, "max_new_tokens", None)
    steps = Steps(total, 0.0 if wanted else PATIENCE)
    criteria = StoppingCriteriaList([*(options.get("stopping_criteria") or ()), steps])
    try:
        yield {**options, "stopping_criteria": criteria}
    finally:
        steps.close()
