"""The same work with PyTorch's own hooks: registered, run, removed, as one would write it by hand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

Hook = Callable[[nn.Module, Any, Any], Any]


def _run(net: Any, modules: Sequence[nn.Module], hook: Hook, call: Callable[[], Any]) -> None:
    handles = [module.register_forward_hook(hook) for module in modules]
    try:
        call()
    finally:
        for handle in handles:
            handle.remove()


def read(net: Any, x: Tensor, layers: Sequence[int]) -> Tensor:
    """Read the outputs of some layers."""
    kept: list[Tensor] = []

    def keep(module: nn.Module, args: Any, output: Tensor) -> None:
        kept.append(output)

    _run(net, [net.layers[number] for number in layers], keep, lambda: net(x))
    return kept[-1]


def replace(net: Any, x: Tensor, layers: Sequence[int]) -> Tensor:
    """Read and replace the outputs of some layers."""
    kept: list[Tensor] = []

    def change(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        kept.append(output * 1.5)
        return kept[-1]

    _run(net, [net.layers[number] for number in layers], change, lambda: net(x))
    return kept[-1]


def cache(net: Any, x: Tensor) -> dict[str, Tensor]:
    """Keep the outputs of all modules that run, by path."""
    kept: dict[str, Tensor] = {}
    handles = []
    for name, module in net.named_modules():
        path = f"model.{name}" if name else "model"

        def keep(module: nn.Module, args: Any, output: Tensor, path: str = path) -> None:
            kept[path] = output.detach()

        handles.append(module.register_forward_hook(keep))
    try:
        net(x)
    finally:
        for handle in handles:
            handle.remove()
    return kept


def invokes(net: Any, x: Tensor, count: int, layer: int) -> Tensor:
    """Read one layer of a batch, a row for each of several prompts."""
    kept: list[Tensor] = []

    def keep(module: nn.Module, args: Any, output: Tensor) -> None:
        for row in range(count):
            kept.append(output[row : row + 1])

    _run(net, [net.layers[layer]], keep, lambda: net(torch.cat([x] * count)))
    return kept[-1]


def overwrite(net: Any, x: Tensor, count: int, value: Tensor) -> Tensor:
    """Overwrite one layer's output, row by row."""
    kept: list[Tensor] = []

    def change(module: nn.Module, args: Any, output: Tensor) -> None:
        for row in range(count):
            output[row : row + 1] = value

    _run(net, [net.layers[1]], change, lambda: kept.append(net(torch.cat([x] * count))))
    return kept[-1]


def generate(net: Any, x: Tensor, steps: int, layer: int) -> Tensor:
    """Read one layer in every step of a generation."""
    kept: list[Tensor] = []

    def keep(module: nn.Module, args: Any, output: Tensor) -> None:
        kept.append(output)

    _run(net, [net.layers[layer]], keep, lambda: net.generate(x, steps))
    return kept[-1]
