"""How the values of a model lie when it is spread over several processes (tensor parallelism).

`Sharding` is what a family implements for such a model: put the parts of a value together, and take this rank's part of
one again. Bodies then see and write whole values, on every rank. When that is done in a run, and how the ranks are kept
from asking for different things, is `sharded.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, TypeVar, runtime_checkable

from .sites import INPUT, OUTPUT

T = TypeVar("T")


class Together(Protocol):
    """What sees to it that all ranks do something at once: a `Lockstep`, or an engine's forwards."""

    def together(self, doing: str, what: Callable[[], T]) -> T:
        """Do something when all ranks have come to do it, and return what it gives here."""


@runtime_checkable
class Sharding(Protocol):
    """How the values of one model lie on its ranks. All of its methods may be collective: every rank calls them."""

    @property
    def lockstep(self) -> Together:
        """What keeps its ranks together."""

    def gather(self, path: str, stage: str, value: Any) -> Any:
        """Return the whole of a value at a site, of which `value` is this rank's part; itself, if that is the whole.

        Raises:
            RanksError: what lies there cannot be put together.
        """

    def split(self, path: str, stage: str, value: Any, local: Any) -> Any:
        """Return this rank's part of a whole value; `local` is the part that lies there now, None if none does."""

    def read(self, path: str, value: Any) -> Any:
        """Return the whole of a parameter or buffer; any other attribute of a module as it is."""

    def assign(self, path: str, old: Any, new: Any) -> Any:
        """Return what a module is to hold where a whole parameter is assigned to it; anything else as it is."""


def call_whole(sharding: Sharding, path: str, module: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    """Call a module by hand with whole values, and return the whole of what it gives."""

    def call() -> Any:
        mine, named = sharding.split(path, INPUT, (args, kwargs), None)
        return sharding.gather(path, OUTPUT, module(*mine, **named))

    return sharding.lockstep.together(f"calls `{path}`", call)
