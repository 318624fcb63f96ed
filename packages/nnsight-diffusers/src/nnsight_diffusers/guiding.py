"""Guidance of each invoke's own, in a call of a pipeline that has one scale for all.

The pipeline gets the largest scale S. Where it makes `u + S (c - u)` of the unconditional prediction u and the conditional
one c, an invoke with the scale s needs `u + s (c - u)`, and gets it if the pipeline sees `u + s/S (c - u)` in the place
of c. A denoiser that is told the scale is told each invoke's.
"""

from __future__ import annotations

from typing import Any

import torch

from nnsight.plugin import tree_map
from nnsight_diffusers.batch import Batch
from nnsight_diffusers.source import CONDITIONAL


def guided(output: Any, batch: Batch, order: tuple[str | None, ...]) -> Any:
    """Return a prediction, in the pipeline's order, from which it makes what each invoke's own scale would.

    Args:
        output: what the denoiser gave, with tensors [2 x images, ...].
        batch: the invokes.
        order: which part of a batch is for what.
    """
    conditional = order.index(CONDITIONAL)
    shares = _shares(batch)

    def put(tensor: torch.Tensor) -> torch.Tensor:
        if not tensor.dim() or tensor.shape[0] != 2 * batch.made:
            return tensor
        halves = list(tensor.chunk(2))
        c, u = halves[conditional], halves[1 - conditional]
        share = tensor.new_tensor(shares).view(-1, *[1] * (tensor.dim() - 1))
        # Those with the scale that the pipeline has stay as they are, to the last bit.
        halves[conditional] = torch.where(share == 1, c, u + share * (c - u))
        return torch.cat(halves)

    return tree_map(put, output)


def told(kwargs: dict[str, Any], batch: Batch, size: int) -> dict[str, Any]:
    """Return the arguments of a denoiser in which the scale that it is told is each invoke's.

    Args:
        kwargs: the arguments, in the pipeline's order.
        batch: the invokes.
        size: how many rows the call has.
    """
    said = kwargs.get("guidance")
    if not isinstance(said, torch.Tensor) or said.shape[:1] != (size,):
        return kwargs
    own = said.new_tensor(_shares(batch)).repeat(size // batch.made)
    return {**kwargs, "guidance": said * own.view(-1, *[1] * (said.dim() - 1))}


def _shares(batch: Batch) -> list[float]:
    """Return, for each image, its scale as a part of the largest."""
    assert batch.scales is not None
    most = max(batch.scales)
    return [scale / most for scale, count in zip(batch.scales, batch.counts) for _ in range(count * batch.images)]
