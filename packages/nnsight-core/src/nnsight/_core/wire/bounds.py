"""What reading a message may cost.

The one idea: bytes pay for the work that they cause. Most steps cost what it took to say them; a few can be said in one line
and cost anything: to hash a key costs as much as the key is large once all that it shares is written out, keys with one
hash are all compared with each other, and the indices of a sparse tensor are looked at one by one. These are counted, and a
message that wants more than its length pays for is refused.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Iterator
from types import MemberDescriptorType
from typing import Any

from ..errors import WireError

#: Units of work, some nanoseconds each, that any message may cause; and those for each of its bytes.
_FREE, _EACH = 200_000, 1
#: Keys that lie deeper in each other are none that anybody has; the interpreter would hash them until its stack is full.
_DEEPEST = 100
_HELD_BY_THEMSELVES = frozenset((str, bytes))
#: Hashing these goes no further.
_LEAVES = frozenset((str, bytes, int, float, bool, complex, type(None), range))


class Allowance:
    """What is left of the work that a message may cause.

    Args:
        size: how many bytes it has.
    """

    def __init__(self, size: int) -> None:
        self._left = _FREE + _EACH * size

    def spend(self, units: int) -> None:
        """Raise WireError if so much is not left."""
        self._left -= units
        if self._left < 0:
            raise WireError("these bytes want more work than their length pays for: no value that somebody sends does")

    def keys(self, keys: list[Any]) -> list[Any]:
        """Return keys of a dict, or elements of a set, that can be hashed at a fair price."""
        if _HELD_BY_THEMSELVES.issuperset(map(type, keys)):
            return keys
        weight = max(self._weigh(key) for key in keys)
        found = [hash(key) for key in keys]
        if len(set(found)) < len(found):
            # Python draws no secret for numbers, so that equal hashes can be made to order.
            self.spend(sum(count * count for count in Counter(found).values() if count > 1) * weight)
        return keys

    def _weigh(self, key: Any) -> int:
        """Return how many things hashing a key asks, and spend that."""
        weight, level = 0, [key]
        for _ in range(_DEEPEST):
            weight += len(level)
            inside: list[Any] = []
            for one in level:
                kind: Any = type(one)
                if kind in _LEAVES or kind.__hash__ is object.__hash__:  # which is the place in memory
                    continue
                held = one if kind is tuple else list(parts(one))
                inside += held
                self.spend(1 + len(held))
            if not inside:
                return weight
            level = inside
        raise WireError(f"a key of a dict or an element of a set is nested more than {_DEEPEST} times")


def parts(thing: Any) -> Iterator[Any]:
    """Give what a thing directly holds, without asking it."""
    kind = type(thing)
    if kind in _LEAVES or issubclass(kind, type):
        return
    if issubclass(kind, tuple):
        yield from tuple.__iter__(thing)
    elif issubclass(kind, list):
        yield from list.__iter__(thing)
    elif issubclass(kind, dict):
        for key, value in dict.items(thing):
            yield key
            yield value
    else:
        plain = next((one for one in (set, frozenset, deque) if issubclass(kind, one)), None)
        yield from plain.__iter__(thing) if plain else ()
    try:
        yield from object.__getattribute__(thing, "__dict__").values()
    except AttributeError:
        pass  # it has slots only
    for cls in kind.__mro__:
        for member in vars(cls).values():
            if type(member) is MemberDescriptorType:
                try:
                    yield member.__get__(thing)
                except AttributeError:
                    continue  # it was never set


def is_short(things: Iterable[Any], most: int) -> bool:
    """Whether the text of some things has about `most` characters at most, with all that they share written out."""
    level = list(things)
    for _ in range(_DEEPEST):
        inside: list[Any] = []
        for one in level:
            most -= 4 + (len(one) if isinstance(one, (str, bytes)) else 0)
            if most - len(inside) < 0:
                return False
            inside += parts(one)
        if not inside:
            return True
        level = inside
    return False
