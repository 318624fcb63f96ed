"""The table of what can travel: for each kind of step, who writes it and who reads it.

The one idea: a file about one kind of thing holds both directions of it, side by side, and registers them here. What reads
results may use the kinds that are `safe` only: those that build data and run nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from .decoder import Decoder
    from .encoder import Encoder

#: Writes the steps for a thing, and returns the number of the one that makes it.
Write = Callable[["Encoder", Any], int]
#: Makes what a step says.
Make = Callable[["Decoder", list[Any]], Any]
W = TypeVar("W", bound=Write)
M = TypeVar("M", bound=Make)

WRITERS: dict[type, Write] = {}
#: The same, for whatever inherits from these types.
FAMILIES: dict[type, Write] = {}
MAKERS: dict[str, Make] = {}
SAFE: set[str] = set()


def writes(*types: type, family: bool = False) -> Callable[[W], W]:
    """Register who writes things of these very types; with `family`, also of types that inherit from them."""

    def register(write: W) -> W:
        WRITERS.update(dict.fromkeys(types, write))
        if family:
            FAMILIES.update(dict.fromkeys(types, write))
        return write

    return register


def makes(kind: str, *, safe: bool = False) -> Callable[[M], M]:
    """Register who reads steps of a kind; `safe` if that runs no code, whatever the step says."""

    def register(make: M) -> M:
        assert kind not in MAKERS, f"two files make {kind!r}"
        MAKERS[kind] = make
        if safe:
            SAFE.add(kind)
        return make

    return register
