"""Which block listens to the prompt: cross-attention is the only way by which words reach the image.

What a block's cross-attention adds is set to zero in every step; the noise to begin with is the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from nnsight import DiffusionModel

from . import figures, prompts, terminal
from .part import Part


def layers(model: DiffusionModel) -> dict[str, list[Any]]:
    """Return the cross-attention layers of each block, in the order in which they run."""
    unet = model.unet
    blocks = {f"down {number}": block for number, block in enumerate(unet.down_blocks)}
    blocks["middle"] = unet.mid_block
    blocks |= {f"up {number}": block for number, block in enumerate(unet.up_blocks)}
    return {name: [layer.transformer_blocks[0].attn2 for layer in block.attentions] for name, block in blocks.items()}


def draw(model: DiffusionModel, texts: Sequence[str], deaf: Sequence[Any] = ()) -> torch.Tensor:
    """Return the images of some prompts, drawn while some layers of cross-attention say nothing."""
    with model.generate(list(texts), output_type="pt", **prompts.SETTINGS) as tracer:
        for _ in tracer.iter[:]:
            for attention in deaf:
                attention.output[:] = 0
        images: torch.Tensor = tracer.result.images
    return images


def part(model: DiffusionModel) -> Part:
    """Silence each block in turn, and then all of them."""
    texts = [prompts.CIRCLE, prompts.SQUARE, prompts.TRIANGLE]
    found = layers(model)
    plain = draw(model, texts)
    without = {name: draw(model, texts, deaf) for name, deaf in found.items()}
    without["all of them"] = draw(model, texts, [layer for deaf in found.values() for layer in deaf])
    away = {name: (images - plain).abs().mean(dim=(1, 2, 3)) for name, images in without.items()}
    most = max(found, key=lambda name: float(away[name].mean()))
    least = min(found, key=lambda name: float(away[name].mean()))
    return Part(
        title="An edit: which block listens to the prompt",
        question=(
            "Three prompts are drawn again and again, each from noise of its own that stays the same. In each column, what "
            "the cross-attention of one block of the UNet adds is set to zero in every step."
        ),
        code=draw,
        table=terminal.table(
            ["mean change of a pixel, without", *(f'"{text}"' for text in texts)],
            [[name, *(f"{value:.3f}" for value in values.tolist())] for name, values in away.items()],
        ),
        figure=figures.grid(
            torch.stack([plain, *without.values()], dim=1),
            [f'"{text}"' for text in texts],
            ["unedited", *(f"without\n{name}" for name in without)],
            title="The same noise, with the cross-attention of one block set to zero",
        ),
        finding=f'The images change most without "{most}", and least without "{least}".',
    )
