"""The bar over the steps of a run: diffusers' own, which waits before it appears, and says when the last step is over."""

from __future__ import annotations

import builtins
import functools
import sys
from collections.abc import Callable
from typing import Any

#: After how many seconds a bar appears that nobody asked for.
PATIENCE = 2.0


def interactive() -> bool:
    """Say whether somebody sits before this process: a notebook, IPython, or Python's own prompt."""
    return hasattr(sys, "ps1") or hasattr(builtins, "__IPYTHON__")


def options_of(pipeline: Any, wanted: bool | None) -> dict[str, Any]:
    """Return with what a pipeline makes its bar.

    Args:
        pipeline: the pipeline, whose own settings hold unless somebody asks for something else now.
        wanted: show it or not; None shows it to somebody who sits there and has waited for a while.
    """
    # relies on: DiffusionPipeline._progress_bar_config, diffusers 0.40 to 0.42
    own = dict(getattr(pipeline, "_progress_bar_config", None) or {})
    if wanted is not None:
        return {**own, "disable": not wanted}
    return own or {"disable": not interactive(), "delay": PATIENCE}


def reporting(make: Callable[..., Any], ended: Callable[[], None]) -> Callable[..., Any]:
    """Return a pipeline's `progress_bar` that makes bars which say when they are closed."""

    @functools.wraps(make)
    def progress_bar(*args: Any, **kwargs: Any) -> Any:
        bar = make(*args, **kwargs)
        close = bar.close

        def close_and_tell() -> None:
            close()
            ended()

        bar.close = close_and_tell
        return bar

    return progress_bar
