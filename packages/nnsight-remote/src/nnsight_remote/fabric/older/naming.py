"""Names in a pickle of things that are not here, as pickle itself writes a class: by module and name.

The one idea: pickle looks a class up before it writes its name, so it is given another thing of the same length to write, a
persistent name, which then becomes the class's. The servers of that time admit few modules in a payload, so nothing that
looks names up at the other end (`pkgutil.resolve_name`) may stand there.
"""

from __future__ import annotations

import pickle

from ..stand_ins import Path

_BETWEEN = "\0\0"


def placeholder(path: Path) -> str:
    """Return the persistent name that stands for a path; always another object, or pickle would refer to the first."""
    module, _, name = path.path.partition(":")
    return f"{module}{_BETWEEN}{name}"


def named(data: bytes, paths: list[Path]) -> bytes:
    """Return a pickle, of protocol 4, with the names in place of what stands for them."""
    for path in paths:
        module, _, name = (part.encode() for part in path.path.partition(":"))
        between = _BETWEEN.encode()
        # The string stays memoized, so that the numbers of what follows do not change; frames keep their lengths.
        stands = _string(module + between + name) + pickle.MEMOIZE + pickle.BINPERSID
        names = _string(module) + pickle.MEMOIZE + _string(name) + pickle.STACK_GLOBAL
        data = data.replace(stands, names)
    return data


def _string(text: bytes) -> bytes:
    return pickle.SHORT_BINUNICODE + bytes([len(text)]) + text
