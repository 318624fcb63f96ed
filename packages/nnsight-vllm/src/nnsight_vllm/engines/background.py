"""A thread with an event loop of its own, for an engine that speaks `asyncio` whatever the caller speaks.

An engine's sockets and tasks belong to one loop for as long as it lives, and its users come from many: `asyncio.run` makes a
loop each time, a notebook has its own, and plain code has none. So the engine gets one that is nobody's.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

T = TypeVar("T")


class Background:
    """The thread. It keeps no program from ending."""

    def __init__(self, name: str) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, name=name, daemon=True)
        self._thread.start()

    @property
    def is_here(self) -> bool:
        """Whether this is the thread."""
        return threading.current_thread() is self._thread

    def begin(self, work: Coroutine[Any, Any, T]) -> Work[T]:
        """Let it do something, and return without waiting."""
        return Work(self.loop, work)

    def stop(self) -> None:
        """End the thread."""
        self.loop.call_soon_threadsafe(self.loop.stop)
        if not self.is_here:
            self._thread.join()
            self.loop.close()


class Work(Future[T]):
    """Something that is done there. To cancel it is to ask; it is done when what it has to clear away is cleared away."""

    def __init__(self, loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, T]) -> None:
        super().__init__()
        self._loop = loop
        self._task: asyncio.Task[T] | None = None
        self._cancelled = False
        loop.call_soon_threadsafe(self._start, work)

    def _start(self, work: Coroutine[Any, Any, T]) -> None:
        self._task = self._loop.create_task(work)
        self._task.add_done_callback(self._finish)
        if self._cancelled:
            self._task.cancel()

    def _finish(self, task: asyncio.Task[T]) -> None:
        if task.cancelled():
            super().cancel()
            self.set_running_or_notify_cancel()
        elif (error := task.exception()) is not None:
            self.set_exception(error)
        else:
            self.set_result(task.result())

    def cancel(self) -> bool:
        """Ask for its end."""
        self._cancelled = True
        if not self.done() and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._cancel_task)
        return False

    def _cancel_task(self) -> None:
        if self._task is not None:
            self._task.cancel()
