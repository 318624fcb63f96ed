"""What a request says of nnsight in its `SamplingParams.extra_args`: names, and plain values under them.

The front end writes them, the scheduler and the workers read them. Imports nothing, since all three do.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

#: The names of the standing edits that the request has: what a sender writes, as a name or as a list of them.
STANDING = "nnsight"
#: Written by the front end where each token's row is changed by itself alone: what the edits are, in a few characters.
SALT = "nnsight_salt"
#: Which body of which trace the request is for: `[trace, number]`.
TRACE = "nnsight_trace"


#: What most are stands first: to ask whether something is a mapping takes long, and of each request it is asked often.
_MAPPING = (dict, Mapping)
_PLAIN = (str, bytes, bool, int, float, type(None))


def check(extra: Any) -> None:
    """Refuse what an engine in another process could not be told, or would not survive.

    Raises:
        TypeError: it is no dictionary of plain values.
    """
    if extra is not None and not isinstance(extra, dict):
        raise TypeError(f"`extra_args` of a request is a dictionary, not {type(extra).__name__}")
    for name, value in (extra or {}).items():
        if not isinstance(name, str):
            raise TypeError(f"`extra_args` of a request has names that are texts, not {type(name).__name__}")
        if not _is_plain(value, 20):
            raise TypeError(
                f"`extra_args[{name!r}]` of a request holds something else than plain values (texts, numbers, bytes, and "
                "lists and dictionaries of them)"
            )


def _is_plain(value: Any, deep: int) -> bool:
    if type(value) in _PLAIN:
        return True
    if not deep:
        return False
    if type(value) in (list, tuple):
        return all(_is_plain(one, deep - 1) for one in value)
    if type(value) is dict:
        return all(isinstance(name, str) and _is_plain(one, deep - 1) for name, one in value.items())
    return False


def names_in(extra: Mapping[str, Any] | None) -> list[str]:
    """Return the names of the standing edits that a request asks for.

    Raises:
        TypeError: there is something else.
    """
    asked = (extra or {}).get(STANDING)
    if asked is None:
        return []
    names = [asked] if isinstance(asked, str) else asked
    if not isinstance(names, (list, tuple)) or not all(isinstance(name, str) for name in names):
        raise TypeError(f"{STANDING!r} of a request is the name of a standing edit, or a list of names, not {asked!r}")
    return list(names)


def trace_in(extra: Mapping[str, Any] | None) -> tuple[str, int] | None:
    """Return the trace that a request is for, and the number of its body there."""
    said = extra.get(TRACE) if isinstance(extra, _MAPPING) else None
    if isinstance(said, (list, tuple)) and len(said) == 2 and isinstance(said[0], str) and isinstance(said[1], int):
        return said[0], said[1]
    return None


def sees_whole(extra: Mapping[str, Any] | None) -> bool:
    """Say whether something looks into a request that has to see its prompt whole, and each step once."""
    return (
        extra is not None
        and isinstance(extra, _MAPPING)
        and (TRACE in extra or (STANDING in extra and SALT not in extra))
    )
