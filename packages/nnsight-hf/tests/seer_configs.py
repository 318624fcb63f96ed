"""A tiny configuration of each family that reads images and text, and its own processor built from pieces.

Image processors are those that work on PIL images. The words are in `seer_words.py`.
"""

from __future__ import annotations

from typing import Any

import transformers
from heads import BOTH_SIDES
from seer_words import MROPE, SIGHT, SQUARE, TEXT, WORDS, number, tokenizer, unfilmed


def siglip(**own: Any) -> Any:
    return transformers.SiglipVisionConfig(**SIGHT, vision_use_head=False, **own)


def llama() -> Any:
    return transformers.LlamaConfig(**TEXT)


def llava_next() -> tuple[Any, Any]:
    grid = [[28, 56], [56, 28], [56, 56], [84, 28]]
    config = transformers.LlavaNextConfig(
        text_config=llama(),
        vision_config=transformers.CLIPVisionConfig(**SIGHT),
        image_token_index=number("<image>"),
        image_grid_pinpoints=grid,
        vision_feature_layer=-1,
        image_seq_length=16,
    )
    pixels = transformers.LlavaNextImageProcessorPil(
        size={"shortest_edge": 28}, crop_size=SQUARE, image_grid_pinpoints=grid
    )
    return config, transformers.LlavaNextProcessor(
        pixels, tokenizer(), patch_size=7, vision_feature_select_strategy="default", num_additional_image_tokens=1
    )


def llava_onevision() -> tuple[Any, Any]:
    grid = [[28, 28], [28, 56], [56, 28], [56, 56], [84, 28]]
    config = transformers.LlavaOnevisionConfig(
        text_config=transformers.Qwen2Config(**TEXT),
        vision_config=siglip(),
        image_token_index=number("<image>"),
        video_token_index=number("<video>"),
        image_grid_pinpoints=grid,
    )
    pixels = transformers.LlavaOnevisionImageProcessorPil(size=SQUARE, image_grid_pinpoints=grid)
    return config, unfilmed("LlavaOnevisionProcessor")(
        pixels, tokenizer(), None, num_image_tokens=16, vision_feature_select_strategy="full"
    )


def llava_next_video() -> tuple[Any, Any]:
    grid = [[28, 56], [56, 28], [56, 56], [84, 28]]
    config = transformers.LlavaNextVideoConfig(
        text_config=llama(),
        vision_config=transformers.CLIPVisionConfig(**SIGHT),
        image_token_index=number("<image>"),
        video_token_index=number("<video>"),
        image_grid_pinpoints=grid,
        vision_feature_layer=-1,
        image_seq_length=16,
        video_seq_length=4,
    )
    pixels = transformers.LlavaNextImageProcessorPil(
        size={"shortest_edge": 28}, crop_size=SQUARE, image_grid_pinpoints=grid
    )
    return config, unfilmed("LlavaNextVideoProcessor")(
        None,
        pixels,
        tokenizer(),
        patch_size=7,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )


def vipllava() -> tuple[Any, Any]:
    config = transformers.VipLlavaConfig(
        text_config=llama(),
        vision_config=transformers.CLIPVisionConfig(**SIGHT),
        image_token_index=number("<image>"),
        vision_feature_layers=[-1, -2],
        image_seq_length=16,
    )
    pixels = transformers.CLIPImageProcessorPil(size={"shortest_edge": 28}, crop_size=SQUARE)
    return config, transformers.LlavaProcessor(
        pixels, tokenizer(), patch_size=7, vision_feature_select_strategy="default", num_additional_image_tokens=1
    )


def mistral3() -> Any:
    return transformers.Mistral3Config(
        text_config=transformers.MistralConfig(**TEXT),
        vision_config=transformers.PixtralVisionConfig(**SIGHT),
        image_token_index=number("[IMG]"),
        spatial_merge_size=2,
    )


def fuyu() -> Any:
    return transformers.FuyuConfig(
        text_config={**TEXT, "model_type": "persimmon", "num_key_value_heads": 4},
        image_size=28,
        patch_size=7,
        image_token_id=number("|SPEAKER|"),
    )


def aya() -> tuple[Any, Any]:
    config = transformers.AyaVisionConfig(
        text_config=transformers.Cohere2Config(**TEXT, sliding_window=8),
        vision_config=siglip(),
        image_token_index=number("<|IMG_PATCH|>"),
        downsample_factor=2,
        adapter_layer_norm_eps=1e-6,
    )
    pixels = transformers.GotOcr2ImageProcessorPil(size=SQUARE, crop_to_patches=True, min_patches=1, max_patches=4)
    return config, transformers.AyaVisionProcessor(pixels, tokenizer(), patch_size=7, img_size=28, downsample_factor=2)


