"""Find out how well the trained toy draws what it is told, and write the numbers into its model card.

    python measure.py [--model DIR] [--grid FILE.png]

Plain diffusers and torch hooks; nothing here needs nnsight. The card above the mark `<!-- measured -->` is written by
hand, all below it by this script.
"""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Callable
from pathlib import Path
from statistics import mean

import torch
from diffusers import StableDiffusionPipeline
from PIL import Image

from judge import seen
from shapes import COLOURS, SCENES, SIDE, Scene, drawn
from train import LENGTH, THREADS, TOY

MARK = "<!-- measured -->\n"
STEPS, GUIDANCE, SEEDS = 15, 3.0, 3
PARTS = ("colour", "shape", "place")
#: Two scenes that have no part in common and whose prompts line up, for the tables of what is moved where.
FROM, INTO = Scene("blue", "square", "on the right"), Scene("red", "circle", "on the left")
SAMPLES = 12

#: Gets the step and the text's states, [rows, LENGTH, width], without words first; gives those to go on with.
Change = Callable[[int, torch.Tensor], torch.Tensor]


class Toy:
    """The pipeline, and what is done with it: draw prompts, also while the states of the text are changed."""

    def __init__(self, folder: Path) -> None:
        self.pipeline = StableDiffusionPipeline.from_pretrained(folder)
        self.pipeline.set_progress_bar_config(disable=True)

    def images(
        self, prompts: list[str], first: int = 0, steps: int = STEPS, guidance: float = GUIDANCE
    ) -> torch.Tensor:
        """Draw each prompt with a seed of its own, counted from `first`; [prompt, 3, SIDE, SIDE] between 0 and 1."""
        generators = [torch.Generator().manual_seed(first + number) for number in range(len(prompts))]
        return self.pipeline(
            prompts, num_inference_steps=steps, guidance_scale=guidance, generator=generators, output_type="pt"
        ).images

    def seen(self, prompts: list[str], **settings: int | float) -> list[Scene | None]:
        return [seen(image) for image in self.images(prompts, **settings)]  # type: ignore[arg-type]

    def states(self, prompt: str) -> torch.Tensor:
        """What the network is told of a prompt, [LENGTH, width]."""
        return self.pipeline.encode_prompt(prompt, torch.device("cpu"), 1, False)[0][0]

    def changed(self, prompts: list[str], change: Change) -> list[Scene | None]:
        """See what is drawn while `change` gives the network other states of the text."""
        step = 0

        def hook(_module: torch.nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
            nonlocal step
            kwargs["encoder_hidden_states"] = change(step, kwargs["encoder_hidden_states"].clone())
            step += 1
            return args, kwargs

        handle = self.pipeline.unet.register_forward_pre_hook(hook, with_kwargs=True)
        try:
            return self.seen(prompts)
        finally:
            handle.remove()


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def share(hits: list[bool]) -> str:
    return f"{mean(hits):.1%}"


def right(found: list[Scene | None], told: list[Scene], parts: tuple[str, ...] = PARTS) -> list[bool]:
    return [
        got is not None and all(getattr(got, part) == getattr(want, part) for part in parts)
        for got, want in zip(found, told)
    ]


def accuracy(toy: Toy) -> str:
    """All prompts, several times each, and the prompts that leave something out."""
    every = SCENES * SEEDS
    found = toy.seen([scene.prompt() for scene in every])
    rows = [
        ["all words", str(len(every)), *(share(right(found, every, (p,))) for p in PARTS), share(right(found, every))]
    ]
    for name, leave, parts in [
        ("no place", lambda scene: f"a {scene.colour} {scene.shape}", ("colour", "shape")),
        ("no colour", lambda scene: f"a {scene.shape} {scene.place}", ("shape", "place")),
    ]:
        found = toy.seen([leave(scene) for scene in SCENES], first=1000)
        told = [share(right(found, SCENES, (part,))) if part in parts else "-" for part in PARTS]
        rows.append([name, str(len(SCENES)), *told, share(right(found, SCENES, parts))])
    found = toy.seen([""] * len(SCENES), first=2000, guidance=1.0)
    rows.append(["no words", str(len(SCENES)), "-", "-", "-", share([scene is not None for scene in found])])
    return table(["prompt", "images", *PARTS, "all that was told"], rows)


def settings(toy: Toy) -> str:
    prompts = [scene.prompt() for scene in SCENES]
    rows = []
    for steps in (5, 10, 15):
        row = [str(steps)]
        for guidance in (1.0, 3.0, 7.5):
            row.append(share(right(toy.seen(prompts, first=3000, steps=steps, guidance=guidance), SCENES)))
        rows.append(row)
    return table(["steps", "guidance 1", "guidance 3", "guidance 7.5"], rows)


def autoencoder(toy: Toy) -> str:
    vae = toy.pipeline.vae
    images = drawn(SCENES * SEEDS, torch.Generator().manual_seed(1))
    with torch.no_grad():
        found = vae.decode(vae.encode(2 * images - 1).latent_dist.mean).sample / 2 + 0.5
    error = (found.clamp(0, 1) - images).square().mean().sqrt()
    kept = share(right([seen(image) for image in found.clamp(0, 1)], SCENES * SEEDS))
    size = f"{len(images)} images put into latents and back"
    return f"{size}: error {error:.3f} (root of the mean square, of 1), {kept} still seen right.\n"


def moved(found: list[Scene | None]) -> list[str]:
    """How much of `FROM` is seen, part by part."""
    return [share(right(found, [FROM] * len(found), (part,))) for part in PARTS]


def positions(toy: Toy) -> str:
    """Put the states of one token, or of some, from one prompt's text into another's."""
    source = toy.states(FROM.prompt())
    words = ["start", *FROM.prompt().split(), "end"]
    into = ["start", *INTO.prompt().split(), "end"]
    spans = [(f"`{a}` into `{b}`", slice(n, n + 1)) for n, (a, b) in enumerate(zip(words, into))]
    spans += [("the padding", slice(len(words), LENGTH)), ("the end and the padding", slice(len(words) - 1, LENGTH))]
    spans += [("all words", slice(1, len(words) - 1)), ("all", slice(0, LENGTH))]
    rows = []
    for name, span in spans:

        def change(_step: int, states: torch.Tensor, span: slice = span) -> torch.Tensor:
            states[len(states) // 2 :, span] = source[span]
            return states

        rows.append([name, *moved(toy.changed([INTO.prompt()] * SAMPLES, change))])
    return table(["states put in", *PARTS], rows)


def moments(toy: Toy) -> str:
    """Go on with another prompt from some step on."""
    source = toy.states(FROM.prompt())
    rows = []
    for since in range(0, STEPS, 3):

        def change(step: int, states: torch.Tensor, since: int = since) -> torch.Tensor:
            if step >= since:
                states[len(states) // 2 :] = source
            return states

        rows.append([str(since), *moved(toy.changed([INTO.prompt()] * SAMPLES, change))])
    return table(["from step", *PARTS], rows)


def grid(toy: Toy, file: Path) -> None:
    """Draw all prompts twice into one picture, a row for each colour."""
    images = torch.stack([toy.images([scene.prompt() for scene in SCENES], first=4000 + 75 * n) for n in range(2)])
    high, wide = len(COLOURS), len(SCENES) // len(COLOURS)
    tiles = images.view(2, high, wide, 3, SIDE, SIDE).permute(1, 4, 0, 2, 5, 3).reshape(high * SIDE, 2 * wide * SIDE, 3)
    Image.fromarray((tiles * 255).round().byte().numpy()).save(file)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=TOY)
    parser.add_argument("--grid", type=Path, help="draw every prompt twice into one picture, and measure nothing")
    options = parser.parse_args()
    torch.set_num_threads(THREADS)
    toy = Toy(options.model)
    if options.grid:
        return grid(toy, options.grid)
    weights = sorted(options.model.rglob("*.safetensors"))
    digests = [
        [f"`{w.relative_to(options.model)}`", f"`{hashlib.sha256(w.read_bytes()).hexdigest()}`"] for w in weights
    ]
    card = options.model / "MODEL_CARD.md"
    written = card.read_text(encoding="utf-8").split(MARK)[0] if card.exists() else ""
    told = f"`{FROM.prompt()}` into `{INTO.prompt()}`, {SAMPLES} images; how much of the former is seen:\n\n"
    sections = {
        "Weights": table(["file", "sha256"], digests),
        "Autoencoder": autoencoder(toy),
        f"Accuracy, {STEPS} steps, guidance {GUIDANCE:g}": accuracy(toy),
        "Steps and guidance: all words right": settings(toy),
        "Where the words are: states of single tokens": told + positions(toy),
        "When it is decided: another prompt from some step on": told + moments(toy),
    }
    measured = "\n".join(f"### {name}\n\n{text}" for name, text in sections.items())
    card.write_text(f"{written}{MARK}\n{measured}", encoding="utf-8")
    print(measured)


if __name__ == "__main__":
    main()
