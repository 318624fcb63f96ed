"""The other way to what an engine draws: transformers, alone, with layers that plain hooks change."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def hooked(module: torch.nn.Module, change: Callable[[Any], Any]) -> Iterator[None]:
    """Let a module give something else."""
    handle = module.register_forward_hook(lambda module, args, output: change(output))
    try:
        yield
    finally:
        handle.remove()


def tokens_of(plain: Any, prompt: list[int], count: int) -> list[int]:
    """Return as many tokens as are asked for, each the likeliest after a prompt."""
    ids = torch.tensor([prompt])
    out = plain.generate(ids, max_new_tokens=count, do_sample=False, attention_mask=torch.ones_like(ids))
    tokens: list[int] = out[0, len(prompt) :].tolist()
    return tokens
