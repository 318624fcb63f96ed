"""The memory of attention, and what a traced request leaves there.

One idea: blocks of the cache go from one request to the next as they are, and kernels multiply what lies behind the end of a
request with zero. So what a body made infinite, or no number, would reach whoever has the block next: it is wiped first.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch

from nnsight.plugin import leaves


def wipe(caches: Any, blocks: Iterable[int], count: int) -> None:
    """Fill blocks with zeros.

    Args:
        caches: of all layers.
        blocks: which.
        count: how many there are.

    relies on: blocks lie in the first dimension of a cache, or in the second behind keys and values; a kernel may have cut
    each into several; vLLM 0.30 to 0.33.
    """
    wanted = sorted(blocks)
    runs = _runs(wanted)
    for cache in {leaf.data_ptr(): leaf for leaf in leaves(caches)}.values():
        dim = 0 if cache.shape[0] >= count and cache.shape[0] % count == 0 else 1
        parts = cache.shape[dim] // count
        # Not every operation knows numbers of eight bits; their zeros are bytes of zeros.
        plain = cache.view(torch.uint8) if cache.element_size() == 1 else cache
        if len(runs) <= _FEW:
            for first, length in runs:
                plain.narrow(dim, first * parts, length * parts).zero_()
        else:
            pieces = (torch.tensor(wanted)[:, None] * parts + torch.arange(parts)).flatten().to(cache.device)
            plain.index_fill_(dim, pieces, 0)


#: As many stretches are filled one by one: memory that hangs together is filled several times as fast.
_FEW = 16


def _runs(numbers: Sequence[int]) -> list[tuple[int, int]]:
    """Return the stretches in which numbers follow each other: the first of each, and how many there are."""
    runs: list[tuple[int, int]] = []
    for number in numbers:
        if runs and sum(runs[-1]) == number:
            runs[-1] = (runs[-1][0], runs[-1][1] + 1)
        else:
            runs.append((number, 1))
    return runs
