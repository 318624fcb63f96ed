"""Steering: push the model towards another answer while it writes.

A direction is taken from two other prompts, and added to one block's output in every step of the generation (Turner et
al., "Activation Addition", 2023). A direction of the same length with random entries shows what pushing alone does.
"""

from __future__ import annotations

import torch

from nnsight import LanguageModel

from . import figures, prompts, terminal
from .part import Part

BLOCK = 3
STRENGTHS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0)


def stream_at_end(model: LanguageModel, prompt: str) -> torch.Tensor:
    """Return the stream at the last token of a prompt, after `BLOCK`: [width]."""
    with torch.no_grad(), model.trace(prompt):
        stream = model.transformer.h[BLOCK].output[0, -1]
    return stream


def write(model: LanguageModel, prompt: str, push: torch.Tensor) -> tuple[str, torch.Tensor]:
    """Write on while `push` is added to a block's output in every step.

    Returns the text, and the probabilities of its first word [token].
    """
    with model.generate(prompt, max_new_tokens=8) as tracer:
        for step in tracer.iter[:]:
            model.transformer.h[BLOCK].output += push
            if step == 0:
                first = model.lm_head.output[0, -1].softmax(-1)
        tokens = tracer.result
    return model.tokenizer.decode(tokens[0], skip_special_tokens=True), first


def part(model: LanguageModel) -> Part:
    """Move the Eiffel Tower to Rome."""
    rome, paris = prompts.token(model, "Rome"), prompts.token(model, "Paris")
    direction = stream_at_end(model, prompts.COLOSSEUM) - stream_at_end(model, prompts.LOUVRE)
    noise = torch.randn(direction.shape, generator=torch.Generator().manual_seed(0))
    noise *= direction.norm() / noise.norm()

    steered = [write(model, prompts.EIFFEL, strength * direction) for strength in STRENGTHS]
    pushed = [write(model, prompts.EIFFEL, strength * noise) for strength in STRENGTHS]
    curves = {
        "Rome": [float(first[rome]) for _, first in steered],
        "Paris": [float(first[paris]) for _, first in steered],
        "Paris, random direction": [float(first[paris]) for _, first in pushed],
    }
    texts = ["..." + text.removeprefix(prompts.EIFFEL) for text, _ in steered]

    crossed = next(
        (f"at strength {s:g}" for s, r, p in zip(STRENGTHS, curves["Rome"], curves["Paris"]) if r > p), "never"
    )
    alone = curves["Paris, random direction"][STRENGTHS.index(1.0)]
    return Part(
        title="Steering: the Eiffel Tower moves to Rome",
        question=(
            f'The model writes on from "{prompts.EIFFEL}". In every step, a direction is added to the output of block '
            f"{BLOCK}: what the Colosseum leaves there less what the Louvre does, times a strength."
        ),
        code=write,
        table=terminal.table(
            ["strength", "Paris", "Rome", "random: Paris", "it writes"],
            [
                [f"{strength:g}", f"{p:.2f}", f"{r:.2f}", f"{n:.2f}", text]
                for strength, r, p, n, text in zip(STRENGTHS, *curves.values(), texts)
            ],
        ),
        figure=figures.curves(
            STRENGTHS,
            curves,
            texts,
            title=f"A direction from Paris to Rome, added to block {BLOCK} in every step",
            across="strength",
            up="probability of the next word",
        ),
        finding=(
            f'Rome overtakes Paris {crossed}; at strength {STRENGTHS[-1]:g} the model writes "{texts[-1]}". A random '
            f"direction of the same length leaves Paris at {alone:.2f} for strength 1."
        ),
    )
