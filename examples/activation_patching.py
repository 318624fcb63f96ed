"""Activation patching: where in the model does a fact sit?

The model reads about the Space Needle. One vector of its stream, at one block and one word, is replaced by that of the run
on the Eiffel Tower; where the answer follows, the vector held the fact (Meng et al., "Locating and Editing Factual
Associations in GPT", 2022, section 2). An effect of 1 means that the answer is Paris as surely as for the Eiffel Tower.

What one sees: the fact waits at the landmark's first word, and moves to the last word in block 3. Control: patched with
vectors of its own run, the model says what it always says, so the effect is 0 everywhere.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from landmarks import EIFFEL, NEEDLE
from matplotlib.figure import Figure

from nnsight import LanguageModel
from nnsight_hf import figures


def lead(model: LanguageModel, logits: torch.Tensor) -> torch.Tensor:
    """Return by how much Paris leads Seattle, in logits."""
    paris, seattle = (model.tokenizer.encode(f" {city}")[0] for city in ("Paris", "Seattle"))
    return logits[..., paris] - logits[..., seattle]


def patch_each(model: LanguageModel, source: str, target: str) -> torch.Tensor:
    """Return the lead [block, position] after each patch of one vector from `source` into `target`."""
    length = len(model.tokenizer.encode(target))
    leads = []
    for block in model.transformer.h:
        with torch.no_grad(), model.trace() as tracer:  # one forward for all positions
            with tracer.invoke(source):
                taken = block.output
            for position in range(length):
                with tracer.invoke(target):
                    block.output[:, position] = taken[:, position]
                    leads.append(lead(model, model.lm_head.output[0, -1]))
    return torch.stack(leads).view(-1, length)


def main(out: Path) -> None:
    model = LanguageModel("nnsight/toy-landmarks")
    with torch.no_grad(), model.trace([EIFFEL, NEEDLE]):
        high, low = lead(model, model.lm_head.output[:, -1])
    effects = (patch_each(model, EIFFEL, NEEDLE) - low) / (high - low)
    control = (patch_each(model, NEEDLE, NEEDLE) - low) / (high - low)

    figure = Figure(figsize=(9, 4), layout="constrained")
    read, given = (model.tokenizer.tokenize(prompt) for prompt in (NEEDLE, EIFFEL))
    label = "effect: 0 Seattle, 1 Paris"
    blocks = [f"block {number}" for number in range(len(effects))]
    figures.patching(effects, read, blocks, sources=given, label=label, ax=figure.subplots())
    figure.savefig(out / "activation_patching.png", dpi=90)

    print(f"Block 0, first word of the landmark: {effects[0, 1]:.2f}. Last block, last word: {effects[-1, -1]:.2f}.")
    print(f"Control, patched with itself: at most {control.abs().max():.2f}.")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, default=Path("."), help="the folder for the figure")
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    main(out)
