"""The logit lens: what would the model say if it stopped after this block?

Every block adds to one stream of vectors, a vector for each token. The lens reads the stream early, with the model's own
last norm and unembedding (nostalgebraist, "interpreting GPT: the logit lens", 2020).

What one sees: at the last word, Paris appears in one block, three before the end. Blocks before it only know that a city
must come. Control: the same is asked for another landmark's city, which must stay unlikely in every block.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from landmarks import EIFFEL
from matplotlib.figure import Figure

from nnsight import LanguageModel
from nnsight_hf import figures


def logit_lens(model: LanguageModel, prompt: str) -> torch.Tensor:
    """Return the next token's probabilities [depth, position, token]; depth 0 is the embedding."""
    gpt = model.transformer
    with torch.no_grad(), model.trace(prompt):
        stream = [gpt.h[0].input] + [block.output for block in gpt.h]
        logits = [model.lm_head(gpt.ln_f(hidden))[0] for hidden in stream]
    return torch.stack(logits).softmax(-1)


def main(out: Path) -> None:
    model = LanguageModel("nnsight/toy-landmarks")
    tokenizer = model.tokenizer
    probabilities = logit_lens(model, EIFFEL)

    figure = Figure(figsize=(9, 4.6), layout="constrained")
    best, tokens = probabilities.max(-1)
    words = [tokenizer.convert_ids_to_tokens(row) for row in tokens]
    depths = ["embedding", *(f"block {number}" for number in range(len(best) - 1))]
    figures.logit_lens(best, words, tokenizer.tokenize(EIFFEL), depths, ax=figure.subplots())
    figure.savefig(out / "logit_lens.png", dpi=90)

    paris, rome = (tokenizer.encode(f" {city}")[0] for city in ("Paris", "Rome"))
    at_end = probabilities[:, -1]
    first = next(depth for depth in range(len(at_end)) if (at_end[depth:].argmax(-1) == paris).all())
    print(f"Paris is likeliest from {depths[first]} on, with probability {at_end[first, paris]:.2f} there.")
    print(f"Control: Rome is never more likely than {at_end[:, rome].max():.2f}.")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, default=Path("."), help="the folder for the figure")
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    main(out)
