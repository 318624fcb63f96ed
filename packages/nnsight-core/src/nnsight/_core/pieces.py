"""What is new in saved values since they were looked at last, in pieces: what travels while a block still runs.

The one idea: a piece says that a name, or a place in the list or dict of that name, has this value now. Whatever is new since
the last look is a piece: a saved value under its name, and each item by which a list or dict has grown. What changed without
that is not looked for: the result tells.
"""

from __future__ import annotations

import copy
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, NamedTuple

#: How deep lists and dicts in one another are looked into; deeper ones, and those that hold themselves, come as they are.
_DEPTH = 4


class Piece(NamedTuple):
    """A value that is new.

    Attributes:
        name: the name it is saved under.
        at: where in that name's value it belongs: `()` if it is the whole, `(3,)` for item 3 of a list, `("mlp", 3)` for item
            3 of the list under "mlp" in a dict.
        value: the value.
    """

    name: str
    at: tuple[Any, ...]
    value: Any

    def added_to(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Return values, by name, with this one among them; those that were given stay as they are."""
        return {**values, self.name: _with(values.get(self.name), self.at, self.value)}


@dataclass
class _Known:
    """A list or dict as it was last looked at: how long, and under which of its keys there are lists or dicts."""

    itself: Any
    length: int
    inner: dict[Any, _Known] = field(default_factory=dict)


class Pieces:
    """Finds what is new, look by look."""

    def __init__(self) -> None:
        self._values: dict[str, Any] = {}
        self._known: dict[str, _Known | None] = {}

    def look(self, values: Mapping[str, Any]) -> Iterator[Piece]:
        """Give what is new since the last look, which must have been gone through to its end."""
        for name, value in values.items():
            if name not in self._values or self._values[name] is not value:
                self._values[name] = value
                yield Piece(name, (), value)
                self._known[name] = _know(value, _DEPTH)
            elif known := self._known[name]:
                self._known[name] = yield from self._look_into(name, (), value, known, _DEPTH)

    def _look_into(
        self, name: str, at: tuple[Any, ...], value: Any, known: _Known, depth: int
    ) -> Generator[Piece, None, _Known | None]:
        """Give what is new in a list or dict; return how it is now."""
        if value is not known.itself or len(value) < known.length:
            yield Piece(name, at, value)
            return _know(value, depth)
        for key, inner in tuple(known.inner.items()):
            now = yield from self._look_into(name, (*at, key), _item(value, key), inner, depth - 1)
            if now is None:
                del known.inner[key]
            else:
                known.inner[key] = now
        for key in _newest(value, len(value) - known.length):
            yield Piece(name, (*at, key), value[key])
            if (inner_known := _know(value[key], depth - 1)) is not None:
                known.inner[key] = inner_known
        known.length = len(value)
        return known


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
        yield from list(islice(reversed(value), count))[::-1]
    else:
        yield from range(len(value) - count, len(value))


def _with(holder: Any, at: tuple[Any, ...], value: Any) -> Any:
    if not at:
        return value
    made, key = copy.copy(holder), at[0]
    if isinstance(made, list) and key == len(made):
        made.append(value)
    else:
        made[key] = _with(made[key], at[1:], value) if len(at) > 1 else value
    return made
