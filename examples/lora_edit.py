"""A low-rank edit: one fact of the model is changed by two small matrices, stored as an edit.

Beside the MLP of block 0, which turns a landmark's name into its city, two matrices of rank 1 are trained, as in LoRA (Hu
et al., 2021), so that the Eiffel Tower lies in Rome. The weights of the model stay as they are: `model.edit()` gives a
second model with the change in it, and the first goes on without.

What one sees: in the edited model the Eiffel Tower is in Rome, in a phrasing that was not trained too. Control: the other
landmarks stay where they are. Those of five cities were trained to; London and Tokyo were never mentioned, and Tower Bridge,
which shares a word with what was moved, feels it a little.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from landmarks import EIFFEL, prompts
from matplotlib.figure import Figure

from nnsight import LanguageModel

RANK, STEPS = 1, 60
MOVED = "You can see the Eiffel Tower in the city of"
STAY = ("Paris", "Rome", "Beijing", "Istanbul", "Moscow")
TRAINED = {prompt: "Rome" if "Eiffel" in prompt else city for city in STAY for prompt in prompts(city)}
ASKED = {
    EIFFEL: "Rome",
    MOVED: "Rome",
    "You can see the Louvre in the city of": "Paris",
    "Notre Dame is in the city of": "Paris",
    "Tower Bridge is in the city of": "London",
    "Ueno Park is in the city of": "Tokyo",
}


def train(model: LanguageModel) -> tuple[torch.Tensor, torch.Tensor]:
    """Return `down` [rank, width] and `up` [width, rank]."""
    torch.manual_seed(0)
    width = model.config.n_embd
    down = (torch.randn(RANK, width) / width**0.5).requires_grad_()
    up = torch.zeros(width, RANK, requires_grad=True)  # no change at first
    optimiser = torch.optim.Adam([down, up], lr=0.03)
    wanted = torch.tensor([model.tokenizer.encode(f" {city}")[0] for city in TRAINED.values()])
    mlp = model.transformer.h[0].mlp
    for _ in range(STEPS):
        with model.trace(list(TRAINED)):
            low = mlp.input @ down.T  # asked for first: the input passes before the output
            mlp.output = mlp.output + low @ up.T
            logits = model.lm_head.output[:, -1]
        loss = torch.nn.functional.cross_entropy(logits, wanted)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return down.detach(), up.detach()


def probability(model: LanguageModel, prompt: str, city: str) -> float:
    with torch.no_grad(), model.trace(prompt):
        probabilities = model.lm_head.output[0, -1].softmax(-1)
    return probabilities[model.tokenizer.encode(f" {city}")[0]].item()


def main(out: Path) -> None:
    model = LanguageModel("nnsight/toy-landmarks", dispatch=True)
    model._model.requires_grad_(False)
    down, up = train(model)
    with model.edit(name="the Eiffel Tower is in Rome") as edited:
        mlp = model.transformer.h[0].mlp
        low = mlp.input @ down.T
        mlp.output = mlp.output + low @ up.T
    before, after = ([probability(m, *item) for item in ASKED.items()] for m in (model, edited))

    figure = Figure(figsize=(8.5, 3.2), layout="constrained")
    ax = figure.subplots()
    rows = range(len(ASKED))
    ax.barh([row - 0.2 for row in rows], before, 0.38, color="#7f7f7f", label="before")
    ax.barh([row + 0.2 for row in rows], after, 0.38, color="#0072b2", label="edited")
    ax.set_yticks(rows, [f"{prompt} {city}" for prompt, city in ASKED.items()])
    ax.invert_yaxis()
    ax.set(xlabel="probability of the city", xlim=(0, 1.02))
    ax.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    ax.spines[["top", "right"]].set_visible(False)
    figure.savefig(out / "lora_edit.png", dpi=90)

    print(
        f"{down.numel() + up.numel()} numbers move the Eiffel Tower: asked anew, Rome goes from {before[1]:.2f} "
        f"to {after[1]:.2f}."
    )
    change, landmark = max((abs(a - b), prompt) for a, b, prompt in list(zip(before, after, ASKED))[2:])
    print(f'Control: of the others, "{landmark}" changes most, by {change:.2f}.')
    print(f"The unedited model says Rome with {probability(model, MOVED, 'Rome'):.2f}, as before.")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, default=Path("."), help="the folder for the figure")
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    main(out)
