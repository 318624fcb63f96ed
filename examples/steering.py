"""Steering: push the model from one answer to another while it writes.

The direction is the difference of what landmarks of two cities leave in the stream at the last word; it is added to one
block's output in every step of the generation (Turner et al., "Activation Addition", 2023).

What one sees: with growing strength the Eiffel Tower moves from Paris to Rome, and the rest of the sentence follows. Control:
a random direction of the same length. It never leads to Rome; large enough, it disturbs the model all the same.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from landmarks import EIFFEL, prompts
from matplotlib.figure import Figure

from nnsight import LanguageModel

BLOCK = 3
STRENGTHS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0)


def mean_at_end(model: LanguageModel, city: str) -> torch.Tensor:
    """Return the mean stream at the last token of a city's prompts, but for those about the Eiffel Tower: [width]."""
    texts = [prompt for prompt in prompts(city) if "Eiffel" not in prompt]
    with torch.no_grad(), model.trace(texts):  # padded on the left, so the last token is the last of each row
        mean = model.transformer.h[BLOCK].output[:, -1].mean(0)
    return mean


def write(model: LanguageModel, push: torch.Tensor) -> tuple[torch.Tensor, str]:
    """Return the probabilities of the next token, and the text that is written while `push` is added."""
    with model.generate(EIFFEL, max_new_tokens=8) as tracer:
        for step in tracer.iter[:]:
            model.transformer.h[BLOCK].output += push
            if step == 0:
                first = model.lm_head.output[0, -1].softmax(-1)
        tokens = tracer.result
    return first, model.tokenizer.decode(tokens[0], skip_special_tokens=True)


def main(out: Path) -> None:
    model = LanguageModel("nnsight/toy-landmarks")
    rome, paris = (model.tokenizer.encode(f" {city}")[0] for city in ("Rome", "Paris"))
    direction = mean_at_end(model, "Rome") - mean_at_end(model, "Paris")
    random = torch.randn(direction.shape, generator=torch.Generator().manual_seed(0))
    random *= direction.norm() / random.norm()
    steered = [write(model, strength * direction) for strength in STRENGTHS]
    pushed = [write(model, strength * random)[0] for strength in STRENGTHS]

    figure = Figure(figsize=(8.5, 3.4), layout="constrained")
    ax = figure.subplots()
    ax.plot(STRENGTHS, [first[rome].item() for first, _ in steered], "o-", color="#0072b2", label="Rome")
    ax.plot(STRENGTHS, [first[paris].item() for first, _ in steered], "s-", color="#e69f00", label="Paris")
    ax.plot(
        STRENGTHS, [first[paris].item() for first in pushed], "^--", color="#7f7f7f", label="Paris, random direction"
    )
    ax.plot(STRENGTHS, [first[rome].item() for first in pushed], "v--", color="#009e73", label="Rome, random direction")
    ax.set(xlabel="strength", ylabel="probability of the next word", ylim=(-0.03, 1.03))
    ax.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    ax.spines[["top", "right"]].set_visible(False)
    figure.savefig(out / "steering.png", dpi=90)

    print(f"Strength {STRENGTHS[-1]:g}: Rome {steered[-1][0][rome]:.2f}. It writes: {steered[-1][1]}")
    print(f"Control, random direction: Rome {pushed[-1][rome]:.2f}, Paris {pushed[-1][paris]:.2f}.")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, default=Path("."), help="the folder for the figure")
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    main(out)
