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
    said = (extra or {}).get(TRACE)
    if isinstance(said, (list, tuple)) and len(said) == 2 and isinstance(said[0], str) and isinstance(said[1], int):
        return said[0], said[1]
    return None


def sees_whole(extra: Mapping[str, Any] | None) -> bool:
    """Say whether something looks into a request that has to see its prompt whole, and each step once."""
    return bool(extra) and (TRACE in extra or (STANDING in extra and SALT not in extra))  # type: ignore[operator]
