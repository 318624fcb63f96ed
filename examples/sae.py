"""A sparse autoencoder, trained on the model's stream, spliced into it, and one of its features taken out.

The autoencoder writes each vector of one block's output as a sum of a few of many directions, its features (Cunningham et
al., "Sparse Autoencoders Find Highly Interpretable Features", 2023; here only the strongest few are kept, as in Makhzani
and Frey, "k-Sparse Autoencoders", 2013). Spliced in, the model runs on what the autoencoder makes of its stream.

What one sees: the reconstruction keeps the answer, and without one feature Paris is gone. The feature is chosen as the one
that stands for Paris at the end of prompts about *other* landmarks. Controls: a feature that is not active can be taken out
without effect, the mean of the stream alone loses the answer, and the Colosseum stays in Rome without the feature of Paris.
The block is the last one: after an earlier block the model reads the landmark again, and one feature less matters little.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from landmarks import CITIES, EIFFEL, prompts
from matplotlib.figure import Figure

from nnsight import LanguageModel

BLOCK, FEATURES, ACTIVE, STEPS = 5, 512, 4, 600
COLOSSEUM = "The Colosseum is in the city of"


class SparseAutoencoder(torch.nn.Module):
    """Features of a stream: at most `ACTIVE` of them are not zero for a vector."""

    def __init__(self, width: int, centre: torch.Tensor) -> None:
        super().__init__()
        self.centre = centre
        self.encoder = torch.nn.Linear(width, FEATURES)
        self.decoder = torch.nn.Linear(FEATURES, width, bias=False)
        self.encoder.weight.data = self.decoder.weight.data.T.clone()

    def encode(self, stream: torch.Tensor) -> torch.Tensor:
        features = self.encoder(stream - self.centre).relu()
        strongest = features.topk(ACTIVE, dim=-1)
        return torch.zeros_like(features).scatter(-1, strongest.indices, strongest.values)

    def forward(self, stream: torch.Tensor, without: int | None = None) -> torch.Tensor:
        features = self.encode(stream)
        if without is not None:
            features[..., without] = 0
        return self.decoder(features) + self.centre


def train(model: LanguageModel) -> SparseAutoencoder:
    """Train on what the block leaves at every word of all prompts."""
    torch.manual_seed(0)
    vectors = []
    for city in CITIES:
        for prompt in prompts(city):
            with torch.no_grad(), model.trace(prompt):
                vectors.append(model.transformer.h[BLOCK].output[0])
    stream = torch.cat(vectors)
    sae = SparseAutoencoder(stream.shape[-1], stream.mean(0))
    optimiser = torch.optim.Adam(sae.parameters(), lr=2e-3)
    for _ in range(STEPS):
        loss = (sae(stream) - stream).pow(2).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return sae.requires_grad_(False)


def at_end(model: LanguageModel, sae: SparseAutoencoder, city: str) -> torch.Tensor:
    """Return the mean features [feature] at the end of a city's prompts, but for those about the Eiffel Tower."""
    with torch.no_grad(), model.trace([prompt for prompt in prompts(city) if "Eiffel" not in prompt]):
        features = sae.encode(model.transformer.h[BLOCK].output[:, -1]).mean(0)
    return features


def probability(
    model: LanguageModel, prompt: str, city: str, splice: Callable[..., torch.Tensor] | None = None
) -> float:
    """Return the probability of a city, with what `splice` makes of the block's output in its place."""
    with torch.no_grad(), model.trace(prompt):
        if splice is not None:
            model.transformer.h[BLOCK].output = splice(model.transformer.h[BLOCK].output)
        probabilities = model.lm_head.output[0, -1].softmax(-1)
    return probabilities[model.tokenizer.encode(f" {city}")[0]].item()


def main(out: Path) -> None:
    model = LanguageModel("nnsight/toy-landmarks")
    sae = train(model)
    means = {city: at_end(model, sae, city) for city in CITIES}
    others = torch.stack([features for city, features in means.items() if city != "Paris"]).mean(0)
    chosen = int((means["Paris"] - others).argmax())
    silent = int((means["Paris"] == 0).nonzero()[0])
    without, without_silent = partial(sae, without=chosen), partial(sae, without=silent)
    cases = {
        "the model": probability(model, EIFFEL, "Paris"),
        "reconstruction": probability(model, EIFFEL, "Paris", sae),
        "feature of Paris out": probability(model, EIFFEL, "Paris", without),
        "silent feature out": probability(model, EIFFEL, "Paris", without_silent),
        "mean of the stream": probability(model, EIFFEL, "Paris", sae.centre.expand_as),
        "Colosseum in Rome,\nfeature of Paris out": probability(model, COLOSSEUM, "Rome", without),
    }

    figure = Figure(figsize=(7, 3), layout="constrained")
    ax = figure.subplots()
    colours = ["#7f7f7f", "#0072b2", "#e69f00", "#0072b2", "#7f7f7f", "#009e73"]
    ax.bar_label(ax.barh(list(cases)[::-1], list(cases.values())[::-1], color=colours[::-1]), fmt="%.2f", padding=3)
    ax.set(xlabel="probability of Paris; of Rome in the last row", xlim=(0, 1.1))
    ax.spines[["top", "right"]].set_visible(False)
    figure.savefig(out / "sae.png", dpi=90)

    model_says, rebuilt, ablated, quiet, mean, rome = cases.values()
    print(f"Paris: {model_says:.2f}, reconstructed {rebuilt:.2f}, without feature {chosen} {ablated:.2f}.")
    print(f"Controls: a silent feature out {quiet:.2f}, the mean {mean:.2f}; Rome without feature {chosen} {rome:.2f}.")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, default=Path("."), help="the folder for the figure")
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    main(out)
