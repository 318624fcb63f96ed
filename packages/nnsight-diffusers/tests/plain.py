"""A pipeline run by hand, with plain hooks: what every value is compared with."""

from __future__ import annotations

from functools import cache
from typing import Any

import checkpoints
import diffusers
import torch

from nnsight.testing.reference import Edit, Hooked


@cache
def pipeline(kind: str) -> Any:
    """The plain pipeline of a kind."""
    made = diffusers.DiffusionPipeline.from_pretrained(checkpoints.folder(kind))
    made.set_progress_bar_config(disable=True)
    return made


def call(kind: str, seed: int, images: int = 1, **own: Any) -> dict[str, Any]:
    """The arguments of a plain call, whose noise is that of `seed=` in ours."""
    generators = [torch.Generator("cpu").manual_seed(seed + at) for at in range(images)]
    return {**checkpoints.CALLS[kind], "generator": generators, **own}


def hooked(kind: str, arguments: dict[str, Any], edits: dict[str, Edit] | None = None) -> Hooked:
    """Run a pipeline with hooks on its modules."""
    made = pipeline(kind)
    modules = torch.nn.Module()
    for name, part in made.components.items():
        if isinstance(part, torch.nn.Module):
            modules.add_module(name, part)
    return Hooked(modules, lambda: made(**arguments), edits)
