"""A Stable Diffusion of a size between the toys of the tests and a real one: a step takes some 25 ms on one core.

Its weights are random; it lies in a folder as diffusers saves pipelines, which all contenders load. The first process
that asks makes it.
"""

from __future__ import annotations

import os
import string
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

#: What says where the folder is that all processes of a run share.
SHARED = "NNSIGHT_BENCH_SHARED"

_LENGTH = 16  # tokens of a prompt
_SIDE = 32  # of an image, in pixels; of its latents half


class Pipeline:
    """The pipeline in the table's shape of a model: what is called with a prompt is the plain pipeline.

    Args:
        folder: where it lies.
    """

    def __init__(self, folder: Path) -> None:
        import diffusers

        self.folder = folder
        self.plain: Any = diffusers.StableDiffusionPipeline.from_pretrained(folder)
        self.plain.set_progress_bar_config(disable=True)

    def requires_grad_(self, on: bool) -> Pipeline:
        """Pass it on to the modules."""
        for part in self.plain.components.values():
            if isinstance(part, torch.nn.Module):
                part.requires_grad_(on)
        return self

    def eval(self) -> Pipeline:
        """As it was loaded."""
        return self


def load() -> Pipeline:
    """Load the pipeline, making it first if no process has."""
    folder = Path(os.environ[SHARED], "pipeline")
    if not folder.exists():
        _make(folder)
    return Pipeline(folder)


def same_for_all(name: str, values: Tensor) -> None:
    """Compare values with those of the process that came first.

    Raises:
        AssertionError: they differ, so the contenders do not do the same work.
    """
    kept = Path(os.environ[SHARED], f"{name}.pt")
    if kept.exists():
        torch.testing.assert_close(values, torch.load(kept))
    else:
        torch.save(values, kept)


def _make(folder: Path) -> None:
    import diffusers
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    torch.manual_seed(0)
    ends = ["<|startoftext|>", "<|endoftext|>"]
    letters = string.ascii_lowercase
    vocab = {piece: number for number, piece in enumerate([*letters, *(f"{one}</w>" for one in letters), *ends])}
    start, end = (vocab[piece] for piece in ends)
    text = CLIPTextConfig(
        vocab_size=len(vocab),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=_LENGTH,
        bos_token_id=start,
        eos_token_id=end,
        pad_token_id=end,
    )
    pipeline = diffusers.StableDiffusionPipeline(
        vae=diffusers.AutoencoderKL(
            sample_size=_SIDE,
            block_out_channels=(16, 32),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            latent_channels=4,
            norm_num_groups=8,
        ),
        text_encoder=CLIPTextModel(text),
        tokenizer=CLIPTokenizer(vocab=vocab, merges=[], model_max_length=_LENGTH),
        unet=diffusers.UNet2DConditionModel(
            sample_size=_SIDE // 2,
            block_out_channels=(64, 128),
            layers_per_block=1,
            down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
            cross_attention_dim=64,
            attention_head_dim=8,
        ),
        scheduler=diffusers.DDIMScheduler(
            beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False, steps_offset=1
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(folder)
