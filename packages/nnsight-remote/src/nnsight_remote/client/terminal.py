"""`Terminal`: one line in place, with a spinner; what is printed meanwhile appears above it.

The one idea: a terminal has one such line. A second job that is waited for meanwhile, in another thread, writes plain ones,
which appear above it like everything else.
"""

from __future__ import annotations

import sys
import threading

from rich.console import Console
from rich.live import Live
from rich.spinner import Spinner
from rich.text import Text

from .display import FINAL, Lines

_MARKS = {"completed": ("✓ ", "green"), "failed": ("✗ ", "red"), "cancelled": ("✗ ", "yellow")}
_in_place = threading.Lock()


class Terminal(Lines):
    """Shows a job in a terminal."""

    _live: Live | None = None

    def open(self) -> None:
        """Take the line, if it is free."""
        if not _in_place.acquire(blocking=False):
            return
        self._spinner = Spinner("dots")
        self._live = Live(
            console=Console(stderr=True, force_jupyter=False),
            get_renderable=self._draw,
            refresh_per_second=10,
            # Only what would appear in the same terminal has to go through us; a pipe gets what is printed directly.
            redirect_stdout=sys.stdout is not None and sys.stdout.isatty(),
            redirect_stderr=True,
        )
        self._live.start()

    def changed(self) -> None:
        """Draw it now."""
        if self._live is None:
            super().changed()
        else:
            self._live.refresh()

    def close(self) -> None:
        """Leave the last state in its line."""
        if self._live is not None:
            try:
                self._live.stop()
            finally:
                self._live = None
                _in_place.release()

    def _draw(self) -> Spinner | Text:
        mark, colour = _MARKS.get(self.state, ("", ""))
        if self.state in FINAL:
            text = Text(mark, style=colour)
            text.append(self.line(), style="dim")
            return text
        self._spinner.update(text=Text(self.line()))
        return self._spinner
