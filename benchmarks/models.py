"""The models that are timed: small, so that what is added to a forward is not lost in it.

All of them keep their blocks in `layers`, so that one text of a block serves all three.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

import gpt2
import pipeline


class Chain(nn.Module):
    """Layers one after the other."""

    def __init__(self, layers: list[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


class Attention(nn.Module):
    """Causal self-attention with GPT-2's parts."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.c_attn = nn.Linear(width, 3 * width)
        self.c_proj = nn.Linear(width, width)
        self.attn_dropout = nn.Dropout(0.1)
        self.resid_dropout = nn.Dropout(0.1)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        query, key, value = (
            part.view(batch, length, self.heads, -1).transpose(1, 2) for part in self.c_attn(x).split(width, dim=2)
        )
        mixed = functional.scaled_dot_product_attention(query, key, self.attn_dropout(value), is_causal=True)
        return self.resid_dropout(self.c_proj(mixed.transpose(1, 2).reshape(batch, length, width)))


class FeedForward(nn.Module):
    """GPT-2's two-layer network."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.c_fc = nn.Linear(width, 4 * width)
        self.act = nn.GELU(approximate="tanh")
        self.c_proj = nn.Linear(4 * width, width)
        self.dropout = nn.Dropout(0.1)

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(self.c_proj(self.act(self.c_fc(x))))


class Block(nn.Module):
    """One layer of GPT-2."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(width)
        self.attn = Attention(width, heads)
        self.ln_2 = nn.LayerNorm(width)
        self.mlp = FeedForward(width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class GPT2Shaped(nn.Module):
    """GPT-2's tree of 163 modules, but narrow: overheads depend on the tree, and the arithmetic would hide them."""

    def __init__(self, width: int = 64, vocabulary: int = 256) -> None:
        super().__init__()
        self.wte = nn.Embedding(vocabulary, width)
        self.wpe = nn.Embedding(64, width)
        self.drop = nn.Dropout(0.1)
        self.layers = nn.ModuleList(Block(width, heads=4) for _ in range(12))
        self.ln_f = nn.LayerNorm(width)
        self.lm_head = nn.Linear(width, vocabulary, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.drop(self.wte(ids) + self.wpe(torch.arange(ids.shape[1])))
        for layer in self.layers:
            x = layer(x)
        return self.lm_head(self.ln_f(x))

    def generate(self, ids: Tensor, steps: int) -> Tensor:
        """Append the likeliest token `steps` times."""
        for _ in range(steps):
            ids = torch.cat([ids, self(ids)[:, -1:].argmax(-1)], dim=1)
        return ids


@dataclass(frozen=True)
class Subject:
    """A model to be timed, and one row of input for it."""

    net: Any
    x: Tensor

    def picked(self, count: int) -> list[int]:
        """Return the numbers of `count` layers, spread evenly; the last layer is always among them."""
        depth = len(self.net.layers)
        return [(number + 1) * depth // count - 1 for number in range(count)]


def _mlp() -> Subject:
    return Subject(Chain([nn.Linear(64, 64) for _ in range(12)]), torch.rand(1, 64))


def _identities() -> Subject:
    return Subject(Chain([nn.Identity() for _ in range(96)]), torch.rand(1, 64))


def _wide() -> Subject:
    return Subject(Chain([nn.Identity() for _ in range(3)]), torch.rand(1, 64, 768))


def _gpt2_shaped() -> Subject:
    return Subject(GPT2Shaped(), torch.randint(0, 256, (1, 16)))


def _gpt2(width: int) -> Subject:
    vocabulary = 50257 if width == 768 else 1000
    return Subject(gpt2.make(width, vocabulary), torch.randint(1, vocabulary, (1, 512)))


_MODELS: dict[str, Callable[[], Subject]] = {
    "MLP": _mlp,
    "96 identities": _identities,
    "3 identities": _wide,
    "GPT-2-shaped": _gpt2_shaped,
    "GPT-2": lambda: _gpt2(768),
    "GPT-2, narrow": lambda: _gpt2(64),
    "Stable Diffusion": lambda: Subject(pipeline.load(), torch.empty(0)),
}


def build(name: str) -> Subject:
    """Build a model by name, the same in every process; no gradients, evaluation mode."""
    torch.manual_seed(0)
    subject = _MODELS[name]()
    subject.net.requires_grad_(False).eval()
    return subject
