"""The logit lens: what would the model answer if it stopped after this block?

Every block adds to the same stream of vectors, one for each token. The lens reads the stream early, with the model's
own last norm and unembedding (nostalgebraist, "interpreting GPT: the logit lens", 2020).
"""

from __future__ import annotations

import torch

from nnsight import LanguageModel
from nnsight_hf.figures import logit_lens as draw_lens

from . import figures, prompts, terminal
from .part import Part


def logit_lens(model: LanguageModel, prompt: str) -> torch.Tensor:
    """Return the next token's probabilities [depth, position, token]."""
    gpt = model.transformer
    with torch.no_grad(), model.trace(prompt):
        stream = [gpt.h[0].input] + [block.output for block in gpt.h]
        logits = [model.lm_head(gpt.ln_f(hidden))[0] for hidden in stream]
    return torch.stack(logits).softmax(-1)


def part(model: LanguageModel) -> Part:
    """Look at one prompt through the lens."""
    probabilities, tokens = logit_lens(model, prompts.EIFFEL).max(-1)
    guesses = [[model.tokenizer.decode(token).strip() for token in row] for row in tokens]
    depths = ["embedding", *(f"block {number}" for number in range(len(guesses) - 1))]
    positions = prompts.words(model, prompts.EIFFEL)

    answer = guesses[-1][-1]
    settled = next(depth for depth in range(len(guesses)) if all(row[-1] == answer for row in guesses[depth:]))
    figure, axes = figures.empty(9.5, 1.4 + 0.5 * len(depths), "Logit lens: the likeliest next word after each block")
    draw_lens(probabilities, guesses, positions, depths, ax=axes)
    return Part(
        title="Logit lens: the answer takes shape, block by block",
        question=(
            f'The model reads "{prompts.EIFFEL}". Its words are the columns, its blocks the rows; each cell is the '
            "word that the model would say next if it stopped there, and how sure it would be."
        ),
        code=logit_lens,
        table=terminal.heat_map(probabilities, depths, positions, guesses),
        figure=figure,
        finding=(
            f'At the last word, "{answer}" is likeliest from {depths[settled]} on ({probabilities[settled, -1]:.2f}), and '
            f"ends at {probabilities[-1, -1]:.2f}."
        ),
    )
