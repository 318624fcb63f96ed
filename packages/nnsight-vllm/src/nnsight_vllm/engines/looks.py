"""What bodies save while they run, asked for output by output.

One idea: one question is on its way at a time, for all traces that somebody listens to. So an engine is asked once a step at
most, however many they are; and each answer holds at least what was saved by the step whose tokens it comes with.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from ..engine import that_counts

Ask = Callable[..., Awaitable[list[Any]]]


class Looks:
    """Asks workers for what is new.

    Args:
        ask: all workers, for what a method of theirs returns.
    """

    def __init__(self, ask: Ask) -> None:
        self._ask = ask
        self._wanted: list[tuple[str, int, asyncio.Future[bytes]]] = []
        self._asking: asyncio.Task[None] | None = None

    async def at(self, trace: str, number: int) -> bytes:
        """Return what one body has saved since the last time: pieces, written."""
        found: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._wanted.append((trace, number, found))
        if self._asking is None:
            self._asking = asyncio.ensure_future(self._ask_on())
        return await found

    async def _ask_on(self) -> None:
        try:
            while self._wanted:
                wanted, self._wanted = self._wanted, []
                await self._ask_for([one for one in wanted if not one[2].done()])
        finally:
            self._asking = None

    async def _ask_for(self, wanted: list[tuple[str, int, asyncio.Future[bytes]]]) -> None:
        try:
            answers = that_counts(await self._ask("nnsight_look", [[trace, number] for trace, number, _ in wanted]))
        except Exception as error:  # of the engine's: it is theirs who wait
            for _, _, found in wanted:
                if not found.done():
                    found.set_exception(error)
            return
        for (_, _, found), answer in zip(wanted, answers):
            if not found.done():
                found.set_result(answer)
