"""Probing: from which block on can the city be read off the last word?

A linear probe is trained on what each block leaves at the last word, for eight cities. It is tested on *landmarks it has
never seen*: what it reads must be the city, and not the name of a landmark (Alain and Bengio, "Understanding intermediate
layers using linear classifier probes", 2016).

What one sees: much can be read after block 0 already, where the logit lens finds nothing; from block 3 on, where the lens
finds the answer, all is right. A probe says what is there, not what is used. Control: probes trained on shuffled cities,
which could only be right by chance (a control task as in Hewitt and Liang, 2019).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from landmarks import CITIES, prompts
from matplotlib.figure import Figure
from sklearn.linear_model import LogisticRegression

from nnsight import LanguageModel


def last_words(model: LanguageModel, texts: list[str]) -> torch.Tensor:
    """Return what each block leaves at the last word: [block, text, width]."""
    blocks = list(model.transformer.h)
    with torch.no_grad(), model.trace(texts) as tracer:
        cache = tracer.cache(modules=blocks)
    return torch.stack([cache[block.path].output[:, -1] for block in blocks])


def accuracy(train: np.ndarray, cities: list[str], test: np.ndarray, truth: list[str]) -> float:
    return float(LogisticRegression(max_iter=2000).fit(train, cities).score(test, truth))


def main(out: Path) -> None:
    model = LanguageModel("nnsight/toy-landmarks")
    # Two prompts a landmark; the first landmark of each city is kept for the test.
    train = [(prompt, city) for city in CITIES for prompt in prompts(city)[2:]]
    test = [(prompt, city) for city in CITIES for prompt in prompts(city)[:2]]
    known, unseen = (last_words(model, [prompt for prompt, _ in part]).numpy() for part in (train, test))
    cities, truth = ([city for _, city in part] for part in (train, test))
    shuffled = [cities[at] for at in torch.randperm(len(cities), generator=torch.Generator().manual_seed(0))]
    right = [accuracy(a, cities, b, truth) for a, b in zip(known, unseen)]
    control = [accuracy(a, shuffled, b, truth) for a, b in zip(known, unseen)]

    figure = Figure(figsize=(6.5, 3.4), layout="constrained")
    ax = figure.subplots()
    ax.plot(right, "o-", color="#0072b2", label="cities")
    ax.plot(control, "s--", color="#e69f00", label="shuffled cities")
    ax.axhline(1 / len(CITIES), color="#7f7f7f", linestyle=":", label="chance")
    ax.set(xlabel="block", ylabel="right on unseen landmarks", ylim=(-0.03, 1.03))
    ax.legend(frameon=False)
    ax.spines[["top", "right"]].set_visible(False)
    figure.savefig(out / "probing.png", dpi=90)

    print(f"Right on unseen landmarks: {right[0]:.2f} after block 0, {right[3]:.2f} after block 3.")
    print(f"Control, shuffled cities: {control[3]:.2f} after block 3; chance is {1 / len(CITIES):.2f}.")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, default=Path("."), help="the folder for the figure")
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    main(out)
