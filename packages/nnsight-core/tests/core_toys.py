"""The models that the tests of the core trace: small, seeded, and easy to call by hand."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

WIDTH = 8


class Block(nn.Module):
    """A residual block with parts of its own."""

    def __init__(self, width: int = WIDTH) -> None:
        super().__init__()
        self.attn = nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.Tanh(), nn.Linear(2 * width, width))

    def forward(self, x: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
        x = x + scale * self.attn(x)
        return x + self.mlp(x)


class Toy(nn.Module):
    """Embedding, blocks, norm and head, in the shape of a language model."""

    def __init__(self, depth: int = 3, width: int = WIDTH) -> None:
        super().__init__()
        self.embed = nn.Linear(4, width)
        self.layers = nn.ModuleList([Block(width) for _ in range(depth)])
        self.ln = nn.LayerNorm(width)
        self.head = nn.Linear(width, 5)

    def forward(self, x: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
        h = self.embed(x)
        for layer in self.layers:
            h = layer(h, scale=scale)
        return self.head(self.ln(h))

    def twice(self, x: torch.Tensor) -> torch.Tensor:
        """Call the forward two times."""
        return self(x) + self(x * 2)


class Pair(nn.Module):
    """Gives a tuple."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.left(x), self.right(x)


class TupleModel(nn.Module):
    """Uses both halves of a tuple."""

    def __init__(self) -> None:
        super().__init__()
        self.pair = Pair()
        self.last = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        left, right = self.pair(x)
        return self.last(left - 2 * right)


class Recurrent(nn.Module):
    """Calls one cell several times."""

    def __init__(self, rounds: int = 4) -> None:
        super().__init__()
        self.cell = nn.Linear(4, 4)
        self.rounds = rounds

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for _ in range(self.rounds):
            x = torch.tanh(self.cell(x))
        return x


class Colliding(nn.Module):
    """Has submodules with the names of our own attributes, as BERT has `output`."""

    names = ("output", "input", "inputs", "trace", "source", "get", "modules_", "next", "path", "skip")

    def __init__(self) -> None:
        super().__init__()
        for name in self.names:
            self.add_module(name, nn.Linear(4, 4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for name in self.names:
            x = torch.tanh(self._modules[name](x))
        return x


def seeded(make: Any, *args: Any, **kwargs: Any) -> Any:
    """Build a module with weights that are the same each time."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return make(*args, **kwargs).eval()


def rows(count: int = 2, width: int = 4, seed: int = 1) -> torch.Tensor:
    """Make an input."""
    return torch.rand(count, width, generator=torch.Generator().manual_seed(seed))


class Hooked:
    """A run of a module with plain hooks: the other way of computing what a trace gives.

    Args:
        module: what to run.
        edits: by path of a submodule, what its output becomes.
    """

    def __init__(self, module: nn.Module, *args: Any, edits: dict[str, Any] | None = None, **kwargs: Any) -> None:
        self.outputs: dict[str, list[Any]] = {}
        self.inputs: dict[str, list[Any]] = {}
        handles = []
        for path, part in module.named_modules():
            handles.append(part.register_forward_hook(self._hook(path, (edits or {}).get(path)), with_kwargs=True))
        try:
            with torch.no_grad():
                self.result = module(*args, **kwargs)
        finally:
            for handle in handles:
                handle.remove()

    def _hook(self, path: str, edit: Any) -> Any:
        def hook(module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
            if edit is not None:
                output = edit(output)
            self.inputs.setdefault(path, []).append((args, kwargs))
            self.outputs.setdefault(path, []).append(output)
            return output

        return hook

    def __getitem__(self, path: str) -> Any:
        """The output of a module at its first visit."""
        return self.outputs[path][0]
