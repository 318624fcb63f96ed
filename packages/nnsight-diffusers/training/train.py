"""Train the toy pipeline and write the folder that the package ships.

    python train.py [--out DIR] [--steps N]

First the autoencoder learns to make images small, then the network that takes away noise and the text encoder learn
together from what it made. Everything is drawn from fixed seeds on two threads;
it takes some minutes on two cores. How good the toy became is then found out by `measure.py`.
"""

from __future__ import annotations

import argparse
import copy
import os
import random
import time
from pathlib import Path

# Read when torch is loaded. Threads that spin while they wait make this much slower on a machine that others use.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from judge import seen
from shapes import SCENES, SIDE, WORDS, described, drawn

TOY = Path(__file__).parent.parent / "src" / "nnsight_diffusers" / "toy"
START, END = "<|startoftext|>", "<|endoftext|>"
LENGTH = 12  # tokens of a prompt: the longest has six words between the start and the end
WIDTH = 48  # of the text encoder
SEED, THREADS = 2024, 2
VAE_STEPS, VAE_BATCH, VAE_RATE = 1500, 32, 5e-3
ROUNDS, STEPS, BATCH, RATE, KEPT = 2, 2400, 32, 2e-3, 0.99
IMAGES = 6_000


def tokenizer() -> CLIPTokenizer:
    """Make CLIP's tokenizer with merges for the few words alone: each is one token, any other falls into letters."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    pieces, merges = [*letters, *(f"{letter}</w>" for letter in letters)], []
    # The longest first: a merge for a short word would take a long one apart that has its letters inside.
    for word in sorted(WORDS, key=len, reverse=True):
        parts = [*word[:-1], f"{word[-1]}</w>"]
        for end in range(2, len(parts) + 1):
            left, right = "".join(parts[: end - 1]), parts[end - 1]
            if left + right not in pieces:
                merges.append((left, right))
                pieces.append(left + right)
    vocab = {piece: number for number, piece in enumerate([*pieces, START, END])}
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=LENGTH)


def ids(tokenizer: CLIPTokenizer, prompts: list[str]) -> torch.Tensor:
    """The tokens of prompts as the pipeline makes them, [prompt, LENGTH]."""
    return tokenizer(prompts, padding="max_length", truncation=True, return_tensors="pt").input_ids


def modules(tokenizer: CLIPTokenizer) -> tuple[AutoencoderKL, CLIPTextModel, UNet2DConditionModel]:
    torch.manual_seed(SEED)
    vae = AutoencoderKL(
        sample_size=SIDE,
        block_out_channels=(16, 32, 32),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        latent_channels=4,
        norm_num_groups=8,
        force_upcast=False,
    )
    end = tokenizer.eos_token_id
    text = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=WIDTH,
            intermediate_size=4 * WIDTH,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=LENGTH,
            projection_dim=WIDTH,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=end,
            pad_token_id=end,
        )
    )
    unet = UNet2DConditionModel(
        sample_size=SIDE // 4,
        block_out_channels=(32, 48),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D",) * 2,
        up_block_types=("CrossAttnUpBlock2D",) * 2,
        cross_attention_dim=WIDTH,
        attention_head_dim=4,  # as in Stable Diffusion's own configuration this is the number of heads
        norm_num_groups=8,
        use_linear_projection=True,
    )
    return vae, text, unet


def schedule() -> DDIMScheduler:
    """The noise: nothing of the image is left at the last step, where sampling begins.

    The network predicts the velocity, not the noise: what is decided while there is much noise, which is where the
    shape lies and which it is, hardly shows in a prediction of the noise and was not learned from one in this time.
    """
    return DDIMScheduler(
        beta_schedule="linear",
        beta_start=1e-4,
        beta_end=2e-2,
        clip_sample=False,
        prediction_type="v_prediction",
        timestep_spacing="trailing",
        steps_offset=1,  # what the pipeline insists on; this spacing does not use it
    )


def train_vae(vae: AutoencoderKL, steps: int) -> None:
    """Train the autoencoder on images drawn as they are needed, and note how far its latents spread."""
    vae.to(memory_format=torch.channels_last).train()
    generator, rng = torch.Generator().manual_seed(SEED), random.Random(SEED)
    optimizer = torch.optim.AdamW(vae.parameters(), lr=VAE_RATE, betas=(0.9, 0.99), weight_decay=0.01, fused=True)
    rates = torch.optim.lr_scheduler.OneCycleLR(optimizer, VAE_RATE, total_steps=steps, pct_start=0.1)
    began = time.perf_counter()
    for step in range(steps):
        images = 2 * drawn(rng.choices(SCENES, k=VAE_BATCH), generator) - 1
        latents = vae.encode(images).latent_dist
        found = vae.decode(latents.sample(generator)).sample
        loss = (found - images).abs().mean() + (found - images).square().mean() + 1e-4 * latents.kl().mean() / 64
        _update(vae, loss, optimizer, rates)
        _tell("autoencoder", step, loss, began)
    vae.to(memory_format=torch.contiguous_format).eval()


@torch.no_grad()
def recognised(vae: AutoencoderKL) -> float:
    """Return the share of images that show the same after the autoencoder: without it, nothing else can be drawn well."""
    images = drawn(SCENES, torch.Generator().manual_seed(SEED + 2))
    back = vae.decode(vae.encode(2 * images - 1).latent_dist.mean).sample
    return sum(seen(one) == scene for one, scene in zip((back / 2 + 0.5).clamp(0, 1), SCENES)) / len(SCENES)


@torch.no_grad()
def latents_of(vae: AutoencoderKL, images: torch.Tensor) -> torch.Tensor:
    """Give the latents of images, spread as the autoencoder says."""
    latents = torch.cat([vae.encode(2 * some - 1).latent_dist.mean for some in images.split(256)])
    return latents * vae.config.scaling_factor


def spread(vae: AutoencoderKL) -> None:
    """Let the autoencoder say what makes its latents spread by one."""
    vae.register_to_config(scaling_factor=1.0)
    latents = latents_of(vae, drawn(SCENES * 20, torch.Generator().manual_seed(SEED + 3)))
    vae.register_to_config(scaling_factor=round(1 / latents.std().item(), 4))


def train(
    vae: AutoencoderKL, text: CLIPTextModel, unet: UNet2DConditionModel, tokenizer: CLIPTokenizer, steps: int, seed: int
) -> None:
    """Train the text encoder and the network on one set of images; keep a running mean of their weights."""
    generator, rng = torch.Generator().manual_seed(seed), random.Random(seed)
    scenes = rng.choices(SCENES, k=IMAGES)
    latents = latents_of(vae, torch.cat([drawn(scenes[at : at + 500], generator) for at in range(0, IMAGES, 500)]))
    noises = schedule()
    both = torch.nn.ModuleList([text.train(), unet.train()]).to(memory_format=torch.channels_last)
    mean = copy.deepcopy(both)
    optimizer = torch.optim.AdamW(both.parameters(), lr=RATE, betas=(0.9, 0.99), weight_decay=0.01, fused=True)
    rates = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps, pct_start=0.05)
    began = time.perf_counter()
    for step in range(steps):
        rows = rng.choices(range(IMAGES), k=BATCH)
        states = text(ids(tokenizer, [described(scenes[row], rng) for row in rows])).last_hidden_state
        times = ((torch.arange(BATCH) + torch.rand(BATCH, generator=generator)) / BATCH * 1000).long()
        noise = torch.randn(latents[rows].shape, generator=generator)
        noisy = noises.add_noise(latents[rows], noise, times)
        velocity = noises.get_velocity(latents[rows], noise, times)
        loss = (unet(noisy, times, states).sample - velocity).square().mean()
        _update(both, loss, optimizer, rates)
        kept = min(KEPT, (1 + step) / (10 + step))
        with torch.no_grad():
            for average, current in zip(mean.parameters(), both.parameters()):
                average.lerp_(current, 1 - kept)
        _tell("pipeline", step, loss, began)
    both.load_state_dict(mean.state_dict())
    both.to(memory_format=torch.contiguous_format).eval()


def _update(
    module: torch.nn.Module,
    loss: torch.Tensor,
    optimizer: torch.optim.Optimizer,
    rates: torch.optim.lr_scheduler.LRScheduler,
) -> None:
    loss.backward()
    torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
    rates.step()


def _tell(what: str, step: int, loss: torch.Tensor, began: float) -> None:
    if step % 50 == 0:
        print(f"{what}  step {step:5d}  loss {loss.item():.4f}  {time.perf_counter() - began:6.1f} s", flush=True)


def write(pipeline: StableDiffusionPipeline, out: Path) -> None:
    """Write the folder that `from_pretrained` reads, with the words also in the two files that CLIP's are told by."""
    pipeline.save_pretrained(out)
    pipeline.tokenizer.backend_tokenizer.model.save(str(out / "tokenizer"))
    for file in out.rglob("*"):
        if file.is_file():
            file.chmod(0o644)  # safetensors lets their owner alone read them


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=TOY)
    parser.add_argument("--steps", type=int, default=STEPS)
    options = parser.parse_args()
    torch.set_num_threads(THREADS)
    words = tokenizer()
    vae, text, unet = modules(words)
    train_vae(vae, VAE_STEPS)
    print(f"autoencoder  {100 * recognised(vae):.0f} % of images are still what they were", flush=True)
    spread(vae)
    for number in range(ROUNDS):
        print(f"round {number + 1} of {ROUNDS}, on images of its own", flush=True)
        train(vae, text, unet, words, options.steps, SEED + 10 + number)
    pipeline = StableDiffusionPipeline(
        vae=vae,
        text_encoder=text,
        tokenizer=words,
        unet=unet,
        scheduler=schedule(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    write(pipeline, options.out)


if __name__ == "__main__":
    main()
