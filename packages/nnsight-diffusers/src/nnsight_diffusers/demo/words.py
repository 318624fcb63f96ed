"""Where each word goes: the maps of cross-attention.

Every position of the image asks (`to_q`), every token of the prompt answers (`to_k`), and the softmax of their products
says how much of each token a position takes. Averaged over heads, layers of one resolution and steps, these are maps of the
words (Tang et al., "What the DAAM: Interpreting Stable Diffusion Using Cross Attention", 2022).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from nnsight import DiffusionModel

from . import blocks, figures, prompts, terminal
from .part import Part


def attention_maps(model: DiffusionModel, prompt: str, layers: Sequence[Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return how much of each token each position takes [height, width, token], and the image.

    Args:
        model: the model.
        prompt: what it draws.
        layers: layers of cross-attention of one resolution, in the order in which they run.
    """
    maps = []
    with model.generate(prompt, output_type="pt", **prompts.SETTINGS) as tracer:
        for _ in tracer.iter[:]:
            for layer in layers:
                # Guidance calls the UNet with and without the prompt at once: this is the half with it.
                asked = model.conditional(layer.to_q.output)[0].unflatten(-1, (layer.heads, -1))
                told = model.conditional(layer.to_k.output)[0].unflatten(-1, (layer.heads, -1))
                scores = torch.einsum("phd, thd -> hpt", asked, told) / asked.shape[-1] ** 0.5
                maps.append(scores.softmax(-1).mean(0))
        image = tracer.result.images[0]
    mean = torch.stack(maps).mean(0)
    side = round(len(mean) ** 0.5)
    return mean.unflatten(0, (side, side)), image


def finest(model: DiffusionModel) -> list[Any]:
    """Return the layers of cross-attention at the size of the latents: those of the first and the last block."""
    found = list(blocks.layers(model).values())
    return [*found[0], *found[-1]]


def shape_of(image: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Return where an image [colour, height, width] differs from its border, in maps of a size."""
    border = torch.cat([image[:, 0], image[:, -1], image[:, :, 0], image[:, :, -1]], dim=1)
    contrast = (image - border.median(dim=1).values[:, None, None]).norm(dim=0)
    differs = (contrast > contrast.max() / 2).float()[None]
    return torch.nn.functional.adaptive_avg_pool2d(differs, size)[0] > 0.5


def part(model: DiffusionModel) -> Part:
    """Draw the maps of the words of three prompts."""
    layers = finest(model)
    texts = [prompts.CIRCLE, prompts.SQUARE, prompts.TRIANGLE]
    drawn = [attention_maps(model, text, layers) for text in texts]
    words = [prompts.tokens(model, text) for text in texts]
    rows: list[tuple[float, list[str]]] = []
    for (maps, image), text, names in zip(drawn, texts, words):
        shape = shape_of(image, (maps.shape[0], maps.shape[1]))
        for number, name in enumerate(names):
            on, off = (float(maps[where][:, number].mean()) for where in (shape, ~shape))
            told = f'"{name}" in "{text}"'
            rows.append((on / off, [told, f"{on:.1%}", f"{off:.1%}", f"{on / off:.2f}"]))
    ratio, (told, *_) = max(rows)
    return Part(
        title="Cross-attention: where each word goes",
        question=(
            "At every position of the image, cross-attention shares itself out among the tokens of the prompt. These are "
            "the shares, averaged over heads, steps and the layers with the resolution of the latents."
        ),
        code=attention_maps,
        table=terminal.table(["token", "share on the shape", "elsewhere", "ratio"], [row for _, row in rows]),
        figure=figures.word_maps(drawn, words, title="How much of each word each position takes"),
        finding=f"The shape takes {ratio:.1f} times as much as its ground of {told}, more than of any other token.",
    )
