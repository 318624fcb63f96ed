"""Activation patching: where does a fact sit?

Two prompts, two answers. One vector is copied from the run of the one into the run of the other; where that carries the
answer along, the vector held it (Meng et al., "Locating and Editing Factual Associations in GPT", 2022, section 2).
"""

from __future__ import annotations

import torch

from nnsight import LanguageModel
from nnsight_hf.figures import patching as draw_patching

from . import figures, prompts, terminal
from .part import Part


def patch_each(model: LanguageModel, source: str, target: str) -> torch.Tensor:
    """Return the last logits of `target` [block, position, token].

    Each with one vector, at that block and position, taken from `source`.
    """
    length = len(model.tokenizer.encode(target))
    patched = []
    for block in model.transformer.h:
        with torch.no_grad(), model.trace() as tracer:
            with tracer.invoke(source):
                taken = block.output
            for position in range(length):
                with tracer.invoke(target):
                    block.output[:, position] = taken[:, position]
                    patched.append(model.lm_head.output[0, -1])
    return torch.stack(patched).unflatten(0, (-1, length))


def last_logits(model: LanguageModel, prompt: str) -> torch.Tensor:
    """Return what the model says next: [token]."""
    with torch.no_grad(), model.trace(prompt):
        logits = model.lm_head.output[0, -1]
    return logits


def moved(model: LanguageModel, source: str, target: str, answers: tuple[str, str]) -> torch.Tensor:
    """Return how far each patch moves the answer: 0 where it stays the target's, 1 where it is the source's."""
    mine, other = (prompts.token(model, answer) for answer in answers)

    def lead(logits: torch.Tensor) -> torch.Tensor:
        return logits[..., mine] - logits[..., other]

    before, after = lead(last_logits(model, target)), lead(last_logits(model, source))
    return (lead(patch_each(model, source, target)) - before) / (after - before)


def part(model: LanguageModel) -> Part:
    """Patch Paris into a prompt about Seattle."""
    shares = moved(model, prompts.EIFFEL, prompts.NEEDLE, ("Paris", "Seattle"))
    blocks = [f"block {number}" for number in range(len(shares))]
    pairs = zip(prompts.words(model, prompts.EIFFEL), prompts.words(model, prompts.NEEDLE))
    positions = [one if one == other else f"{one}\nfor {other}" for one, other in pairs]

    first, last = (int(row.argmax()) for row in (shares[0], shares[-1]))
    read = prompts.words(model, prompts.EIFFEL)
    title = 'One vector of "The Eiffel Tower is ..." put into "The Space Needle is ..."'
    figure, axes = figures.empty(9.5, 1.4 + 0.42 * len(blocks), title)
    label = "how far the answer moves: 0 Seattle, 1 Paris"
    draw_patching(shares, prompts.words(model, prompts.NEEDLE), blocks, sources=read, label=label, ax=axes)
    return Part(
        title="Activation patching: where the fact sits, and where it goes",
        question=(
            f'"{prompts.NEEDLE}" is answered with Seattle. For each block and word, one vector is replaced by that of '
            f'"{prompts.EIFFEL}", and the model runs on: 0 means that it still says Seattle, 1 that it says Paris as '
            "surely as for the Eiffel Tower."
        ),
        code=patch_each,
        table=terminal.heat_map(shares, blocks, positions),
        figure=figure,
        finding=(
            f'Early the fact is at "{read[first]}" ({shares[0, first]:.2f} in block 0); attention carries it to '
            f'"{read[last]}" ({shares[-1, last]:.2f} in block {len(shares) - 1}), where the answer is read off.'
        ),
    )
