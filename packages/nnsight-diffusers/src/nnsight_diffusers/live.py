"""Which run of a pipeline the code at work is part of, and which runs are alive in this thread.

The model's side has a context of its own, in which its run is `here`. A body has not: it asks for the run that began last
in its thread and has not ended.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from contextvars import ContextVar
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nnsight_diffusers.running import Run

#: Whether a scan is made, which computes nothing.
faking: ContextVar[bool] = ContextVar("nnsight_diffusers_faking", default=False)

#: The run whose model is at work.
here: ContextVar[Run | None] = ContextVar("nnsight_diffusers_run", default=None)


class _Alive(threading.local):
    def __init__(self) -> None:
        self.runs: list[Run] = []


_alive = _Alive()


def begin(run: Run) -> None:
    """Hear that a run has begun in this thread."""
    _alive.runs.append(run)


def end(run: Run) -> None:
    """Hear that it is over."""
    _alive.runs.remove(run)


def latest() -> Run | None:
    """Return the run that began last in this thread, if it is not over."""
    return _alive.runs[-1] if _alive.runs else None


@contextlib.contextmanager
def nobody() -> Iterator[None]:
    """Let the code in a block be part of no run."""
    token = here.set(None)
    try:
        yield
    finally:
        here.reset(token)
