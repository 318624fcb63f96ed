"""From noise to an image: what the scheduler makes of each prediction.

It returns the latents that the next step begins with, and beside them its guess of the finished image, which is all
noise that the model sees taken away at once (Song et al., "Denoising Diffusion Implicit Models", 2020, equation 12).
"""

from __future__ import annotations

import torch

from nnsight import DiffusionModel

from . import figures, prompts, terminal
from .part import Part


def denoise(model: DiffusionModel, prompt: str) -> tuple[list[int], torch.Tensor, torch.Tensor]:
    """Return the time of each step, the latents that it leaves, and the guess of the finished image."""
    times, latents, guesses = [], [], []
    with model.generate(prompt, **prompts.SETTINGS) as tracer:
        for _ in tracer.iter[:]:
            times.append(int(model.timestep.output))
            left, guess = model.scheduler.output
            latents.append(left)
            guesses.append(guess)
    return times, torch.cat(latents), torch.cat(guesses)


def decode(model: DiffusionModel, latents: torch.Tensor) -> torch.Tensor:
    """Return the images [row, colour, height, width], from 0 to 1, that latents stand for."""
    vae = model.pipeline.vae
    with torch.no_grad():
        images = vae.decode(latents / vae.config.scaling_factor).sample
    decoded: torch.Tensor = model.pipeline.image_processor.postprocess(images, output_type="pt")
    return decoded


def part(model: DiffusionModel) -> Part:
    """Follow one image."""
    times, latents, guesses = denoise(model, prompts.CIRCLE)
    shown = [decode(model, latents), decode(model, guesses)]
    away = (shown[1] - shown[1][-1]).abs().mean(dim=(1, 2, 3))
    half = next(step for step in range(len(times)) if (away[step:] < away[0] / 2).all())
    return Part(
        title="The trajectory: an image out of noise",
        question=(
            f'The model draws "{prompts.CIRCLE}" in {len(times)} steps. After each, the scheduler has the latents for the '
            "next one, and a guess of the finished image. Both are decoded by the model's own autoencoder."
        ),
        code=denoise,
        table=terminal.table(
            ["step", "time", "the guess differs from the last by"],
            [[str(step), str(time), f"{float(away[step]):.3f}"] for step, time in enumerate(times)],
        ),
        figure=figures.strip(
            shown,
            ["latents,\ndecoded", "guess of the\nfinished image"],
            [f"t = {time}" for time in times],
            title=f'"{prompts.CIRCLE}", step by step',
        ),
        finding=(
            f"The first guess differs from the last by {float(away[0]):.2f} of a pixel's range; from step {half} on (time "
            f"{times[half]}) it is less than half of that."
        ),
    )
