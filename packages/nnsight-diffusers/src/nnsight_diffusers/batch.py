"""Several invokes in one call of a pipeline: whose rows are whose, and the order in which they lie while a module runs.

A pipeline with guidance calls its denoiser with a batch of parts: all rows without a prompt, then all rows with one. An
invoke's rows then lie apart, and no view can show them. So on its way into a module the batch is put in another order,
invoke by invoke, and on its way out into the pipeline's again: inside, each invoke has its rows side by side, in the
very shape that it has alone. Rows do not see one another, so no value changes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from nnsight.plugin import tree_map

if TYPE_CHECKING:
    from nnsight_diffusers.layout import PipelineLayout


class Batch:
    """The invokes of one call.

    Args:
        counts: how many rows each invoke has.
        seeds, generators: where each gets its noise from.
        scales: the guidance of each, where they differ.

    Attributes:
        images: how many images the pipeline makes of each row; known once all options are.
        layout: how the rows lie; likewise.
    """

    layout: PipelineLayout

    def __init__(
        self,
        counts: Sequence[int],
        seeds: Sequence[int | None],
        generators: Sequence[Any],
        scales: Sequence[float] | None = None,
    ) -> None:
        self.counts = list(counts)
        self.seeds = list(seeds)
        self.generators = list(generators)
        self.scales = scales
        self.images = 1

    @property
    def total(self) -> int:
        """How many rows there are."""
        return sum(self.counts)

    @property
    def made(self) -> int:
        """How many images are made."""
        return self.total * self.images

    def order(self, parts: int) -> list[int]:
        """Return where in the pipeline's order the rows lie that come one after another in ours.

        Args:
            parts: how many parts the batch has, each of all images.
        """
        found, start = [], 0
        for count in self.counts:
            own = range(start * self.images, (start + count) * self.images)
            found += [part * self.made + at for part in range(parts) for at in own]
            start += count
        return found


def entries(tensor: torch.Tensor, rows: int) -> int:
    """Return how many entries side by side along dimension 0 each of some rows has in a tensor; 0 if they have none."""
    several, rest = divmod(tensor.shape[0], rows) if tensor.dim() and rows else (0, 0)
    return 0 if rest else several


def reordered(value: Any, order: Sequence[int]) -> Any:
    """Return a structure whose tensors have their rows in another order.

    Args:
        value: what a module takes or gives; a tensor in it has as many rows as the order, or several entries for each of
            them, side by side (frames); any other is left as it is.
        order: where the rows lie now that are to come one after another.
    """

    def put(tensor: torch.Tensor) -> torch.Tensor:
        several = entries(tensor, len(order))
        if not several:
            return tensor
        places = [at * several + entry for at in order for entry in range(several)]
        return tensor.index_select(0, torch.tensor(places, device=tensor.device))

    return tree_map(put, value)


def inverse(order: Sequence[int]) -> list[int]:
    """Return the order that undoes another."""
    found = [0] * len(order)
    for at, place in enumerate(order):
        found[place] = at
    return found
