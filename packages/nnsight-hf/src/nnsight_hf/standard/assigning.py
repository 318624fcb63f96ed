"""Whether assigning does what reading says: every contribution is replaced by noise, and each layer must add just that.

A value may equal what a part adds and still not be what the model goes on with.
"""

from __future__ import annotations

import functools
from typing import Any

import torch

from nnsight.plugin import tree_map
from nnsight_hf.standard.found import Block, Resolution, Spot
from nnsight_hf.standard.parts import NAMES
from nnsight_hf.standard.record import Record, is_states, record
from nnsight_hf.standard.sums import equal


def confirm(made: Resolution, module: Any) -> None:
    """Withdraw the contributions of layers that do not add what is assigned to them."""
    for part in ("mixer", "mlp"):
        spots = [spot for block in made.blocks for spot in block.where.get(NAMES[part][1], ())]
        if not spots:
            continue
        generator = torch.Generator().manual_seed(0)
        others = {spot.path: functools.partial(_other, spot, made.hidden, generator) for spot in spots}
        seen = record(module, made.hidden, others)
        for block in made.blocks:
            if NAMES[part][1] in block.where and _adds(block, seen) is False:
                _withdraw(block, part)


def _other(spot: Spot, hidden: int, generator: torch.Generator, output: Any) -> Any:
    """Return an output with noise in place of the hidden states."""
    done = False

    def replaced(leaf: torch.Tensor) -> torch.Tensor:
        nonlocal done
        if done or not is_states(leaf, hidden, spot.flat):
            return leaf
        done = True
        noise = torch.randn(leaf.shape, generator=generator).to(leaf)
        return noise * (leaf.norm() / noise.norm())

    return tree_map(replaced, output)


def _adds(block: Block, seen: Record) -> bool | None:
    """Say whether a layer's sum comes out in a run; None where it has none."""
    if not all(NAMES[part][1] in block.where or NAMES[part][1] in block.without for part in ("mixer", "mlp")):
        return None
    start, end = seen.input(block.path), seen.output(block.path)
    if start is None or end is None:
        return False
    total = start.double()
    for part in ("mixer", "mlp"):
        for spot in block.where.get(NAMES[part][1], ()):
            value = seen.output(spot.path)
            if value is None:
                return False
            total = total + value.double() * spot.scale
    return equal(total.to(end.dtype), end)


def _withdraw(block: Block, part: str) -> None:
    names = {NAMES[part][1]} | ({NAMES["attention"][1]} if part == "mixer" else set())
    for name in names & block.where.keys():
        del block.where[name]
        block.why[name] = "what is assigned where it lies is not what the layer adds"
