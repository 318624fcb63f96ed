"""`fingerprint`: whether the weights of a model are still the same.

The one idea: a sum of the bits of every weight, with its shape, is read at the speed of the memory and computed where
the weights lie. It is no cryptographic hash: it notices what a block changed by mistake, or forgot to change back.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

_WHOLE = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_CHUNK = 1 << 22


@torch.no_grad()
def fingerprint(module: torch.nn.Module) -> tuple[object, ...]:
    """Describe parameters, buffers and modes of a module so that a change of any shows; the module is only read."""
    tensors = {name: tensor for name, tensor in _tensors(module) if tensor.device.type != "meta"}
    sums = [_sum(tensor) for tensor in tensors.values()]
    shapes = [(name, tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()]
    hooks = sum(len(part._forward_hooks) + len(part._forward_pre_hooks) for part in module.modules())
    modes = tuple(part.training for part in module.modules())
    return (tuple(shapes), tuple(int(value) for value in sums), hooks, modes)


def _tensors(module: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    yield from module.named_parameters()
    yield from module.named_buffers()


def _sum(tensor: torch.Tensor) -> torch.Tensor:
    bits = tensor.detach().contiguous()
    if bits.is_complex():
        bits = torch.view_as_real(bits)
    bits = bits.reshape(-1).view(_WHOLE[bits.element_size()])
    total = torch.zeros((), dtype=torch.int64, device=bits.device)
    for number, part in enumerate(bits.split(_CHUNK)):  # so that a large weight needs no copy of its size
        # Weighted by place, so that two values that change places show.
        places = torch.arange(1, part.numel() + 1, device=bits.device) % 65_521 + number
        total += (part.to(torch.int64) * places).sum()
    return total
