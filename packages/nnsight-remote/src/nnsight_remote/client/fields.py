"""What stands in a server's answer, field by field: it is what it should be, or a TypeError or ValueError.

The one idea: whoever reads an answer does so under `connection.understood`, which makes these errors one of ours.
"""

from __future__ import annotations

import re
from typing import Any

from .protocol import STATES

_ID = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.:-]{0,127}")
_MOST = 1 << 53


def text(said: Any) -> str:
    """Read text. Halves of characters, which JSON can hold and nothing can print, are replaced."""
    if not isinstance(said, str):
        raise TypeError(f"{_short(said)} is no text")
    return said.encode("utf-8", "replace").decode()


def number(said: Any) -> int:
    """Read a whole number that counts something."""
    if type(said) is not int:
        raise TypeError(f"{_short(said)} is no whole number")
    if not 0 <= said < _MOST:
        raise ValueError("a number counts nothing")
    return said


def seconds(said: Any) -> float:
    """Read a time."""
    if isinstance(said, bool) or not isinstance(said, (int, float)) or not 0 <= said < _MOST:
        raise TypeError(f"{_short(said)} is no time")
    return float(said)


def identity(said: Any) -> str:
    """Read the id of a job: it becomes a part of addresses."""
    if not isinstance(said, str) or not _ID.fullmatch(said):
        raise ValueError(f"{_short(said)} is no id of a job")
    return said


def state(said: Any) -> str:
    """Read a state of a job."""
    if said not in STATES:
        raise ValueError(f"{_short(said)} is no state of a job")
    return str(said)


def name(said: Any) -> str:
    """Read the name of a model: it becomes a header."""
    if not (isinstance(said, str) and said.isascii() and said.isprintable() and said == said.strip()):
        raise ValueError(f"{_short(said)} is no name of a model")
    return said


def table(said: Any) -> dict[str, Any]:
    """Read values by name."""
    if not isinstance(said, dict):
        raise TypeError(f"{_short(said)} is no table")
    return said


def rows(said: Any) -> list[Any]:
    """Read a list."""
    if not isinstance(said, list):
        raise TypeError(f"{_short(said)} is no list")
    return said


def _short(said: Any) -> str:
    return repr(said)[:100] if isinstance(said, (str, int, float, type(None))) else f"a {type(said).__name__}"
