"""Gradient attribution: how much does each word contribute to the answer?

*Input x gradient* multiplies each word's embedding, less a baseline's, with the slope there. *Integrated gradients* takes
the mean slope along the straight line from the baseline (Sundararajan et al., "Axiomatic Attribution for Deep Networks",
2017); its contributions then add up to the whole difference in the answer, which is checked. The baseline is the prompt
about the Space Needle, so only words that differ can contribute.

What one sees: nearly all of it comes from Eiffel, hardly any from Tower. Control: the contributions add up to what the two
prompts really differ by, which a single slope misses by half.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from activation_patching import lead
from landmarks import EIFFEL, NEEDLE
from matplotlib.figure import Figure

from nnsight import LanguageModel
from nnsight_hf import figures

STEPS = 128


def embedded(model: LanguageModel, prompt: str) -> torch.Tensor:
    """Return the embeddings of a prompt's tokens: [position, width]."""
    with torch.no_grad(), model.trace(prompt):
        vectors = model.transformer.wte.output[0]
    return vectors


def slopes(model: LanguageModel, points: torch.Tensor) -> torch.Tensor:
    """Return the gradient of the lead of Paris at each of some embeddings: [point, position, width]."""
    points = points.clone().requires_grad_()
    with model.trace([EIFFEL] * len(points)):
        model.transformer.wte.output = points
        with lead(model, model.lm_head.output[:, -1]).sum().backward():
            slope = points.grad
    return slope


def main(out: Path) -> None:
    model = LanguageModel("nnsight/toy-landmarks")
    end, start = embedded(model, EIFFEL), embedded(model, NEEDLE)
    way = end - start
    middles = (torch.arange(STEPS) + 0.5) / STEPS
    integrated = (way * slopes(model, start + middles[:, None, None] * way).mean(0)).sum(-1)
    single = (way * slopes(model, end[None])[0]).sum(-1)

    figure = Figure(figsize=(7.5, 3.4), layout="constrained")
    ax, words = figure.subplots(), figures.token_labels(model.tokenizer.tokenize(EIFFEL))
    for shift, values, name, colour in (
        (-0.2, single, "input x gradient", "#e69f00"),
        (0.2, integrated, "integrated", "#0072b2"),
    ):
        ax.bar([at + shift for at in range(len(words))], values.tolist(), 0.38, label=name, color=colour)
    ax.set_xticks(range(len(words)), words)
    ax.set_ylabel("contribution, logits")
    ax.axhline(0, color="black", linewidth=0.8)
    ax.legend(frameon=False)
    ax.spines[["top", "right"]].set_visible(False)
    figure.savefig(out / "gradient_attribution.png", dpi=90)

    with torch.no_grad(), model.trace([EIFFEL, NEEDLE]):
        high, low = lead(model, model.lm_head.output[:, -1])
    print(
        f"The lead of Paris differs by {high - low:.2f} logits; integrated gradients add up to {integrated.sum():.2f}."
    )
    print(f"Control, input x gradient adds up to {single.sum():.2f}.")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, default=Path("."), help="the folder for the figure")
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    main(out)
