"""The shapes that a scan saw go into each module and come out of it, as short text for the picture of the model.

`printing.py` and `notebook.py` show them. A module that was visited several times is shown as at its first visit.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from .sites import INPUT, OUTPUT, Place
from .structures import first, items

if TYPE_CHECKING:
    from .batching import Layout
    from .interleaver import Interleaver

#: How many parts of a container are shown, and how deep containers in containers are.
_PARTS, _DEPTH = 6, 2


class ShapeWatcher:
    """Notes what passes every module of a run.

    Attributes:
        shapes: by the path of a module, the text for its first input and the one for its output.
    """

    #: A module that a scan does not reach is nothing to complain of.
    seen = True

    def __init__(self) -> None:
        self.shapes: dict[str, tuple[str, str]] = {}
        self._paths: dict[Place, str] = {}

    def install(self, run: Interleaver) -> None:
        """Watch everything that the run's tree holds."""
        run.rigging.follow()
        self._paths = run.rigging.held
        run.watch(self._paths, (INPUT, OUTPUT), self)

    def end(self) -> None:
        """Hear that the run is over."""

    def see(self, place: Place, stage: str, value: Any, layout: Layout | None) -> None:
        """Note the shapes of the value that lies at a place."""
        path = self._paths[place]
        given, made = self.shapes.get(path, ("", ""))
        if stage is INPUT and not given:
            self.shapes[path] = shape_of(first(*value)), made
        elif stage is OUTPUT and not made:
            self.shapes[path] = given, shape_of(value)


def shape_of(value: Any) -> str:
    """Return the shape of a tensor, and for a container those of its parts.

    >>> shape_of((torch.zeros(2, 3), {"mask": None}))
    '([2, 3], {mask: None})'
    """
    return _shape_of(value, _DEPTH)


def _shape_of(value: Any, depth: int) -> str:
    if isinstance(value, torch.Tensor):
        return str(list(value.shape))
    if value is None:
        return "None"
    parts = items(value) if depth else None
    if parts is None:
        return type(value).__name__
    named = not isinstance(value, (tuple, list))
    # An output that is a dataclass has a field for everything that could have been asked for, and most are None.
    shown = [(key, part) for key, part in parts if part is not None] if named else parts
    texts = [(f"{key}: " if named else "") + _shape_of(part, depth - 1) for key, part in shown[:_PARTS]]
    texts += ["..."] * (len(shown) > _PARTS)
    inside = ", ".join(texts)
    if named:
        return f"{{{inside}}}"
    return f"({inside},)" if len(shown) == 1 else f"({inside})"
