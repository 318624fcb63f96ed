"""What `x.data` means in a body that was captured.

The one idea: torch does not count what is changed by way of `.data`, so whoever lends copies to a body, and looks at the
count to know which were edited, gives the two ways to use it another meaning: `meaning.read` and `meaning.check`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class Meaning:
    """What stands for `x.data` where it is read, and what sees `x` before `x.data` is set or deleted."""

    read: Callable[[Any], Any]
    check: Callable[[Any], Any]

    def __init__(self) -> None:
        self.read = lambda value: value.data
        self.check = lambda value: value


meaning = Meaning()


def read(value: Any) -> Any:
    """Return `value.data`."""
    return meaning.read(value)


def check(value: Any) -> Any:
    """Return the value, whose `.data` is about to be set."""
    return meaning.check(value)
