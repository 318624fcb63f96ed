"""Waiting for something without holding up an event loop."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")


async def later(work: Callable[[], T], name: str) -> T:
    """Return what `work` returns, which another thread calls; `name` is that thread's."""
    # A thread of its own that nobody waits for: a task that is cancelled must not keep the program from ending.
    loop = asyncio.get_running_loop()
    done: asyncio.Future[T] = loop.create_future()

    def tell(set_it: Callable[[Any], None], value: Any) -> None:
        if not done.done():
            set_it(value)

    def run() -> None:
        try:
            outcome: tuple[Callable[[Any], None], Any] = (done.set_result, work())
        except BaseException as error:  # whatever it is, it is raised where this is awaited
            outcome = (done.set_exception, error)
        if not loop.is_closed():
            loop.call_soon_threadsafe(tell, *outcome)

    threading.Thread(target=run, name=name, daemon=True).start()
    return await done
