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

    def scale_of_images(self) -> list[float]:
        """Return the guidance of each image, where invokes differ."""
        assert self.scales is not None
        return [scale for scale, count in zip(self.scales, self.counts) for _ in range(count * self.images)]


def reordered(value: Any, size: int, order: Sequence[int]) -> Any:
    """Return a structure in which the tensors of a size have their rows in another order."""
    index = torch.tensor(order)

    def put(tensor: torch.Tensor) -> torch.Tensor:
        if not tensor.dim() or tensor.shape[0] != size:
            return tensor
        return tensor.index_select(0, index.to(tensor.device))

    return tree_map(put, value)


def inverse(order: Sequence[int]) -> list[int]:
    """Return the order that undoes another."""
    found = [0] * len(order)
    for at, place in enumerate(order):
        found[place] = at
    return found
