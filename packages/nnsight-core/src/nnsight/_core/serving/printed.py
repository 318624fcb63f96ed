"""What bodies print where an engine runs them, kept for whoever sent them.

One idea: a body's context says whose it is. So standard output and standard error are taken once, by something that asks
at each write, and passes on what is nobody's.
"""

from __future__ import annotations

import io
import sys
from typing import Any

from ..active import active

#: Characters that are kept of one trace between two looks.
_MOST = 1 << 20


class Printed:
    """What the bodies of one trace have printed since somebody looked."""

    def __init__(self) -> None:
        self._parts: list[str] = []
        self._left = _MOST

    def write(self, text: str) -> None:
        """Keep a text; of what is too much, say that it is gone."""
        if self._left > 0:
            self._parts.append(text[: self._left])
            self._left -= len(text)
            if self._left < 0:
                self._parts.append(f"\n[the rest is dropped: {_MOST} characters were printed at once]\n")

    def take(self) -> str:
        """Return what there is, and forget it."""
        text, self._parts, self._left = "".join(self._parts), [], _MOST
        return text


class Printing(io.TextIOBase):
    """Stands for an output of this process."""

    def __init__(self, plain: Any) -> None:
        self.plain = plain

    def write(self, text: str) -> int:
        """Write for the body at work, or for this process."""
        for member in reversed(active.get()):
            printed = getattr(getattr(member, "run", None), "printed", None)
            if printed is not None:
                printed.write(text)
                return len(text)
        self.plain.write(text)  # what others put there may not say how much
        return len(text)

    def flush(self) -> None:
        """Let what this process prints be seen."""
        self.plain.flush()

    def fileno(self) -> int:
        """Return the file of this process."""
        return int(self.plain.fileno())

    @property
    def encoding(self) -> str:  # type: ignore[override]  # what cannot be set here is what nobody sets
        """The encoding of this process's output."""
        return str(self.plain.encoding)

    def writable(self) -> bool:
        """Say that it is written to."""
        return True


def listen() -> None:
    """Take the outputs of this process, if that has not been done."""
    for name in ("stdout", "stderr"):
        if not isinstance(getattr(sys, name), Printing):
            setattr(sys, name, Printing(getattr(sys, name)))
