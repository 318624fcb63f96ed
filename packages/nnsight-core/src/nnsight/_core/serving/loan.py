"""What one body is lent at one place, in each of some forwards that are alike.

One idea: where a body does the same in each (`steady.py`) it is known before what it may have in hand, and whether it keeps
any of that. Who only edits gets the engine's own rows: there is nobody left to see them later. Who keeps something gets
copies, as always (`lent.py`), in memory that was set aside for several forwards in one go. Where something else lies there
than plain tensors with rows, nothing is lent here, and the usual way is gone.
"""

from __future__ import annotations

from typing import Any

import torch

from ..batching import Layout, PlainLayout, Rows
from .joint import counts, plainly
from .rounds import Rounds
from .together import Several, Together

#: For how many forwards memory is set aside at most, and of how many bytes.
_AHEAD, _MOST = 16, 1 << 20


class Loan:
    """What one body is lent at one place.

    Args:
        rows: where those of its request lie, or of several requests.
        rounds: what it does.
        layout, path: how rows lie there, and where it is.
    """

    __slots__ = (
        "_copies",
        "_entire",
        "_known",
        "_layout",
        "_parts",
        "_path",
        "_plain",
        "_rounds",
        "_rows",
        "_several",
        "_spare",
    )

    def __init__(self, rows: Any, rounds: Rounds, layout: Layout, path: str) -> None:
        self._several: Several | None = rows if isinstance(rows, Several) else None
        self._rows: Rows | None = self._several.all if self._several is not None else rows
        if not isinstance(layout, PlainLayout):
            self._rows = None  # it may have to look at values before it can tell
        self._entire = self._rows == (0, layout.total)
        self._rounds, self._parts = rounds, rounds.parts
        self._layout, self._path = layout, path
        #: Whether what all requests do together is known to be one operation on plain rows each time.
        self._plain = self._several is None
        #: Where what lies there was lent as it is, because all rows are the body's own: the shape of each part.
        self._known: list[tuple[int, torch.Size]] | None = None
        #: What the engine has of what was copied in this forward, the copy, and how often that had been edited then.
        self._copies: list[tuple[torch.Tensor, torch.Tensor, int]] = []
        self._spare: dict[Any, list[torch.Tensor]] = {}

    def lend(self, value: Any) -> Any:
        """Return what the body is to have of what lies there; None if that is for the usual way to find out."""
        if self._rows is None:
            return None
        if type(value) is torch.Tensor:
            return self._lend(value)
        parts = self._parts
        if type(value) is not tuple or parts is None:
            return None
        if self._known is not None and self._known == [(at, value[at].shape) for at in parts]:
            return value
        given = list(value)
        for at in parts:
            if at >= len(given) or type(given[at]) is not torch.Tensor:
                return None
            lent = given[at] = self._lend(given[at])
            if lent is None:
                return None
        if self._entire and self._plain and self._rounds.edits_only:
            self._known = [(at, value[at].shape) for at in parts]
        return tuple(given)  # the rest of it stays the engine's: the body never has it in hand

    def _lend(self, tensor: torch.Tensor) -> Any:
        assert self._rows is not None
        view = self._layout.take(tensor, self._rows, self._path)
        if view is None or counts(tensor):
            return None
        several = self._several
        if several is not None and view.size(0) != several.total:
            return None
        if not self._rounds.edits_only:
            copy = self._copy(view)
            self._copies.append((view, copy, copy._version))
            view = copy
        return view if self._plain else Together(several.group, several.runs, view, several.counts)  # type: ignore[union-attr]

    def _copy(self, view: torch.Tensor) -> torch.Tensor:
        kind = view.shape, view.dtype
        spare = self._spare.get(kind)
        if not spare:
            many = max(1, min(_AHEAD, _MOST // (view.numel() * view.element_size() or 1)))
            spare = self._spare[kind] = plainly(lambda: [torch.empty_like(view) for _ in range(many)])
        return spare.pop().copy_(view)

    def take_back(self) -> bool:
        """Give the engine what the body has made of its own; say whether there was anything."""
        if self._rounds.edits_only:
            if not self._plain and self._rounds.is_plain and self._several is not None:
                self._plain = not self._several.group.parted
            return True
        wrote = False
        for view, copy, version in self._copies:
            if copy._version != version:
                view.copy_(copy)
                wrote = True
        self._copies.clear()
        return wrote
