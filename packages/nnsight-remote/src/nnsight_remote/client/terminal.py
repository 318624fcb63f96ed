"""`Terminal`: one line in place, with a spinner; what is printed meanwhile appears above it."""

from __future__ import annotations

import sys

from rich.console import Console
from rich.live import Live
from rich.spinner import Spinner
from rich.text import Text

from .display import FINAL, Display

_MARKS = {"completed": ("✓ ", "green"), "failed": ("✗ ", "red"), "cancelled": ("✗ ", "yellow")}


class Terminal(Display):
    """Shows a job in a terminal."""

    def open(self) -> None:
        """Take a line of the terminal."""
        self._spinner = Spinner("dots")
        console = Console(stderr=True)
        # Only what would appear in the same terminal has to go through us; a pipe gets what is printed directly.
        both = sys.stdout is not None and sys.stdout.isatty()
        self._live = Live(
            console=console,
            get_renderable=self._draw,
            refresh_per_second=10,
            redirect_stdout=both,
            redirect_stderr=True,
        )
        self._live.start()

    def changed(self) -> None:
        """Draw it now."""
        self._live.refresh()

    def close(self) -> None:
        """Leave the last state in its line."""
        self._live.stop()

    def _draw(self) -> Spinner | Text:
        mark, colour = _MARKS.get(self.state, ("", ""))
        if self.state in FINAL:
            text = Text(mark, style=colour)
            text.append(self.line(), style="dim")
            return text
        self._spinner.update(text=Text(self.line()))
        return self._spinner
