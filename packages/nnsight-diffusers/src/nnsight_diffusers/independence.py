"""Whether the rows of a module see one another: whether it gives the same for rows in another order.

Invokes share a call because rows do not: what a module makes of one does not depend on the others, or on where it lies. But
some ways to guide an image do look from one part of a batch to the other, by its place (perturbed or self-attention
guidance). So before rows are first put in order for a module, it is run on them in both orders, once for each kind of call.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from nnsight.plugin import leaves
from nnsight_diffusers.batch import reordered
from nnsight_diffusers.shapes import unshared

#: The arguments of a call.
Given = tuple[tuple[Any, ...], Mapping[str, Any]]


def holds(model: Any, path: str, given: Given, ordered: Given, order: Sequence[int]) -> bool:
    """Say whether a module gives the same for its rows in two orders.

    Args:
        model: the model that holds it; it is run without its edits.
        path: the module, below the model.
        given, ordered: the arguments in the pipeline's order, and in ours.
        order: what leads from the one to the other.
    """
    bare = copy.copy(model)
    bare.clear_edits()
    one, other = (leaves(_run(bare.get(path), call)) for call in (given, ordered))
    return all(_close(a, b) for a, b in zip(reordered(one, order), other))


def _run(envoy: Any, given: Given) -> Any:
    args, kwargs = unshared(given)
    with torch.no_grad():
        return envoy.trace(*args, trace=False, **kwargs)


def _close(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Say whether two tensors are equal but for rounding, which the place of a row in a batch may change."""
    if not a.is_floating_point():
        return torch.equal(a, b)
    coarse = a.dtype in (torch.float16, torch.bfloat16)
    return bool((a - b).abs().max() <= (0.1 if coarse else 1e-2) * a.abs().max().clamp(min=1e-6))
