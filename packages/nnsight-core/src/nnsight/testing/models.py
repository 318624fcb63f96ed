"""Small models that between them do what large ones do: branch, give tuples, repeat, generate, attend.

Each is a plain `torch.nn.Module` of a few lines, so that it can be followed by hand; `seeded` makes one with weights that
are the same every time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import nn

M = TypeVar("M", bound=nn.Module)


def seeded(make: Callable[..., M], *args: Any, seed: int = 0, **kwargs: Any) -> M:
    """Make a module with the weights that this seed gives, and leave torch's own random state as it is."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make(*args, **kwargs).eval()


class MLP(nn.Module):
    """Layers with a residual stream: `embed`, `layers`, `head`."""

    def __init__(self, depth: int = 3, width: int = 8, out: int = 5) -> None:
        super().__init__()
        self.embed = nn.Linear(4, width)
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.head = nn.Linear(width, out)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Take [rows, 4] and give [rows, out]."""
        h = self.embed(x)
        for layer in self.layers:
            h = h + torch.tanh(layer(h))
        return self.head(h)  # type: ignore[no-any-return]  # torch's modules return Any


class Halves(nn.Module):
    """Gives a tuple."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Give both halves."""
        return self.left(x), self.right(x)


class Pair(nn.Module):
    """Has a module, `halves`, that gives a tuple, both parts of which are used."""

    def __init__(self) -> None:
        super().__init__()
        self.halves = Halves()
        self.last = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Take [rows, 4] and give as much."""
        left, right = self.halves(x)
        return self.last(left - 2 * right)  # type: ignore[no-any-return]


class Recurrent(nn.Module):
    """Visits one `cell` several times in a single forward."""

    def __init__(self, visits: int = 4) -> None:
        super().__init__()
        self.visits = visits
        self.cell = nn.Linear(4, 4)
        self.head = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Take [rows, 4] and give as much."""
        for _ in range(self.visits):
            x = torch.tanh(self.cell(x))
        return self.head(x)  # type: ignore[no-any-return]


class Generating(nn.Module):
    """Calls itself once for each step, as a language model does that generates."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Take [rows, 4] and give as much."""
        return torch.tanh(self.second(torch.tanh(self.first(x))))

    def generate(self, x: torch.Tensor, steps: int = 3) -> torch.Tensor:
        """Feed its own output to it, `steps` times."""
        for _ in range(steps):
            x = self(x)
        return x


class Block(nn.Module):
    """Attention and an MLP around a residual stream."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm, self.mlp_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.proj = nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Take [rows, positions, width] and give as much."""
        h = self.norm(x)
        query, key, value = (
            part(h).unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (self.query, self.key, self.value)
        )
        attended = nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.proj(attended.transpose(1, 2).flatten(2))
        return x + self.mlp(self.mlp_norm(x))  # type: ignore[no-any-return]


class Transformer(nn.Module):
    """A decoder of tokens: `embed`, `layers`, `norm`, `head`, and `generate`, which always takes the likeliest token."""

    def __init__(
        self, vocabulary: int = 17, width: int = 8, depth: int = 2, heads: int = 2, positions: int = 32
    ) -> None:
        super().__init__()
        self.embed, self.place = nn.Embedding(vocabulary, width), nn.Embedding(positions, width)
        self.layers = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocabulary)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Take ids [rows, positions] and give logits [rows, positions, vocabulary]."""
        h = self.embed(ids) + self.place(torch.arange(ids.shape[1], device=ids.device))
        for layer in self.layers:
            h = layer(h)
        return self.head(self.norm(h))  # type: ignore[no-any-return]

    def generate(self, ids: torch.Tensor, steps: int = 3) -> torch.Tensor:
        """Append `steps` tokens to ids [rows, positions]."""
        for _ in range(steps):
            ids = torch.cat([ids, self(ids)[:, -1:].argmax(-1)], dim=1)
        return ids
