"""`Printed`: the server's end of a pipe that a job writes to.

The one idea: the server reads as fast as a job prints and keeps a bounded part, so a job that prints a gigabyte neither
fills the server nor waits for it. The pipe is at its end when the job is, whoever else may still hold it.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable

_AT_ONCE = 1 << 16
_LEFTOVER = 1 << 20  # what a pipe can hold when its writer is dead


class Printed:
    """A pipe, read while an event loop runs.

    Args:
        most: how many bytes to keep.
        hand_over: called with what comes, and once with a remark if there was more; None to keep it for `finish`.
        wanted: whether more is wanted; once it is not, the pipe is closed, and whoever writes into it hears that.
    """

    def __init__(
        self, most: int, hand_over: Callable[[bytes], None] | None, wanted: Callable[[], bool] = lambda: True
    ) -> None:
        self._reading, self.writing_end = os.pipe()
        os.set_blocking(self._reading, False)
        self._left = most
        self._hand_over = hand_over
        self._wanted = wanted
        self._kept = bytearray()
        self._most = most
        self._remarked = False
        self._loop: asyncio.AbstractEventLoop | None = None

    def start(self) -> None:
        """Read from now on; the writing end belongs to the other process."""
        os.close(self.writing_end)
        self.writing_end = -1
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._reading, self._read)

    def finish(self) -> bytes:
        """Read what is left, without waiting for more, and return what was kept."""
        if self.writing_end >= 0:
            os.close(self.writing_end)
        for _ in range(_LEFTOVER // _AT_ONCE):
            if not self._read():
                break
        self._close()
        return bytes(self._kept)

    def _close(self) -> None:
        if self._reading >= 0:
            if self._loop:
                self._loop.remove_reader(self._reading)
            os.close(self._reading)
            self._reading = -1

    def _read(self) -> bool:
        if self._reading < 0:
            return False
        try:
            data = os.read(self._reading, _AT_ONCE)
        except BlockingIOError:
            return False
        if not data:
            if self._loop:
                self._loop.remove_reader(self._reading)
            return False
        taken = data[: self._left]
        self._left -= len(taken)
        if self._hand_over is None:
            self._kept += taken
            return True
        if taken:
            self._hand_over(taken)
        if len(taken) < len(data) and not self._remarked:
            self._remarked = True
            self._hand_over(f"\n[the rest is dropped: a job may print {self._most} bytes]\n".encode())
        if not self._wanted():
            self._close()
        return True
