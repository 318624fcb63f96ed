"""What a part of the demo hands over to be shown."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from matplotlib.figure import Figure
from rich.table import Table


@dataclass(frozen=True)
class Part:
    """One part, computed.

    Attributes:
        title: what it is called.
        question: what was done, and why one would.
        code: the function that did it; its text is shown.
        table: numbers of it, for the terminal.
        figure: its images, for a file.
        finding: what they say.
    """

    title: str
    question: str
    code: Callable[..., Any]
    table: Table
    figure: Figure
    finding: str
