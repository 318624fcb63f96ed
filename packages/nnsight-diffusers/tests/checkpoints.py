"""Tiny checkpoints of the kinds of pipeline, with seeded weights, saved as diffusers saves them.

Each `build_x` fills a folder that `DiffusionPipeline.from_pretrained` reads; `KINDS` lists them, `folder` keeps one of
each for the process, and `CALLS` says what each is called with. No weight is left at zero, where many a layer begins:
every layer has a say in the image, and another prompt is another image.
"""

from __future__ import annotations

import string
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import diffusers
import torch
from PIL import Image
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

WORDS = "a an the cat dog bird on in with red blue green circle square mat house sky photo painting of and".split()
LENGTH = 12  # tokens of a prompt, as the CLIP encoders take it
SIDE = 16  # of the images, in pixels; the VAE halves it


def build_stable_diffusion(folder: Path) -> Path:
    text, tokenizer = clip()
    pipeline = diffusers.StableDiffusionPipeline(
        vae=vae(), text_encoder=text, tokenizer=tokenizer, unet=unet(), scheduler=ddim(), **_UNCHECKED
    )
    return _saved(pipeline, folder)


def build_controlnet(folder: Path) -> Path:
    text, tokenizer = clip()
    network = unet()
    control = diffusers.ControlNetModel.from_unet(network, conditioning_embedding_out_channels=(8, 16))
    pipeline = diffusers.StableDiffusionControlNetPipeline(
        vae=vae(),
        text_encoder=text,
        tokenizer=tokenizer,
        unet=network,
        controlnet=seeded(control, seed=5),
        scheduler=ddim(),
        **_UNCHECKED,
    )
    return _saved(pipeline, folder)


def build_sdxl(folder: Path) -> Path:
    text, tokenizer = clip()
    text_2, tokenizer_2 = clip(projected=True, seed=4)
    network = unet(
        cross_attention_dim=32 + 32,
        transformer_layers_per_block=(1, 2),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + 32,
    )
    pipeline = diffusers.StableDiffusionXLPipeline(
        vae=vae(),
        text_encoder=text,
        tokenizer=tokenizer,
        text_encoder_2=text_2,
        tokenizer_2=tokenizer_2,
        unet=network,
        scheduler=diffusers.EulerDiscreteScheduler(beta_schedule="scaled_linear", steps_offset=1),
        add_watermarker=False,
    )
    return _saved(pipeline, folder)


def build_sd3(folder: Path) -> Path:
    text, tokenizer = clip(width=16, projected=True)
    text_2, tokenizer_2 = clip(width=16, projected=True, seed=4)
    text_3, tokenizer_3 = t5()
    transformer = diffusers.SD3Transformer2DModel(
        sample_size=SIDE // 2,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=4,
        joint_attention_dim=32,
        caption_projection_dim=32,
        pooled_projection_dim=16 + 16,
        pos_embed_max_size=16,
    )
    pipeline = diffusers.StableDiffusion3Pipeline(
        vae=vae(shift_factor=0.1),
        text_encoder=text,
        tokenizer=tokenizer,
        text_encoder_2=text_2,
        tokenizer_2=tokenizer_2,
        text_encoder_3=text_3,
        tokenizer_3=tokenizer_3,
        transformer=seeded(transformer),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
    )
    return _saved(pipeline, folder)


def build_flux(folder: Path) -> Path:
    text, tokenizer = clip()
    text_2, tokenizer_2 = t5()
    transformer = diffusers.FluxTransformer2DModel(
        patch_size=1,
        in_channels=4 * 4,  # the pipeline packs two by two latents into one token
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        pooled_projection_dim=32,
        guidance_embeds=True,
        axes_dims_rope=(4, 6, 6),
    )
    pipeline = diffusers.FluxPipeline(
        vae=vae(shift_factor=0.1),
        text_encoder=text,
        tokenizer=tokenizer,
        text_encoder_2=text_2,
        tokenizer_2=tokenizer_2,
        transformer=seeded(transformer),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
    )
    return _saved(pipeline, folder)


def build_pixart(folder: Path) -> Path:
    text, tokenizer = t5()
    transformer = diffusers.PixArtTransformer2DModel(
        sample_size=SIDE // 2,
        patch_size=2,
        in_channels=4,
        out_channels=8,  # the noise, and its variance
        num_layers=2,
        num_attention_heads=4,
        attention_head_dim=8,
        cross_attention_dim=32,
        caption_channels=32,
        use_additional_conditions=False,
    )
    pipeline = diffusers.PixArtAlphaPipeline(
        vae=vae(),
        text_encoder=text,
        tokenizer=tokenizer,
        transformer=seeded(transformer),
        scheduler=diffusers.DPMSolverMultistepScheduler(),
    )
    return _saved(pipeline, folder)


def build_dit(folder: Path) -> Path:
    transformer = diffusers.DiTTransformer2DModel(
        sample_size=SIDE // 2,
        patch_size=2,
        in_channels=4,
        out_channels=8,  # the noise, and its variance
        num_layers=2,
        num_attention_heads=4,
        attention_head_dim=8,
        num_embeds_ada_norm=1000,  # the pipeline takes class 1000 for none
    )
    pipeline = diffusers.DiTPipeline(
        transformer=seeded(transformer), vae=vae(), scheduler=ddim(), id2label={0: "tench", 1: "goldfish", 2: "shark"}
    )
    return _saved(pipeline, folder)


