"""What a job hands over while it runs, as the server takes it: bytes in a file, and an event for each piece.

The one idea: the process of the job writes into the file and says how much; what is said is checked against the limit and
believed no further, since whoever reads the piece is the user whose block wrote it. A job that hands over too much goes on,
and its result tells all; whoever follows hears that no more pieces come, and why.
"""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path

from .events import Events

#: What a piece counts besides its bytes: each is an event, which lies in the store too.
_EACH = 256
_LONGEST_LINE = 32


class Streamed:
    """The pieces of one job.

    Attributes:
        path: the file that they are in.
        total: how many bytes of it are pieces.
    """

    def __init__(self, events: Events, job: str, path: Path, most: int) -> None:
        self.path = path
        self.total = 0
        self._events, self._job, self._most = events, job, most
        self._counted = 0
        self._line = b""
        self._why = ""
        self._is_told = False

    @property
    def is_over(self) -> bool:
        """Whether no more pieces are taken."""
        return bool(self._why)

    def hear(self, data: bytes) -> None:
        """Take what the process of the job says: the sizes of pieces, line by line."""
        *lines, self._line = (self._line + data).split(b"\n")
        for line in lines:
            self._take(line)
        if len(self._line) > _LONGEST_LINE:
            self._take(self._line)

    def cut(self, why: str) -> None:
        """Say that no more pieces come, if it has not been said."""
        if not self._why:
            self._why = why
            try:
                self._tell()
            except sqlite3.Error:
                pass  # `finish` says it, when there is room again

    def finish(self) -> None:
        """Close the account of a job that has ended; raises sqlite3.Error while the store cannot be written."""
        if self._why:
            self._tell()
        if self.path.exists():
            os.truncate(self.path, self.total)

    def _take(self, line: bytes) -> None:
        if self._why:
            return
        digits = line.removeprefix(b"!")
        if not digits.isdigit() or len(digits) > 18:
            return self.cut("the process of the job said something of its values that is not understood")
        size = int(digits)
        self._counted += size + _EACH
        if self._counted > self._most:
            return self.cut(
                f"the job handed over more than the {self._most} bytes that may arrive while it runs (each value counts "
                f"{_EACH} bytes besides its own)"
            )
        if line != digits:
            return self.cut(f"a value of {size} bytes is larger than a file may be, or the server's disk is full")
        try:
            self._events.add(self._job, "value", f"{self.total} {size}")
        except sqlite3.Error:
            return self.cut("the server has no room on its disk for what the job hands over")
        self.total += size
        self._events.ring(self._job)

    def _tell(self) -> None:
        if not self._is_told:
            self._events.add(self._job, "cut", f"{self._why}; the rest comes with the result")
            self._is_told = True
            self._events.ring(self._job)
