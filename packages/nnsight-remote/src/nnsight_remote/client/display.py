"""What a user sees while a block runs elsewhere: its state and how long it takes, in the way that fits the place.

The one idea: whoever waits tells a `Display` what happens and does not know where it appears: in place in a terminal
(`terminal.py`), as HTML in a notebook (`notebook.py`), as plain lines where the output is a file, or not at all. What a
block prints goes where printing goes; the rest to the standard error stream, so that a program's output can be piped.
"""

from __future__ import annotations

import sys
import time
from typing import Any

from nnsight import CONFIG

#: What the states of a job are called, for a person.
WORDS = {
    "sending": "sending the block",
    "queued": "waiting for its turn",
    "running": "running",
    "fetching": "fetching the result",
    "completed": "done",
    "failed": "failed",
    "cancelled": "cancelled",
}
FINAL = ("completed", "failed", "cancelled")


class Display:
    """Shows nothing; the others are kinds of it.

    Attributes:
        label: the host, and once it is known the job.
        state: one of the keys of `WORDS`.
        note: something to add, for a while.
        progress: bytes that are there, and bytes that there will be (0 if nobody knows).
    """

    def __init__(self, label: str = "") -> None:
        self.label = label
        self.state = "sending"
        self.note = ""
        self.progress = (0, 0)
        self.began = time.monotonic()

    def __enter__(self) -> Display:
        self.open()
        return self

    def __exit__(self, *error: Any) -> None:
        if error[0] is not None and self.state not in FINAL:
            self.show("cancelled" if issubclass(error[0], KeyboardInterrupt) else "failed")
        self.close()

    def show(self, state: str, note: str = "") -> None:
        """Say that the state is another one now."""
        if (state, note) != (self.state, self.note):
            self.state, self.note = state, note
            self.changed()

    def remark(self, note: str) -> None:
        """Add something to the state, until the next one."""
        self.show(self.state, note)

    def loaded(self, done: int, size: int) -> None:
        """Say how far a download is."""
        self.progress = (done, size)

    def print(self, text: str) -> None:
        """Write what the block printed."""
        sys.stdout.write(text)
        sys.stdout.flush()

    def line(self) -> str:
        """Everything, in one line."""
        parts = [WORDS.get(self.state, self.state)]
        done, size = self.progress
        if self.state == "fetching" and done:
            parts.append(f"{in_bytes(done)} of {in_bytes(size)}" if size else in_bytes(done))
        if self.note:
            parts.append(self.note)
        return f"{self.label}: {', '.join(parts)} ({time.monotonic() - self.began:.1f} s)"

    def open(self) -> None:
        """Begin to show it."""

    def changed(self) -> None:
        """Show a new state."""

    def close(self) -> None:
        """Leave the last state standing."""


class Lines(Display):
    """A line for each new state."""

    def changed(self) -> None:
        """Write it."""
        print(f"nnsight: {self.line()}", file=sys.stderr, flush=True)


def in_bytes(size: float) -> str:
    """Write a number of bytes for a person."""
    for unit in ("B", "KB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.2f} GB"


def in_notebook() -> bool:
    """Whether this is a notebook, or something else that shows HTML."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return getattr(shell, "kernel", None) is not None


def make_display(label: str, quiet: bool | None = None) -> Display:
    """Choose how to show a job.

    Args:
        label: what it is about.
        quiet: show nothing; as `CONFIG.APP.REMOTE_LOGGING` says if None.
    """
    if not CONFIG.APP.REMOTE_LOGGING if quiet is None else quiet:
        return Display(label)
    if in_notebook():
        from .notebook import Notebook

        return Notebook(label)
    if sys.stderr is not None and sys.stderr.isatty():
        from .terminal import Terminal

        return Terminal(label)
    return Lines(label) if sys.stderr is not None else Display(label)