def idefics2() -> tuple[Any, Any]:
    config = transformers.Idefics2Config(
        text_config=transformers.MistralConfig(**TEXT),
        vision_config=SIGHT,
        perceiver_config={
            "hidden_size": 32,
            "resampler_n_latents": 4,
            "resampler_depth": 1,
            "resampler_n_heads": 2,
            "resampler_head_dim": 8,
            "num_key_value_heads": 1,
        },
        image_token_id=number("<image>"),
    )
    pixels = transformers.Idefics2ImageProcessorPil(size={"shortest_edge": 14, "longest_edge": 28})
    return config, transformers.Idefics2Processor(pixels, tokenizer(), image_seq_len=4)


def idefics3(kind: str = "Idefics3") -> tuple[Any, Any]:
    config = getattr(transformers, f"{kind}Config")(
        text_config=llama(), vision_config=SIGHT, scale_factor=2, image_token_id=number("<image>"), pad_token_id=0
    )
    pixels = getattr(transformers, f"{kind}ImageProcessorPil")(
        size={"longest_edge": 56}, max_image_size={"longest_edge": 28}
    )
    more = (None,) if kind == "SmolVLM" else ()
    return config, unfilmed(f"{kind}Processor")(pixels, tokenizer(), *more, image_seq_len=4)


def paligemma() -> tuple[Any, Any]:
    config = transformers.PaliGemmaConfig(
        text_config=transformers.GemmaConfig(**TEXT, head_dim=8),
        vision_config=siglip(projection_dim=32),
        image_token_index=number("<image>"),
        projection_dim=32,
        hidden_size=32,
        pad_token_id=0,
    )
    pixels = transformers.SiglipImageProcessorPil(size=SQUARE)
    pixels.image_seq_length = 16
    return config, transformers.PaliGemmaProcessor(pixels, tokenizer(image_token="<image>"))


def gemma3() -> tuple[Any, Any]:
    config = transformers.Gemma3Config(
        text_config=transformers.Gemma3TextConfig(
            **TEXT, head_dim=8, sliding_window=8, layer_types=["sliding_attention", "full_attention"]
        ),
        vision_config=siglip(),
        mm_tokens_per_image=4,
        boi_token_index=number("<boi>"),
        eoi_token_index=number("<eoi>"),
        image_token_index=number("<image>"),
    )
    words = tokenizer(image_token="<image>", boi_token="<boi>", eoi_token="<eoi>")
    return config, transformers.Gemma3Processor(
        transformers.Gemma3ImageProcessorPil(size=SQUARE), words, image_seq_length=4
    )


def mllama() -> tuple[Any, Any]:
    vision = {
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_global_layers": 1,
        "attention_heads": 2,
        "intermediate_size": 24,
        "vision_output_dim": 48,
        "image_size": 28,
        "patch_size": 7,
        "max_num_tiles": 4,
        "intermediate_layers_indices": [0, 1],
        "supported_aspect_ratios": [[1, 1], [1, 2], [1, 3], [1, 4], [2, 1], [2, 2], [3, 1], [4, 1]],
    }
    text = {
        **TEXT,
        "num_hidden_layers": 3,
        "cross_attention_layers": [1],
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
    }
    config = transformers.MllamaConfig(text_config=text, vision_config=vision, image_token_index=number("<|image|>"))
    pixels = transformers.MllamaImageProcessorPil(size=SQUARE, max_image_tiles=4)
    return config, transformers.MllamaProcessor(pixels, tokenizer())


def qwen(kind: str = "Qwen2VL") -> tuple[Any, Any]:
    vision = {
        "depth": 2,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_heads": 2,
        "patch_size": 7,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
    }
    if kind == "Qwen2VL":
        vision |= {"embed_dim": 16, "hidden_size": 32}
    elif kind == "Qwen3VL":
        vision |= {"out_hidden_size": 32, "num_position_embeddings": 64, "deepstack_visual_indexes": [0]}
    else:
        vision |= {"out_hidden_size": 32, "fullatt_block_indexes": [1], "window_size": 28}
    text = {**TEXT, "head_dim": 8} if kind == "Qwen3VL" else TEXT
    config = getattr(transformers, f"{kind.replace('25', '2_5_')}Config")(
        text_config={**text, "rope_parameters": MROPE},
        vision_config=vision,
        image_token_id=number("<|image_pad|>"),
        video_token_id=number("<|video_pad|>"),
        vision_start_token_id=number("<|vision_start|>"),
        vision_end_token_id=number("<|vision_end|>"),
    )
    pixels = transformers.Qwen2VLImageProcessorPil(
        patch_size=7, size={"shortest_edge": 14 * 14, "longest_edge": 56 * 56}
    )
    return config, unfilmed(f"{kind.replace('25', '2_5_')}Processor")(pixels, tokenizer(), None)


