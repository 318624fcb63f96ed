"""The end of an engine's process when the one that started it is gone.

A process that is killed outright tells nobody, and vLLM's engine would wait for its requests for ever, with all of its
memory. Its workers watch it; this has it watch whoever started it.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable

#: Seconds that an engine has to end by itself.
_GRACE = 10.0


def end_with_parent() -> None:
    """In an engine's own process, watch for the end of the process that started it.

    relies on: an engine's process is one of `multiprocessing` and its name begins with "EngineCore", vLLM 0.30 to 0.33.
    """
    parent = multiprocessing.parent_process()
    if parent is not None and multiprocessing.current_process().name.startswith("EngineCore"):
        threading.Thread(target=_watch, args=(parent.join,), name="nnsight parent", daemon=True).start()


def _watch(until_parent_ends: Callable[[], None]) -> None:
    until_parent_ends()
    os.kill(os.getpid(), signal.SIGTERM)
    threading.Event().wait(_GRACE)
    os._exit(1)
