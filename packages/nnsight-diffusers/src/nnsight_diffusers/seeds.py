"""Where the noise of a run comes from: generators that diffusers is given, one for each image.

An image's noise depends on its own seed only, and not on how many others share the call; so what is drawn in a batch is
what is drawn alone. They are made on the CPU, as diffusers recommends, so that every device draws the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from nnsight import RowsError


def check(seed: Any, generator: Any) -> None:
    """Refuse what is no seed.

    Raises:
        TypeError: it is no number, or there is a generator besides.
    """
    if seed is None:
        return
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise TypeError(f"a seed is a whole number, not {seed!r}")
    if generator is not None:
        raise TypeError("`seed=` and `generator=` both say where noise comes from: give one of them")


def of_seed(seed: int, images: int) -> list[torch.Generator]:
    """Return the generators of an input: the first image's is seeded with the seed, the next with the number after it."""
    return [torch.Generator("cpu").manual_seed(seed + at) for at in range(images)]


def of_batch(
    seeds: Sequence[int | None], generators: Sequence[Any], images: Sequence[int]
) -> list[torch.Generator] | None:
    """Return the generators of all images of a batch; None if no invoke asks for any.

    Args:
        seeds, generators: what each invoke gave, None for nothing.
        images: how many images each invoke makes.

    Raises:
        RowsError: an invoke gives one generator for several images, whose noise would depend on what shares the call.
    """
    if all(seed is None for seed in seeds) and all(generator is None for generator in generators):
        return None
    found: list[torch.Generator] = []
    for seed, given, count in zip(seeds, generators, images):
        if seed is not None:
            found += of_seed(seed, count)
        elif given is None:
            # From torch's own generator, as this invoke would have drawn alone.
            found += of_seed(int(torch.randint(2**62, ())), count)
        else:
            own = list(given) if isinstance(given, (list, tuple)) else [given]
            if len(own) != count:
                raise RowsError(
                    f"an invoke that makes {count} images gives {len(own)} generator(s); in a batch each image needs its "
                    "own: give a list of as many, or `seed=`"
                )
            found += own
    return found