def internvl() -> tuple[Any, Any]:
    config = transformers.InternVLConfig(
        text_config=transformers.Qwen2Config(**TEXT),
        vision_config={**SIGHT, "image_size": [28, 28], "patch_size": [7, 7]},
        image_token_id=number("<ctx>"),
        image_seq_length=4,
    )
    words = tokenizer(
        start_image_token="<img>", end_image_token="</img>", context_image_token="<ctx>", video_token="<video>"
    )
    pixels = transformers.GotOcr2ImageProcessorPil(size=SQUARE, crop_to_patches=True, min_patches=1, max_patches=4)
    return config, unfilmed("InternVLProcessor")(pixels, words, None, image_seq_length=4)


QFORMER = {
    "vocab_size": len(WORDS) + 8,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "encoder_hidden_size": 16,
    "max_position_embeddings": 64,
}


def opt() -> Any:
    return transformers.OPTConfig(
        vocab_size=len(WORDS) + 8,
        hidden_size=32,
        ffn_dim=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        word_embed_proj_dim=32,
        max_position_embeddings=128,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )


def asking(config: Any) -> Any:
    """The configuration of a model that asks an image with queries."""
    return config(
        text_config=opt(),
        vision_config=SIGHT,
        qformer_config=QFORMER,
        num_query_tokens=4,
        image_token_index=number("<image>"),
    )


def blip2() -> tuple[Any, Any]:
    config = asking(transformers.Blip2Config)
    pixels = transformers.BlipImageProcessorPil(size=SQUARE)
    return config, transformers.Blip2Processor(pixels, tokenizer(), num_query_tokens=4)


def instructblip() -> tuple[Any, Any]:
    config = asking(transformers.InstructBlipConfig)
    pixels = transformers.BlipImageProcessorPil(size=SQUARE)
    return config, transformers.InstructBlipProcessor(pixels, tokenizer(), tokenizer(), num_query_tokens=4)


def kosmos2() -> tuple[Any, Any]:
    text = {
        "vocab_size": len(WORDS) + 64,
        "max_position_embeddings": 128,
        "embed_dim": 32,
        "layers": 2,
        "ffn_dim": 48,
        "attention_heads": 4,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    config = transformers.Kosmos2Config(text_config=text, vision_config=SIGHT, latent_query_num=64)
    pixels = transformers.CLIPImageProcessorPil(size={"shortest_edge": 28}, crop_size=SQUARE)
    return config, transformers.Kosmos2Processor(pixels, tokenizer(), 4)


def chameleon() -> tuple[Any, Any]:
    names = [f"IMGIMG{letter}Z" for letter in "ABCDEFGH"]
    at = {name: len(WORDS) + n for n, name in enumerate(names)}
    config = transformers.ChameleonConfig(
        **TEXT,
        vq_config={
            "embed_dim": 8,
            "num_embeddings": 8,
            "latent_channels": 8,
            "resolution": 28,
            "base_channels": 32,
            "channel_multiplier": [1, 1],
            "num_res_blocks": 1,
        },
        vocabulary_map={**{word: n for n, word in enumerate(WORDS)}, **at},
    )
    pixels = transformers.ChameleonImageProcessorPil(size={"shortest_edge": 28}, crop_size=SQUARE)
    words = tokenizer(image_token="<image>")
    return config, transformers.ChameleonProcessor(pixels, words, image_seq_length=196, image_token="<image>")


def florence2() -> tuple[Any, Any]:
    config = transformers.Florence2Config(
        text_config=transformers.BartConfig(
            vocab_size=len(WORDS) + 8,
            d_model=32,
            **BOTH_SIDES,
            max_position_embeddings=128,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
            decoder_start_token_id=2,
        ),
        vision_config={
            "depths": [1, 1],
            "patch_size": [7, 3],
            "patch_stride": [4, 2],
            "patch_padding": [3, 1],
            "patch_prenorm": [False, True],
            "embed_dim": [8, 16],
            "num_heads": [2, 2],
            "num_groups": [2, 2],
            "window_size": 4,
            "drop_path_rate": 0.0,
            "projection_dim": 32,
        },
        image_token_id=number("<image>"),
    )
    pixels = transformers.CLIPImageProcessorPil(size=SQUARE, crop_size=SQUARE)
    pixels.image_seq_length = 17
    return config, transformers.Florence2Processor(
        pixels, tokenizer(image_token="<image>"), num_additional_image_tokens=0
    )


def git() -> tuple[Any, Any]:
    text = {name: size for name, size in TEXT.items() if name != "num_key_value_heads"}
    config = transformers.GitConfig(**text, vision_config=SIGHT, max_position_embeddings=64)
    pixels = transformers.CLIPImageProcessorPil(size={"shortest_edge": 28}, crop_size=SQUARE)
    return config, transformers.GitProcessor(pixels, tokenizer())
