"""Which values inside a layer add up to what it does: they are searched for by their numbers.

A residual stream is a sum: what a layer gives is what it takes, plus what its parts add. So whichever values inside add up to
that are the contributions, whatever their modules are called, and whether norms or multipliers lie between.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import torch

#: How many values are added up at most.
MOST = 3


def equal(got: torch.Tensor, want: torch.Tensor, beside: torch.Tensor | None = None) -> bool:
    """Say whether two values are the same to rounding, which is that of `beside` if they are a difference to that."""
    return got.shape == want.shape and _error(got, want, want if beside is None else beside) <= 1


def terms(
    values: Mapping[str, torch.Tensor], start: torch.Tensor, end: torch.Tensor, numbers: Sequence[float]
) -> tuple[list[str], float] | None:
    """Return the values that lead from one to the other when they are added, and by what they are multiplied before.

    Args:
        values: by the paths of modules [tokens, hidden].
        start, end: the stream before and after the layer.
        numbers: what they may be multiplied by, besides 1.
    """
    added = end.double() - start.double()
    distinct: dict[str, torch.Tensor] = {}
    for path, value in values.items():
        if value.shape == end.shape and not any(torch.equal(value, other) for other in distinct.values()):
            distinct[path] = value.double()
    found: list[tuple[float, int, float, tuple[str, ...]]] = []
    for scale in (1.0, *numbers):
        for count in range(1, MOST + 1):
            for paths in itertools.combinations(distinct, count):
                if any(b.startswith(f"{a}.") or a.startswith(f"{b}.") for a, b in itertools.combinations(paths, 2)):
                    continue
                error = _error(scale * torch.stack([distinct[path] for path in paths]).sum(0), added, end)
                if error <= 1:
                    found.append((error, count, scale, paths))
        if found:
            break
    if not found:
        return None
    # Rounding decides nothing: of those that fit about as well, the one with the fewest terms.
    best = min(error for error, *_ in found)
    _, _, scale, paths = min((one for one in found if one[0] <= 10 * best), key=lambda one: (one[1], one[0]))
    return list(paths), scale


def _error(got: torch.Tensor, want: torch.Tensor, beside: torch.Tensor) -> float:
    """Return how far one is from the other, in what rounding allows."""
    exact = 1e-4 if beside.dtype in (torch.float32, torch.float64) else 2e-2
    allowed = exact * want.double().norm() + 8 * torch.finfo(beside.dtype).eps * beside.double().norm()
    return float((got.double() - want.double()).norm() / allowed.clamp(min=1e-30))
