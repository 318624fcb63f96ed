"""Room for deep structures while they are written.

The one idea: functions that call each other are written one inside the other, and a package of a few hundred of them is
deeper than Python's usual limit, which guards against recursion without end. The limit is one for all threads, so the
last one that needs more puts it back.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

#: Frames beyond those that there are: even on Python 3.10, where each takes stack of C, they fit into a thread's eight MiB.
_FRAMES = 6000
_lock = threading.Lock()
_inside = 0
_before = 0


@contextmanager
def room() -> Iterator[None]:
    """Let Python go deeper than it would, for the time of a block."""
    global _inside, _before
    with _lock:
        if not _inside:
            _before = sys.getrecursionlimit()
        _inside += 1
        sys.setrecursionlimit(max(sys.getrecursionlimit(), _depth() + _FRAMES))
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if not _inside:
                sys.setrecursionlimit(_before)


def _depth() -> int:
    depth, frame = 0, sys._getframe()
    while frame.f_back is not None:
        depth, frame = depth + 1, frame.f_back
    return depth
