"""Attention-head ablation: which heads carry the fact to the end?

What a head gives is a slice of what the attention's last projection is given. Each in turn is replaced by its mean over
other prompts (mean ablation: zero is a value that a head never gives), and the lead of Paris over Seattle is read.

What one sees: heads of blocks 3 and 5 matter, and most others do nothing. No head does it alone: all of block 3 together
matter far more than their sum. Control: a head replaced by what it gave anyway changes nothing.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from activation_patching import lead
from landmarks import CITIES, EIFFEL, prompts
from matplotlib.figure import Figure

from nnsight import LanguageModel
from nnsight_hf import figures


def given(model: LanguageModel, texts: list[str]) -> torch.Tensor:
    """Return what the heads of each block give at the last word, mean over the texts: [block, head, width of a head]."""
    with torch.no_grad(), model.trace(texts):
        values = [block.attn.c_proj.input[:, -1].mean(0) for block in model.transformer.h]
    return torch.stack(values).unflatten(-1, (model.config.n_head, -1))


def ablate_each(model: LanguageModel, prompt: str, instead: torch.Tensor) -> torch.Tensor:
    """Return the lead [block, head] with each head, at the last word, giving what `instead` says."""
    width = instead.shape[-1]
    leads = []
    with torch.no_grad(), model.trace() as tracer:
        for number, values in enumerate(instead):
            for head, value in enumerate(values):
                with tracer.invoke(prompt):
                    part = slice(head * width, (head + 1) * width)
                    model.transformer.h[number].attn.c_proj.input[:, -1, part] = value
                    leads.append(lead(model, model.lm_head.output[0, -1]))
    return torch.stack(leads).view(instead.shape[:2])


def main(out: Path) -> None:
    model = LanguageModel("nnsight/toy-landmarks")
    with torch.no_grad(), model.trace(EIFFEL):
        full = lead(model, model.lm_head.output[0, -1])
    others = [prompt for city in CITIES if city != "Paris" for prompt in prompts(city)]
    means = given(model, others)
    lost = full - ablate_each(model, EIFFEL, means)
    control = full - ablate_each(model, EIFFEL, given(model, [EIFFEL]))

    figure = Figure(figsize=(5.5, 4), layout="constrained")
    heads = [f"head {number}" for number in range(lost.shape[1])]
    blocks = [f"block {number}" for number in range(len(lost))]
    ax = figures.patching(lost, heads, blocks, label="lead of Paris that is lost, logits", ax=figure.subplots())
    ax.set_xlabel("")
    figure.savefig(out / "head_ablation.png", dpi=90)

    with torch.no_grad(), model.trace(EIFFEL):
        model.transformer.h[3].attn.c_proj.input[:, -1] = means[3].flatten()
        together = full - lead(model, model.lm_head.output[0, -1])
    block, head = divmod(int(lost.argmax()), lost.shape[1])
    print(f"Block {block}, head {head} matters most: {lost.max():.1f} of {full:.1f} logits are lost without it.")
    print(f"All heads of block 3 together: {together:.1f}, where their sum is {lost[3].sum():.1f}.")
    print(f"Control, heads replaced by themselves: at most {control.abs().max():.1f}.")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, default=Path("."), help="the folder for the figure")
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    main(out)
