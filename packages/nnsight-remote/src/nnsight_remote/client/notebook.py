"""`Notebook`: one line of HTML that is written anew while a job goes on, below the cell that waits for it."""

from __future__ import annotations

import threading
from html import escape
from typing import Any

from .display import FINAL, Display

_COLOURS = {"completed": "#2a9d4a", "failed": "#d1495b", "cancelled": "#c98a1b"}
_SECONDS = 0.5


class Notebook(Display):
    """Shows a job in a notebook."""

    def open(self) -> None:
        """Make the line, and keep its seconds going."""
        from IPython.display import HTML, display

        self._html: Any = HTML
        self._handle: Any = display(HTML(self.html()), display_id=True)
        self._over = threading.Event()
        self._drawing = threading.Lock()
        threading.Thread(target=self._tick, name="nnsight display", daemon=True).start()

    def changed(self) -> None:
        """Draw it now."""
        with self._drawing:
            self._handle.update(self._html(self.html()))

    def close(self) -> None:
        """Leave the last state standing."""
        self._over.set()
        self.changed()

    def html(self) -> str:
        """The line, as HTML."""
        colour = _COLOURS.get(self.state, "#4a7fd1")
        done, size = self.progress
        bar = f' <progress max="{size}" value="{done}"></progress>' if self.state == "fetching" and size else ""
        dot = "●" if self.state in FINAL else "◌"
        return (
            f'<div style="font-family:var(--jp-code-font-family,ui-monospace,monospace);font-size:12px">'
            f'<span style="color:{colour}">{dot}</span> {escape(self.line())}{bar}</div>'
        )

    def _tick(self) -> None:
        while not self._over.wait(_SECONDS):
            self.changed()
