"""What only old import paths still offer: small things that libraries took from nnsight 0.6 and 0.7.

The one idea: nothing in nnsight uses this file. Which old path each of these is found at is in `aliases.py`.
"""

from __future__ import annotations

import linecache
import sys
from typing import Any

import torch

#: Where nnsight remembers what it made of a source, as "module:mapping".
MEMORIES = (
    "nnsight._core.blocks.body:_blocks",
    "nnsight._core.blocks.find:_texts",
    "nnsight._core.source.rewrite:_made",
)


def fetch_attr(owner: Any, path: str) -> Any:
    """Follow a dotted path of attributes, such as "transformer.h.1", from `owner`; an empty path is `owner` itself."""
    for name in path.split("."):
        if name:
            owner = getattr(owner, name)
    return owner


class WrapperModule(torch.nn.Module):
    """A module that returns what it was given, as a place in the tree where a value can be read and changed."""

    def forward(self, *values: Any, **named: Any) -> Any:
        if len(values) != 1:
            return values, named
        return values[0]


class _SourceCache:
    """What nnsight remembers of the source of blocks and forwards."""

    def clear(self) -> None:
        """Forget it all; files that have changed since are then read again."""
        for memory in MEMORIES:
            module, _, mapping = memory.partition(":")
            if module in sys.modules:
                getattr(sys.modules[module], mapping).clear()
        linecache.checkcache()


class Globals:
    """Holds `cache`, for `Globals.cache.clear()`."""

    cache = _SourceCache()
