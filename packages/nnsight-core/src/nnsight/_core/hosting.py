"""`Shareable`: a model whose runs an engine serves, many at once, as a server sees it that holds the model.

One idea: the engine cannot be forked, and what is around it can. The model without weights is forked for each job, and the
copies hand what their blocks trace to one engine, in a process of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, runtime_checkable


@runtime_checkable
class Shareable(Protocol):
    """What a family implements whose runs an engine serves. The model is made without starting it."""

    def _share(self, begin: Callable[[], None], close_in: Callable[[], None]) -> int:
        """Start the engine in a process of its own, and return when it stands by.

        Args:
            begin: called in that process first: it lets go of what belongs to this one.
            close_in: called in it, and in those that it has started, when it needs no more than bodies may have.

        Returns:
            The number of a file that can be read when the engine has ended, and not before.
        """

    def _join(self) -> None:
        """Prepare this process, which was forked for one job and is not confined yet, to use the engine."""
