"""`gather`: a model's memory in large pages, so that a process is forked from it in no time.

The one idea: forking copies an entry for each page, and ending a process gives each back, so what both cost grows with the
model: for every gigabyte 262,144 small pages, or 512 large ones. The kernel is asked once, when the model is loaded, to
put together what lies in small ones. Nothing else changes: a child that writes still copies small pages only.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator

#: Of the kernel's interface, Linux 6.1 and later; others refuse it.
_MADV_COLLAPSE = 25
_LARGE = 2 << 20


def gather() -> int:
    """Put this process's memory into large pages as far as the kernel does that; return how many bytes lie in some now."""
    if sys.platform != "linux":
        return 0
    advise = ctypes.CDLL(None).madvise
    advise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    # What is refused (nothing lies there, no large page is free, an older kernel) stays as it is.
    return sum(_LARGE for page in _pages() if advise(page, _LARGE, _MADV_COLLAPSE) == 0)


def _pages() -> Iterator[int]:
    """The places of the large pages that would fit into the private memory of this process that no file lies behind."""
    with open("/proc/self/maps") as file:
        lines = [line.split() for line in file]
    for place, access, _, _, _, *name in lines:
        if access == "rw-p" and name in ([], ["[heap]"]):
            start, end = (int(number, 16) for number in place.split("-"))
            yield from range(-(-start // _LARGE) * _LARGE, end - _LARGE + 1, _LARGE)