def build_ddpm(folder: Path) -> Path:
    network = diffusers.UNet2DModel(
        sample_size=SIDE,
        in_channels=3,
        out_channels=3,
        block_out_channels=(16, 32),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=8,
        norm_num_groups=8,
    )
    return _saved(diffusers.DDPMPipeline(seeded(network), diffusers.DDPMScheduler()), folder)


KINDS: dict[str, Callable[[Path], Path]] = {
    "stable-diffusion": build_stable_diffusion,
    "sdxl": build_sdxl,
    "sd3": build_sd3,
    "flux": build_flux,
    "pixart": build_pixart,
    "dit": build_dit,
    "controlnet": build_controlnet,
    "ddpm": build_ddpm,
}

#: What a pipeline of each kind is called with for one small image, beside the steps and the generator.
CALLS: dict[str, dict[str, Any]] = {
    "stable-diffusion": {"prompt": "a red circle"},
    "sdxl": {"prompt": "a red circle"},
    "sd3": {"prompt": "a red circle", "max_sequence_length": LENGTH},
    # A size is said where the pipeline would not take it from the model.
    "flux": {"prompt": "a red circle", "max_sequence_length": LENGTH, "height": SIDE, "width": SIDE},
    "pixart": {"prompt": "a red circle", "use_resolution_binning": False, "clean_caption": False},
    "dit": {"class_labels": [1]},
    "controlnet": {"prompt": "a red circle", "image": Image.linear_gradient("L").resize((SIDE, SIDE)).convert("RGB")},
    "ddpm": {},
}

_UNCHECKED: dict[str, Any] = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
_HOME = tempfile.TemporaryDirectory(prefix="nnsight-diffusers-")  # goes with the process


@cache
def folder(kind: str) -> Path:
    """The folder of the one checkpoint of this kind that the process shares."""
    return KINDS[kind](Path(_HOME.name) / kind)


@torch.no_grad()
def seeded(module: torch.nn.Module, seed: int = 0) -> Any:
    """Draw all parameters: what multiplies a vector keeps its length, what scales is about one, what is added small."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in module.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.dim() > 1:
            parameter.copy_(noise / parameter[0].numel() ** 0.5)
        else:
            parameter.copy_(0.1 * noise + float(name.endswith("weight")))
    return module.eval()


def unet(**own: Any) -> diffusers.UNet2DConditionModel:
    settings = {
        "sample_size": SIDE // 2,
        "block_out_channels": (16, 32),
        "layers_per_block": 1,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "cross_attention_dim": 32,
        "attention_head_dim": 8,
        "norm_num_groups": 8,
    }
    return seeded(diffusers.UNet2DConditionModel(**{**settings, **own}), seed=1)


def vae(**own: Any) -> diffusers.AutoencoderKL:
    return seeded(
        diffusers.AutoencoderKL(
            sample_size=SIDE,
            block_out_channels=(8, 16),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            latent_channels=4,
            scaling_factor=1.5,  # latents of weights that were not trained are large, and would drown the decoder's own
            norm_num_groups=4,
            force_upcast=False,
            **own,
        ),
        seed=2,
    )


def ddim() -> diffusers.DDIMScheduler:
    return diffusers.DDIMScheduler(
        beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False, steps_offset=1
    )


def clip(width: int = 32, projected: bool = False, seed: int = 3) -> tuple[torch.nn.Module, CLIPTokenizer]:
    """A text encoder of CLIP's kind and its tokenizer, to which every word of `WORDS` is one token."""
    start, end = "<|startoftext|>", "<|endoftext|>"
    letters = string.ascii_lowercase
    pieces, merges = [*letters, *(f"{letter}</w>" for letter in letters)], []
    for word in WORDS:
        left = word[0] if len(word) > 1 else f"{word}</w>"
        for at in range(1, len(word)):
            right = word[at] if at < len(word) - 1 else f"{word[at]}</w>"
            if left + right not in pieces:
                merges.append((left, right))
                pieces.append(left + right)
            left += right
    vocab = {piece: number for number, piece in enumerate([*pieces, start, end])}
    tokenizer = CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=LENGTH)
    config = CLIPTextConfig(
        vocab_size=len(vocab),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=LENGTH,
        projection_dim=width,
        bos_token_id=vocab[start],
        eos_token_id=vocab[end],
        pad_token_id=vocab[end],
    )
    return seeded((CLIPTextModelWithProjection if projected else CLIPTextModel)(config), seed=seed), tokenizer


def t5() -> tuple[T5EncoderModel, T5Tokenizer]:
    """A text encoder of T5's kind and its tokenizer, to which every word of `WORDS` is one token."""
    pieces = ["▁", *(f"▁{word}" for word in WORDS), *string.ascii_lowercase]
    vocab = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -9.0), *((piece, -float(len(piece) < 2)) for piece in pieces)]
    tokenizer = T5Tokenizer(vocab=vocab, extra_ids=0, model_max_length=64)
    config = T5Config(
        vocab_size=len(tokenizer),
        d_model=32,
        d_kv=8,
        d_ff=64,
        num_layers=2,
        num_heads=4,
        pad_token_id=0,
        eos_token_id=1,
        decoder_start_token_id=0,
    )
    return seeded(T5EncoderModel(config), seed=6), tokenizer


def _saved(pipeline: Any, folder: Path) -> Path:
    pipeline.save_pretrained(folder)
    return folder
