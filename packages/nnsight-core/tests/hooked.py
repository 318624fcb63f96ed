"""Small models, and what plain PyTorch hooks see and change in them: the other way to compute what a trace gives.

Weights are seeded, so that two instances made alike are equal.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch

Edit = Callable[[Any, int], Any]


class Stack(torch.nn.Module):
    """Linear layers with a residual stream, and a head: the shape of a transformer, without attention."""

    def __init__(self, depth: int = 3, width: int = 4, out: int = 5) -> None:
        super().__init__()
        torch.manual_seed(depth * 100 + width)
        self.embed = torch.nn.Linear(width, width)
        self.layers = torch.nn.ModuleList(torch.nn.Linear(width, width) for _ in range(depth))
        self.head = torch.nn.Linear(width, out)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.embed(x)
        for layer in self.layers:
            h = h + torch.tanh(layer(h))
        return self.head(h)


class Generator(torch.nn.Module):
    """Calls itself once for each step, like a language model that generates."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        torch.manual_seed(7)
        self.first = torch.nn.Linear(width, width)
        self.second = torch.nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(self.second(torch.tanh(self.first(x))))

    def generate(self, x: torch.Tensor, n: int) -> torch.Tensor:
        for _ in range(n):
            x = self(x)
        return x


class Recurrent(torch.nn.Module):
    """Visits one cell several times in a single forward."""

    def __init__(self, visits: int = 4, width: int = 4) -> None:
        super().__init__()
        torch.manual_seed(9)
        self.visits = visits
        self.cell = torch.nn.Linear(width, width)
        self.inner = torch.nn.Linear(width, width)
        self.head = torch.nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for _ in range(self.visits):
            x = torch.tanh(self.inner(self.cell(x)))
        return self.head(x)


class Called:
    """What plain hooks saw: the result of the call, and each module's outputs and inputs, visit by visit."""

    def __init__(self) -> None:
        self.result: Any = None
        self.outputs: dict[str, list[Any]] = {}
        self.inputs: dict[str, list[Any]] = {}

    def __getitem__(self, name: str) -> Any:
        """Give the output of a module that was visited once."""
        (value,) = self.outputs[name]
        return value


def by_hooks(
    module: torch.nn.Module,
    *args: Any,
    call: str | None = None,
    reads: Iterable[str] = (),
    edits: Mapping[str, Edit] | None = None,
    **kwargs: Any,
) -> Called:
    """Call a module with plain hooks; `edits` maps a submodule's name to `edit(output, visit)`, None for no change."""
    seen = Called()
    changes = dict(edits or {})
    handles = []

    def watch(name: str) -> None:
        seen.outputs[name], seen.inputs[name] = [], []

        def hook(_: torch.nn.Module, given: tuple[Any, ...], output: Any) -> Any:
            visit = len(seen.outputs[name])
            if name in changes:
                changed = changes[name](output, visit)
                output = output if changed is None else changed
            seen.inputs[name].append(given)
            seen.outputs[name].append(output)
            return output

        handles.append(module.get_submodule(name).register_forward_hook(hook))

    for name in {*reads, *changes}:
        watch(name)
    try:
        seen.result = (module if call is None else getattr(module, call))(*args, **kwargs)
    finally:
        for handle in handles:
            handle.remove()
    return seen


def untouched(module: torch.nn.Module) -> bool:
    """Say whether nothing is left on any module of a tree: no instance-level forward, no hook."""
    return all(
        "forward" not in part.__dict__
        and not (part._forward_hooks or part._forward_pre_hooks or part._backward_hooks or part._backward_pre_hooks)
        for part in module.modules()
    )
