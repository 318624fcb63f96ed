"""How a tensor is shared out among ranks, and made whole again.

One idea: a share says, for each rank, which entries of the whole it has along one dimension, and in which order. So parts
that are merged (queries, keys, values), heads that several ranks have, and plain slices are all the same thing.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

Ranges = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Share:
    """How a tensor is shared out along one dimension.

    Attributes:
        dim: the dimension, counted from the end: -1 is the last.
        entries: for each rank, what it has of the whole, in its own order: where each range begins, and how long it is.
    """

    dim: int
    entries: tuple[Ranges, ...]

    @functools.cached_property
    def sizes(self) -> tuple[int, ...]:
        """How many entries each rank has."""
        return tuple(sum(length for _, length in ranges) for ranges in self.entries)

    @functools.cached_property
    def size(self) -> int:
        """How many entries the whole has."""
        return 1 + max(start + length - 1 for ranges in self.entries for start, length in ranges)

    @functools.cached_property
    def _order(self) -> torch.Tensor | None:
        """Where the entries of the whole are among those of all ranks, one after another; None if they lie in order."""
        column = torch.cat([spelled(ranges) for ranges in self.entries])
        if torch.equal(column, torch.arange(self.size)):
            return None
        order = torch.full((self.size,), -1)
        for at in range(len(column) - 1, -1, -1):  # of what several ranks have, the first one's counts
            order[column[at]] = at
        return order

    def fits(self, part: torch.Tensor, rank: int) -> bool:
        """Say whether this can be a rank's part."""
        return part.dim() >= -self.dim and part.shape[self.dim] == self.sizes[rank]

    def gather(self, part: torch.Tensor, group: Any) -> torch.Tensor:
        """Return the whole, of which each rank has a part; every rank calls this."""
        moved = part.movedim(self.dim, 0).contiguous()
        # As bytes, since not every backend has every type.
        flat = moved.reshape(-1).view(torch.uint8)
        parts = [torch.empty_like(flat) for _ in self.entries]
        dist.all_gather(parts, flat, group=group)
        whole = torch.cat(parts).view(part.dtype).reshape(-1, *moved.shape[1:])
        if self._order is not None:
            whole = whole.index_select(0, self._order.to(whole.device))
        return whole.movedim(0, self.dim).contiguous()

    def split(self, whole: torch.Tensor, rank: int) -> torch.Tensor:
        """Return a rank's part of a whole."""
        ranges = self.entries[rank]
        if len(ranges) == 1:
            return whole.narrow(self.dim, *ranges[0]).contiguous()
        return torch.cat([whole.narrow(self.dim, start, length) for start, length in ranges], self.dim)


def spelled(ranges: Ranges) -> torch.Tensor:
    """Return the entries that ranges mean."""
    return torch.cat([torch.arange(start, start + length) for start, length in ranges])


def ranged(entries: torch.Tensor) -> Ranges:
    """Return entries as ranges."""
    if not len(entries):
        return ()
    breaks = (torch.nonzero(entries.diff() != 1).flatten() + 1).tolist()
    ends = [*breaks, len(entries)]
    return tuple((int(entries[start]), end - start) for start, end in zip([0, *breaks], ends))
