"""What a block saves, handed over piece by piece while it runs. This runs beside the user's code, in its process.

The one idea: a piece says that a name, or a place in the list or dict of that name, has this value now. Whatever is new since
the last look is a piece: a saved value under its name, and each item by which a list or dict has grown. What changed without
that is not looked for: the result tells. A piece lies in a file before the server is told of it, and if there is no room for
it, or the server wants no more, the block goes on without.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from nnsight.plugin import encode_message

#: How deep lists and dicts in one another are looked into; deeper ones, and those that hold themselves, come as they are.
_DEPTH = 4
Place = tuple[Any, ...]


@dataclass
class _Known:
    """A list or dict as it was last looked at: how long, and under which of its keys there are lists or dicts."""

    itself: Any
    length: int
    inner: dict[Any, _Known] = field(default_factory=dict)


class Pieces:
    """Writes pieces into a file.

    Args:
        file: where they go, one after the other.
        told: a pipe, which gets the size of each piece in a line of its own, behind a `!` if it could not be written.
    """

    def __init__(self, file: int, told: int) -> None:
        self._file = file
        self._told = told
        self._over = False
        self._values: dict[str, Any] = {}
        self._known: dict[str, _Known | None] = {}

    def look(self, values: Mapping[str, Any]) -> None:
        """Hand over what is new. Raises WireError for a value that cannot travel."""
        for name, value in values.items():
            if self._over:
                return
            if name not in self._values or self._values[name] is not value:
                self._values[name] = value
                self._hand_over(name, (), value)
                self._known[name] = _know(value, _DEPTH)
            elif known := self._known[name]:
                self._known[name] = self._look_into(name, (), value, known, _DEPTH)

    def _look_into(self, name: str, at: Place, value: Any, known: _Known, depth: int) -> _Known | None:
        """Hand over what is new in a list or dict; return how it is now."""
        if value is not known.itself or len(value) < known.length:
            self._hand_over(name, at, value)
            return _know(value, depth)
        for key, inner in tuple(known.inner.items()):
            now = self._look_into(name, (*at, key), _item(value, key), inner, depth - 1)
            if now is None:
                del known.inner[key]
            else:
                known.inner[key] = now
        for key in _newest(value, len(value) - known.length):
            self._hand_over(name, (*at, key), value[key])
            if (inner_known := _know(value[key], depth - 1)) is not None:
                known.inner[key] = inner_known
        known.length = len(value)
        return known

    def _hand_over(self, name: str, at: Place, value: Any) -> None:
        if self._over:
            return
        called = f"`{name}`" + "".join(f"[{key!r}]" for key in at)
        data = encode_message("value", {"name": name, "at": at, "value": value}, called)
        said = b"%d\n"
        try:
            _write(self._file, data)
        except OSError:  # no room: the server knows whose limit that is, and tells
            said, self._over = b"!%d\n", True
        try:
            _write(self._told, said % len(data))
        except OSError:  # the server wants no more
            self._over = True


def _know(value: Any, depth: int) -> _Known | None:
    if not isinstance(value, (list, dict)) or not depth:
        return None
    items = value.items() if isinstance(value, dict) else enumerate(value)
    inner = ((key, _know(item, depth - 1)) for key, item in items if isinstance(item, (list, dict)))
    return _Known(value, len(value), {key: known for key, known in inner if known is not None})


def _item(value: Any, key: Any) -> Any:
    # Not `value[key]`: a defaultdict would make what was removed.
    return dict.get(value, key) if isinstance(value, dict) else value[key]


def _newest(value: Any, count: int) -> Iterator[Any]:
    """Give the keys of the last items of a list or dict."""
    if isinstance(value, dict):
        return reversed(list(islice(reversed(value), count)))
    return iter(range(len(value) - count, len(value)))


def _write(file: int, data: bytes) -> None:
    left = memoryview(data)
    while left:
        left = left[os.write(file, left) :]
