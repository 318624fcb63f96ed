"""From steps to values.

The one idea: the list of steps is gone through once; each makes one thing from things that were made before. So no bytes
can make it recurse or go round, and what they can make it build is no larger than they are.
"""

from __future__ import annotations

import platform
from collections.abc import Callable
from typing import Any

from ..errors import WireError
from . import kinds
from .bounds import Allowance
from .format import Buffer, unpack
from .texts import Received


class Decoder:
    """Reads one message.

    Args:
        data: the bytes.
        expected: the kinds of message that it may be.
        trusted: whether it may build functions, classes and whatever they need. Otherwise only data is made.
    """

    def __init__(self, data: Buffer, *expected: str, trusted: bool = False) -> None:
        self.document, self.buffers = unpack(data, expected)
        self.trusted = trusted
        self.allowance = Allowance(memoryview(data).nbytes)
        self.made: list[Any] = []
        about = self.document.get("about", {})
        self.about: dict[str, Any] = about if isinstance(about, dict) else {}
        #: What other files keep for the length of one message, each under a name of its own.
        self.kept: dict[str, Any] = {}
        #: What fills the things that were made empty, by the numbers of their steps.
        self.open: dict[int, Callable[[Any], None]] = {}
        self._taken: set[int] = set()
        self.files = Received(self.document.get("files", []) if trusted else [])

    def read(self) -> Any:
        """Go through the steps, and return what the message is about."""
        nodes = self.document.get("nodes")
        if not isinstance(nodes, list):
            raise WireError("the steps in these bytes are no list")
        for number, step in enumerate(nodes):
            self.made.append(self._make(number, step))
        return self.value(self.document.get("root"))

    def value(self, said: Any) -> Any:
        """Return what stands for a value: itself, or what an earlier step made."""
        if type(said) is not list:
            if type(said) is dict:
                raise WireError("an object of JSON stands where a value was expected")
            return said
        if len(said) == 1 and type(said[0]) is int and 0 <= said[0] < len(self.made):
            return self.made[said[0]]
        raise WireError(f"a step refers to {_shown(said)}, which no earlier step has made")

    def values(self, said: Any) -> list[Any]:
        """Return what a list of values stands for."""
        if type(said) is not list:
            raise WireError("something else stands where a list of values was expected")
        return [self.value(one) for one in said]

    def pairs(self, said: Any) -> list[tuple[Any, Any]]:
        """Return keys and values, that are written one after the other."""
        flat = self.values(said)
        if len(flat) % 2:
            raise WireError("a key has no value")
        return list(zip(flat[::2], flat[1::2]))

    def keys(self, said: Any) -> list[Any]:
        """Return values that are to be hashed."""
        return self.allowance.keys(self.values(said))

    def items(self, said: Any) -> list[tuple[Any, Any]]:
        """Return pairs whose keys are to be hashed."""
        pairs = self.pairs(said)
        self.allowance.keys([key for key, _ in pairs])
        return pairs

    def fillable(self, thing: Any, step: list[Any], at: int, fill: Callable[[Any], None]) -> Any:
        """Return a thing that is filled with what its step has at `at`, or by a later step."""
        if len(step) > at:
            fill(step[at])
        else:
            self.open[len(self.made)] = fill
        return thing

    def buffer(self, number: Any) -> memoryview:
        """Return a buffer, which is one step's: taken again and again, its bytes would be copied as often."""
        if type(number) is not int or not 0 <= number < len(self.buffers) or number in self._taken:
            raise WireError("a step names a buffer that is not there, or is another step's")
        self._taken.add(number)
        return self.buffers[number]

    def _make(self, number: int, step: Any) -> Any:
        kind = step[0] if isinstance(step, list) and step else None
        make = kinds.MAKERS.get(kind) if isinstance(kind, str) else None
        if make is None:
            raise WireError(f"step {number} is of the kind {_shown(kind)}, which this nnsight does not know")
        if not self.trusted and kind not in kinds.SAFE:
            raise WireError(
                f"what arrived holds code (step {number}, {kind!r}), and data only is read from a sender that is not "
                "trusted. Let the block save tensors and plain values, or say that you trust the sender"
            )
        try:
            return make(self, step)
        except WireError:
            raise
        except SyntaxError as error:
            raise WireError(
                f"what was written for Python {self.about.get('python', '?')} is no Python {platform.python_version()}: "
                f"{error}. Use the same version at both ends, or write it as both understand it"
            ) from error
        except RecursionError as error:
            raise WireError(f"step {number} ({kind}) goes too deep") from error
        except Exception as error:  # whatever hostile bytes, or code that does not fit here, lead to
            said = f"{type(error).__name__}: {error}"[:_LONGEST]
            raise WireError(f"step {number} ({kind}) cannot be made: {said}") from error


_LONGEST = 2000  # an error may quote what it was given


def _shown(said: Any) -> str:
    # Not what is inside of it: that may be too deep to be shown.
    return repr(said)[:40] if isinstance(said, (str, int, float)) else f"a {type(said).__name__}"


@kinds.makes("fill", safe=True)
def _fill(decoder: Decoder, step: list[Any]) -> Any:
    _, number, content = step
    fill = decoder.open.pop(number, None)
    if fill is None:
        raise WireError("something is to be filled that was not left open")
    fill(content)
    return decoder.made[number]
