"""Attribution patching: an estimate of every patch from one backward pass.

A patch changes one vector; the gradient at that vector, times the change, says to first order what that does (Nanda,
"Attribution Patching", 2023). All patches together cost two forwards and one backward, not a forward each.

What one sees: beside the true effects, which run after run of patching gives, the estimate finds the same places. It is
an estimate: the sizes are off by half. Control: the size of each change alone, without a slope, agrees far less.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from activation_patching import lead, patch_each
from landmarks import EIFFEL, NEEDLE
from matplotlib.figure import Figure

from nnsight import LanguageModel
from nnsight_hf import figures


def changes_and_slopes(model: LanguageModel, source: str, target: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Return by how much the stream of `source` differs, and the slope of the lead: [block, position, width] each."""
    blocks = model.transformer.h
    with torch.no_grad(), model.trace(source):
        there = [block.output for block in blocks]
    slopes = []
    with model.trace(target):
        here = [block.output for block in blocks]
        with lead(model, model.lm_head.output[0, -1]).backward():
            for stream in reversed(here):  # gradients come from the end
                slopes.insert(0, stream.grad)
    changes = torch.stack(there) - torch.stack(here).detach()
    return changes[:, 0], torch.stack(slopes)[:, 0]


def agreement(one: torch.Tensor, other: torch.Tensor) -> float:
    """Return Pearson's correlation over all places."""
    return float(torch.corrcoef(torch.stack([one.flatten(), other.flatten()]))[0, 1])


def main(out: Path) -> None:
    model = LanguageModel("nnsight/toy-landmarks")
    with torch.no_grad(), model.trace(NEEDLE):
        low = lead(model, model.lm_head.output[0, -1])
    true = patch_each(model, EIFFEL, NEEDLE) - low
    changes, slopes = changes_and_slopes(model, EIFFEL, NEEDLE)
    estimate = (changes * slopes).sum(-1)
    control = changes.norm(dim=-1)

    figure = Figure(figsize=(13, 4), layout="constrained")
    tokens, names = model.tokenizer.tokenize(NEEDLE), [f"block {number}" for number in range(len(true))]
    for ax, effects, title in zip(figure.subplots(1, 2), (true, estimate), ("patched", "estimated")):
        figures.patching(effects, tokens, names, label="Paris over Seattle, logits", ax=ax)
        ax.set_title(title)
    figure.savefig(out / "attribution_patching.png", dpi=75)

    print(f"Correlation with the true effects: {agreement(true, estimate):.2f}.")
    print(f"Control, the size of the change alone: {agreement(true, control):.2f}.")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, default=Path("."), help="the folder for the figure")
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    main(out)
