"""Reading names from the caller's frame, and binding names in it.

The one idea: `f_locals` is the namespace itself at module level, in a class and under exec(), and a view that writes
through in functions since 3.13. Before that it is a copy for functions, which the interpreter offers to copy back.

relies on: PyFrame_LocalsToFast(frame, 0), which binds the names present in `f_locals` and leaves others; CPython 3.10
to 3.12.
"""

from __future__ import annotations

import ctypes
import inspect
import sys
from collections.abc import Iterable, Mapping, MutableMapping
from sys import gettrace
from types import CodeType, FrameType
from typing import Any

from ..errors import SourceError
from .names import BodyGlobals, Names

_WRITES_THROUGH = sys.version_info >= (3, 13)
# Code with one of these may have handed out, through `locals()`, the very dict that `f_locals` gives before 3.13.
_SHOWS_LOCALS = frozenset(("locals", "vars", "dir", "eval", "exec", "_getframe", "currentframe", "f_locals"))
if not _WRITES_THROUGH:
    _locals_to_fast = ctypes.PYFUNCTYPE(None, ctypes.py_object, ctypes.c_int)(
        ("PyFrame_LocalsToFast", ctypes.pythonapi)
    )


def snapshot(frame: FrameType, names: Iterable[str]) -> dict[str, Any]:
    """Give the values that `names` have in a frame just now; those unbound there, or only global, are left out."""
    here = _namespace(frame)
    if isinstance(here, Names):
        return here.known(names)
    found = {name: here[name] for name in names if name in here}
    if _in_function(frame):
        _forget(frame, here)
    else:
        found.update(_around_class(frame, names, found))
    return found


class Window:
    """The names that one block reads from frames of the code around it; what the code alone decides is decided once."""

    __slots__ = ("forgets", "in_function", "names")

    def __init__(self, code: CodeType, names: Iterable[str]) -> None:
        shows_locals = not _SHOWS_LOCALS.isdisjoint(code.co_names)
        self.in_function = bool(code.co_flags & inspect.CO_OPTIMIZED)
        self.forgets = not _WRITES_THROUGH and not shows_locals
        # A function has its own variables and no others, unless it writes into the dict that stands for them.
        known = not self.in_function or shows_locals
        self.names = tuple(name for name in names if known or _is_local(code, name))

    def snapshot(self, frame: FrameType) -> dict[str, Any]:
        """Give the values that the names have in a frame of the code just now, as the function `snapshot` does."""
        names = self.names
        if not self.in_function:
            return snapshot(frame, names)
        if not names:
            return {}
        here = frame.f_locals
        found = {}
        for name in names:
            if name in here:
                found[name] = here[name]
        if self.forgets and gettrace() is None:
            here.clear()  # as `_forget` does
        return found


def write_back(frame: FrameType, mapping: Mapping[str, Any]) -> None:
    """Bind names in a frame as code in it would: its own and closed-over ones there, a function's others globally."""
    here = _namespace(frame)
    if not _in_function(frame):
        here.update(mapping)
        return
    code = frame.f_code
    local = {name: value for name, value in mapping.items() if _is_local(code, name)}
    here.update(local)
    if not _WRITES_THROUGH:
        _locals_to_fast(frame, 0)
        _forget(frame, here)
    for name in mapping.keys() - local.keys():
        frame.f_globals[name] = mapping[name]


def is_namespace(frame: FrameType, names: Names) -> bool:
    """Say whether what the code of a frame binds at its own level are these names."""
    return not _in_function(frame) and _namespace(frame) is names


def _namespace(frame: FrameType) -> MutableMapping[str, Any]:
    """Give the mapping in which the names of a frame live, or the view or copy that stands for it in a function."""
    here: MutableMapping[str, Any] = frame.f_locals
    if _WRITES_THROUGH or _in_function(frame) or here is frame.f_locals:
        return here
    # 3.12 gives a stale copy of a module's names once a trace function has run in it, if the variable of a
    # comprehension is called like one of them.
    around = frame.f_globals
    if isinstance(around, BodyGlobals) and frame.f_code is around.block.code:
        return around.names
    if here.keys() - set(frame.f_code.co_varnames) <= around.keys():
        return around
    raise SourceError(
        f"{frame.f_code.co_filename}, line {frame.f_lineno}: under a debugger or a coverage tool, Python 3.12 hides "
        "the names of code that exec() runs with locals of its own. Run it without, or give exec() one dict for both"
    )


def _in_function(frame: FrameType) -> bool:
    return bool(frame.f_code.co_flags & inspect.CO_OPTIMIZED)


def _is_local(code: CodeType, name: str) -> bool:
    return name in code.co_varnames or name in code.co_cellvars or name in code.co_freevars


def _around_class(frame: FrameType, names: Iterable[str], found: Mapping[str, Any]) -> dict[str, Any]:
    """Give the names that a class body reads from the function which is running it."""
    free = [name for name in names if name in frame.f_code.co_freevars and name not in found]
    return snapshot(frame.f_back, free) if free and frame.f_back is not None else {}


def _forget(frame: FrameType, here: Mapping[str, Any]) -> None:
    """Empty the copy of a function's locals, which would keep every tensor in it alive until the function returns."""
    if _WRITES_THROUGH or sys.gettrace() is not None:
        return
    if isinstance(here, dict) and _SHOWS_LOCALS.isdisjoint(frame.f_code.co_names):
        here.clear()
