"""A limit to how long one turn of a body may take: while it has its turn, an engine and all of its requests wait.

One idea: a thread that does nothing but wait raises an error in the thread of the engine when a turn is over its time. What
is pure Python ends there, an endless loop too; one call into C that does not return is out of reach. A body that catches that
error again and again is left where it stands, for ever.
"""

from __future__ import annotations

import ctypes
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from ..errors import NNsightError
from ..turns import Greenlet, getcurrent

#: Seconds after which a turn that caught the error gets it again.
_AGAIN = 1.0
#: How many errors a turn may catch.
_PATIENCE = 2
#: While Python makes an error it counts that in its state of the thread, and takes too deep a recursion for fatal as long.
#: relies on: where `PyThreadState` has `recursion_headroom`, CPython 3.10 and 3.11; later ones make errors without it.
_HEADROOM = {(3, 10): 36, (3, 11): 40}


class TooLongError(NNsightError, TimeoutError):
    """A body had its turn for too long."""


class _Over(BaseException):
    """What is raised in a body whose turn is over. It says no more: the interpreter makes it."""

    #: How many have arrived.
    arrived = 0
    #: Whose turn it was last.
    watch: Watch | None = None

    def __init__(self) -> None:
        super().__init__()
        _Over.arrived += 1
        if _Over.watch is not None:
            _Over.watch.hear()


def _end_making() -> None:
    """Tell Python that an error which is being made here will never be done."""
    offset = _HEADROOM.get(sys.version_info[:2])
    if offset is not None:
        get = ctypes.pythonapi.PyThreadState_Get
        get.restype = ctypes.c_void_p
        headroom = ctypes.c_int.from_address(get() + offset)
        if headroom.value == 1:
            headroom.value = 0


class Watch:
    """Watches the turns of bodies in one thread at a time.

    Args:
        seconds: how long a turn may take; 0 for as long as it likes.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._changed = threading.Condition()
        self._deadline: float | None = None
        self._sending = False
        self._thread = 0
        #: How many were to have arrived when the last one that was sent has.
        self._sent = 0
        self._waiter: threading.Thread | None = None
        #: Where a turn began, and how many of the errors that it has got since.
        self._home: Greenlet | None = None
        self._heard = 0
        self._left: set[Greenlet] = set()

    def hear(self) -> None:
        """Hear that an error has arrived in whatever runs now; if it has ignored several, leave it."""
        self._heard += 1
        body = getcurrent()
        if self._heard > _PATIENCE and self._home is not None and body is not self._home:
            self._left.add(body)
            # Never to be collected: to end it, greenlet would raise an error in it, which it would catch as well.
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(body))
            _end_making()
            self._home.switch()

    def has_left(self, body: Greenlet) -> bool:
        """Say whether a body was left where it stands. It cannot be given another turn."""
        return body in self._left

    def turn(self, switch: Callable[..., Any], *args: Any) -> bool:
        """Let a body have its turn, which a call with these arguments gives it, and say whether it gave it back in time."""
        if not self.seconds or sys.gettrace() is not None:  # somebody looks at it with a debugger
            switch(*args)
            return True
        before = _Over.arrived
        self._home, self._heard, _Over.watch = getcurrent(), 0, self
        try:
            self._begin()
            switch(*args)
        except _Over:  # it came when the body had parked
            pass
        finally:
            while True:
                try:
                    self._end()
                    break
                except _Over:
                    continue
        return _Over.arrived == before

    def _begin(self) -> None:
        # Turns are short and many, so they take no lock.
        self._thread = threading.get_ident()
        self._deadline = time.monotonic() + self.seconds
        if self._waiter is None:
            self._waiter = threading.Thread(target=self._wait, name="nnsight watch", daemon=True)
            self._waiter.start()

    def _end(self) -> None:
        self._deadline = None
        # The waiter says that it is sending before it looks at the deadline once more: so either it is seen to, or it sees
        # that the turn is over.
        if self._sending:
            with self._changed:
                self._deadline = None
        # One that is under way arrives here. Calling it back makes Python 3.11 hang at the next function that is traced.
        while self._sent > _Over.arrived:
            pass

    def _wait(self) -> None:
        while True:
            deadline, now = self._deadline, time.monotonic()
            with self._changed:
                if deadline is not None and now >= deadline and self._sent <= _Over.arrived:
                    self._sending = True
                    if self._deadline == deadline:
                        self._sent = _Over.arrived + 1
                        ctypes.pythonapi.PyThreadState_SetAsyncExc(
                            ctypes.c_ulong(self._thread), ctypes.py_object(_Over)
                        )
                        self._deadline = now + _AGAIN
                    self._sending = False
                # Whether one is over its time is looked at a few times a second.
                self._changed.wait(min(self.seconds, 0.25))
