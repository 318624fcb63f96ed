"""What one body is lent at one place, in each of some forwards that are alike.

One idea: where a body does the same in each (`steady.py`) it is known before what it may have in hand, and whether it keeps
any of that. Who only edits gets the engine's own rows: there is nobody left to see them later. Who keeps something gets
copies, as always (`lent.py`), in memory that was set aside for several forwards in one go. Where its rows lie is found out
once for what has the same shape. Where something else lies there than plain tensors with rows, nothing is lent here, and the
usual way is gone.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from ..batching import Layout, PlainLayout, Rows
from .handed import OWN
from .joint import counts, plainly
from .rounds import Rounds
from .together import Several, Together

#: For how many forwards memory is set aside at first, and later, and of how many bytes at most.
_FIRST, _AHEAD, _MOST = 8, 64, 1 << 20


class Loan:
    """What one body is lent at one place.

    Args:
        rows: where those of its request lie, or of several requests.
        rounds: what it does.
        layout, path: how rows lie there, and where it is.
    """

    __slots__ = (
        "_ahead",
        "_copies",
        "_layout",
        "_parts",
        "_path",
        "_plain",
        "_round",
        "_rows",
        "_several",
        "_wanted",
        "length",
    )

    def __init__(self, rows: Any, rounds: Rounds, layout: Layout, path: str) -> None:
        self._several: Several | None = rows if isinstance(rows, Several) else None
        self._rows: Rows | None = self._several.all if self._several is not None else rows
        if not isinstance(layout, PlainLayout):
            self._rows = None  # it may have to look at values before it can tell
        assert rounds.round is not None, "it is lent what a round asks for"
        self._round, self._wanted = rounds.round, rounds.parts
        self._layout, self._path = layout, path
        #: Whether what all requests do together is known to be one operation on plain rows each time.
        self._plain = self._several is None
        #: What is lent of what lies there, as it was found the last time, and how many values that tuple had, if it was one.
        self._parts: list[Part] | None = None
        self.length: int | None = None
        #: For how many forwards memory is set aside next.
        self._ahead = _FIRST
        #: What the engine has of what was copied in this forward, the copy, and how often that had been edited then.
        self._copies: list[tuple[torch.Tensor, torch.Tensor, int]] = []

    def lend(self, value: Any) -> Any:
        """Return what the body is to have of what lies there; None if that is for the usual way to find out."""
        length = len(value) if type(value) is tuple else None
        if length != self.length or self._parts is None:
            return self._lend_anew(value)
        given: list[Any] = [value] if length is None else list(value)
        for at, shape, dtype, cut, spare in self._parts:
            view: Any = given[at]
            if type(view) is not torch.Tensor or view.shape != shape or view.dtype is not dtype:
                return self._lend_anew(value)
            if cut is not None:
                view = view[cut]
            if not self._round.edits_only:
                mine = (spare or self._set_aside(spare, view)).pop().copy_(view)
                if not self._round.reads_only:
                    self._copies.append((view, mine, mine._version))
                view = mine
            if not self._plain:
                several = self._several
                assert several is not None
                view = Together(several.group, several.runs, view, several.counts)
            given[at] = view
        # What is no part stays the engine's: the body never has it in hand.
        return given[0] if length is None else tuple(given)

    def only_part(self) -> Part | None:
        """Return the one tensor of which something was lent last, if it was one, and the rows were one request's."""
        if self._several is not None or self._parts is None or len(self._parts) != 1:
            return None
        return self._parts[0]

    def _set_aside(self, spare: list[torch.Tensor], view: torch.Tensor) -> list[torch.Tensor]:
        """Make memory for copies of what is like this, and return it."""
        many = max(1, min(self._ahead, _MOST // (view.numel() * view.element_size() or 1)))
        self._ahead = _AHEAD
        spare.extend(plainly(_made_like, view, many))
        return spare

    def _lend_anew(self, value: Any) -> Any:
        """Do it after a look at what lies there."""
        self._copies.clear()
        self._parts, self.length = self._look(value), len(value) if type(value) is tuple else None
        return None if self._parts is None else self.lend(value)

    def _look(self, value: Any) -> list[Part] | None:
        """Find out what is to be lent of what lies there."""
        if self._rows is None:
            return None
        if type(value) is torch.Tensor:
            value, wanted = (value,), frozenset((0,))
        elif type(value) is tuple and self._wanted is not None:
            wanted = self._wanted
        else:
            return None
        if any(not -len(value) <= at < len(value) for at in wanted):
            return None
        found = []
        for at in sorted({at % len(value) for at in wanted}):
            tensor = value[at]
            if type(tensor) is not torch.Tensor or counts(tensor):
                return None
            view = self._layout.take(tensor, self._rows, self._path)
            if view is None or (self._several is not None and view.size(0) != self._several.total):
                return None
            found.append(Part(at, tensor.shape, tensor.dtype, _cut(tensor, view), []))
        return found

    def take_back(self) -> bool:
        """Give the engine what the body has made of its own; say whether there was anything."""
        if self._round.edits_only:
            if not self._plain and self._round.is_plain and self._several is not None:
                self._plain = not self._several.group.parted
            return True
        wrote = False
        for view, copy, version in self._copies:
            if copy._version != version:
                view.copy_(copy)
                wrote = True
        self._copies.clear()
        return wrote


class Part(NamedTuple):
    """A tensor of which a body is lent its rows.

    Attributes:
        at: its number in the tuple.
        shape, dtype: its own.
        cut: the index that gives the rows; None if they are all of it.
        spare: memory for copies.
    """

    at: int
    shape: torch.Size
    dtype: torch.dtype
    cut: tuple[slice, ...] | None
    spare: list[torch.Tensor]


def _made_like(view: torch.Tensor, many: int) -> list[torch.Tensor]:
    made = [torch.empty_like(view) for _ in range(many)]
    for one in made:
        setattr(one, OWN, True)
    return made


def _cut(tensor: torch.Tensor, view: torch.Tensor) -> tuple[slice, ...] | None:
    """Return the index that gives this view of a tensor, which is shorter along one dimension at most."""
    for dim, (all_, some) in enumerate(zip(tensor.shape, view.shape)):
        if all_ != some:
            # Where all entries are one, any of them does.
            start = (view.storage_offset() - tensor.storage_offset()) // max(tensor.stride(dim), 1)
            return (*[slice(None)] * dim, slice(start, start + some))
    return None
