"""Wiping the memory that a request leaves: the blocks that are named, whole, and no others."""

from __future__ import annotations

import pytest
import torch

from nnsight_vllm.worker.memory import wipe

BLOCKS, SIZE = 48, 3


@pytest.mark.parametrize("blocks", [{5}, {4, 5, 6, 40}, set(range(0, 48, 2)), {*range(20), *range(21, 48, 3)}], ids=len)
@pytest.mark.parametrize("cut", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float8_e4m3fn], ids=str)
def test_blocks_are_filled_with_zeros_and_others_are_left(blocks, cut, dtype):
    first = torch.ones(BLOCKS * cut, 2, SIZE).to(dtype)
    second = torch.ones(2, BLOCKS * cut, SIZE).to(dtype)
    wipe([first, {"shared": first, "other": second}], blocks, BLOCKS)
    for piece in range(BLOCKS * cut):
        wanted = 0.0 if piece // cut in blocks else 1.0
        assert (first[piece].float() == wanted).all() and (second[:, piece].float() == wanted).all()
