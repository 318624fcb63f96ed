"""An engine in processes of its own, which streams what it makes or is waited for.

    ownprocess.py   vLLM's `AsyncLLM`, from its start to its end
    background.py   the thread in which it is spoken to
    serving.py      the requests of one trace there, from the first that goes in to what the bodies saved
    looks.py        what bodies save while they run
    stream.py       what the one who wrote the trace holds of it: outputs as they come, and the end

The engine in the process of whoever runs it is `nnsight_vllm.engine`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..engine import SyncEngine
from .ownprocess import OwnProcess
from .stream import Stream

__all__ = ["OwnProcess", "Stream", "engine_for"]


def engine_for(mode: str, options: Mapping[str, Any], turn_seconds: float) -> SyncEngine | OwnProcess:
    """Return an engine, which has not been started.

    Args:
        mode: "sync" for one whose traces are waited for, "async" for one that streams them.
        options: of the engine.
        turn_seconds: how long one turn of a body may take; 0 for as long as it likes.
    """
    from vllm import envs

    if mode not in ("sync", "async"):
        raise ValueError(f"mode is 'sync' or 'async', not {mode!r}")
    if mode == "sync" and not envs.VLLM_ENABLE_V1_MULTIPROCESSING:
        return SyncEngine(options, turn_seconds)
    return OwnProcess(options, turn_seconds, waits=mode == "sync")
