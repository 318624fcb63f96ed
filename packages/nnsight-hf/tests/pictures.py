"""Tiny models of images and text, with the processor of one of them, and pictures to show them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import checkpoints
import numpy
import torch
import transformers
from PIL import Image

#: One placeholder for an image; the processor makes 16 of it.
MARK = "<image>"
WORDS = [*checkpoints.TOKENS, MARK]


def picture(seed: int, height: int = 20, width: int = 30) -> Image.Image:
    """Noise."""
    noise = numpy.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=numpy.uint8)
    return Image.fromarray(noise)


def processor(**own: Any) -> transformers.LlavaProcessor:
    tokenizer = checkpoints.tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": [MARK]})
    pixels = transformers.CLIPImageProcessor(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28})
    return transformers.LlavaProcessor(
        pixels, tokenizer, patch_size=7, vision_feature_select_strategy="full", image_token=MARK, **own
    )


def llava() -> torch.nn.Module:
    text = transformers.LlamaConfig(
        vocab_size=len(WORDS),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        pad_token_id=0,
        eos_token_id=2,
    )
    vision = transformers.SiglipVisionConfig(
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=28,
        patch_size=7,
        vision_use_head=False,
    )
    config = transformers.LlavaConfig(
        text_config=text,
        vision_config=vision,
        image_token_index=WORDS.index(MARK),
        vision_feature_select_strategy="full",
        vision_feature_layer=-1,
        image_seq_length=16,
        pad_token_id=0,
    )
    return seeded(transformers.LlavaForConditionalGeneration, config)


#: Tokens of the model whose images come as patches of different numbers.
PATCH, START = 24, 25


def qwen() -> torch.nn.Module:
    text = {
        "vocab_size": 32,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e4},
    }
    vision = {
        "depth": 2,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_heads": 2,
        "out_hidden_size": 32,
        "fullatt_block_indexes": [1],
        "window_size": 28,
        "patch_size": 7,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
    }
    config = transformers.Qwen2_5_VLConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=PATCH,
        video_token_id=26,
        vision_start_token_id=START,
        vision_end_token_id=27,
    )
    return seeded(transformers.Qwen2_5_VLForConditionalGeneration, config)


def patched(seed: int, words: list[int], *grids: tuple[int, int]) -> dict[str, Any]:
    """An input of the model with patches: images of so many patches down and across, then words."""
    generator = torch.Generator().manual_seed(seed)
    ids: list[int] = []
    for down, across in grids:
        ids += [START, *[PATCH] * (down * across // 4)]
    ids += words
    made: dict[str, Any] = {"input_ids": torch.tensor([ids])}
    made["mm_token_type_ids"] = (made["input_ids"] == PATCH).int()
    if grids:
        made["pixel_values"] = torch.randn(sum(a * b for a, b in grids), 3 * 2 * 7 * 7, generator=generator)
        made["image_grid_thw"] = torch.tensor([[1, a, b] for a, b in grids])
    return made


def seeded(cls: Any, config: Any) -> torch.nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = cls(config).eval()
        with torch.no_grad():
            for parameter in made.parameters():
                if parameter.dim() > 1:
                    parameter.normal_(std=0.2)
    return made


def save(folder: Path) -> str:
    """Save the model and its processor as transformers saves them."""
    llava().save_pretrained(folder)
    processor().save_pretrained(folder)
    return str(folder)
