"""What one request has of the values of a group, when it leaves.

One idea: a value of all becomes each one's own rows: views, as long as the body may still edit them; copies, where nothing of
it is left to be done. Where all leave at once, the copies of all are made in one go, and so are lists of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch

from .joint import copied, plainly
from .request import ServedRun
from .together import Together


class Shares:
    """Copies of values for all requests of a group that leave it at once.

    Args:
        unshared: the values, by their ids, whose memory no other has.
        collector: what was saved.
    """

    def __init__(self, unshared: frozenset[int], collector: Any) -> None:
        self._unshared = unshared
        self._collector = collector
        self._copies: dict[int, Sequence[torch.Tensor]] = {}
        self._rows: dict[int, list[Any]] = {}

    def of(self, value: Together, run: ServedRun) -> torch.Tensor:
        """Return what a request has of a value whose memory no other has, with memory of its own."""
        if id(value) not in self._copies:
            plainly(self._copy, (value,))
        return self._copies[id(value)][value.runs.index(run)]

    def _copy(self, values: Iterable[Together]) -> None:
        # Torch declares that this returns nothing unless it is given where to.
        split: Any = torch.split_with_sizes_copy
        for value in values:
            assert value.whole is not None
            self._copies[id(value)] = split(value.whole.cpu(), value.counts)

    def can(self, value: Together) -> bool:
        """Say whether a value is one to be copied here."""
        return value.whole is not None and id(value) in self._unshared

    def row(self, values: Any, run: ServedRun) -> Any:
        """Return what a request has of a list or a tuple; None if it holds something else than such values."""
        rows = self._rows.get(id(values))
        if rows is None:
            rows = self._rows[id(values)] = self._transposed(values)
        return rows[values[0].runs.index(run)] if rows else None

    def _transposed(self, values: Any) -> list[Any]:
        kind = type(values)
        if not values or any(type(part) is not Together for part in values):
            return []
        runs = values[0].runs
        if not all(part.runs is runs and self.can(part) and not self._collector.has(part) for part in values):
            return []
        plainly(self._copy, {id(part): part for part in values if id(part) not in self._copies}.values())
        return [kind(row) for row in zip(*[self._copies[id(part)] for part in values])]


class Own:
    """What one request has of the values of all.

    Args:
        run: the request.
        collector: what was saved.
        fresh: takes what is made for this request alone.
        unshared: values that it may have copies of, instead of views.
        shares: makes the copies of all, if all leave at once.
    """

    def __init__(
        self, run: ServedRun, collector: Any, fresh: dict[int, Any], unshared: frozenset[int], shares: Shares | None
    ) -> None:
        self._run = run
        self._collector = collector
        self._fresh = fresh
        self._unshared = unshared
        self._shares = shares
        self._known: dict[int, Any] = {}

    def of(self, value: Any) -> Any:
        """Return what the request has of one value."""
        kind = type(value)
        if kind is not Together and kind not in (list, tuple, dict):
            return value
        if id(value) in self._known:
            return self._known[id(value)]
        made: Any
        if kind is Together:
            made = self._part(value)
        elif kind is dict:
            made = {key: self.of(part) for key, part in value.items()}
        else:
            made = None if self._shares is None else self._shares.row(value, self._run)
            if made is None:
                made = kind([self.of(part) for part in value])
                if all(id(part) in self._fresh for part in made):
                    self._fresh[id(made)] = made
            else:
                self._fresh[id(made)] = made
        self._known[id(value)] = made
        if self._collector.has(value):
            self._collector.add(made)
        return made

    def _part(self, value: Together) -> Any:
        made: Any
        if self._shares is not None and self._shares.can(value):
            made = self._shares.of(value, self._run)
        else:
            made = value.of(self._run)
            if id(value) not in self._unshared or not isinstance(made, torch.Tensor):
                return made
            made = copied(made) if made.device.type == "cpu" else made.cpu()
        self._fresh[id(made)] = made
        return made
