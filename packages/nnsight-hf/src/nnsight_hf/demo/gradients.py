"""Gradients: which words would move the answer, if their vectors changed a little?

The gradient of the answer's logit with respect to an early block's output has one vector for each word; its length says
how much a small change there can do. It costs one backward pass, where patching costs a forward pass for each place.
"""

from __future__ import annotations

import torch

from nnsight import LanguageModel

from . import figures, prompts, terminal
from .part import Part

BLOCK = 0


def gradient(model: LanguageModel, prompt: str, answer: int) -> torch.Tensor:
    """Return the gradient of the answer's logit at `BLOCK` [position, width]."""
    with model.trace(prompt):
        stream = model.transformer.h[BLOCK].output
        logit = model.lm_head.output[0, -1, answer]
        with logit.backward():
            slope = stream.grad
    return slope[0]


def part(model: LanguageModel) -> Part:
    """Differentiate the logit of Paris."""
    lengths = gradient(model, prompts.EIFFEL, prompts.token(model, "Paris")).norm(dim=-1)
    words = prompts.words(model, prompts.EIFFEL)
    most, second = (words[number] for number in lengths.topk(2).indices)
    return Part(
        title="Gradients: which words the answer hangs on",
        question=(
            f'The model reads "{prompts.EIFFEL}". How much would the logit of Paris change with a small change of the '
            f"vector that block {BLOCK} gives for each word? The length of the gradient says it."
        ),
        code=gradient,
        table=terminal.bars(lengths, words),
        figure=figures.bars(
            lengths,
            words,
            title=f"Gradient of the logit of Paris with respect to block {BLOCK}",
            across="word",
            up="length of the gradient",
        ),
        finding=f'Most at "{most}", then at "{second}". The answer is read off at the last word.',
    )
