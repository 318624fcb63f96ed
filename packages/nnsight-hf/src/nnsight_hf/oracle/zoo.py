"""Every architecture of causal language models that the installed transformers knows, as a tiny model with seeded weights.

`shrink.py` makes a configuration small by the names of its fields. What stands here is what that makes inconsistent in
one architecture, or what that architecture needs to show all of its parts (one layer of each kind, say).
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from nnsight_hf.oracle.shrink import VOCABULARY, shrink

_LINEAR = {"layer_types": ["linear_attention", "full_attention"]}
_MAMBA = {"mamba_n_heads": 8, "mamba_d_head": 8}
_QWEN4 = {
    "layer_types": ["linear_attention", "indexed_attention"],
    "indexer_n_heads": 2,
    "indexer_kv_heads": 1,
    "indexer_head_dim": 8,
    "indexer_budget": 64,
    "indexer_compress_ratio": 2,
    "ngram_vocab_size_base": 64,
    "make_ngram_vocab_size_divisible_by": 8,
    "split_ngram_parts": 1,
    "hc_lowrank": 8,
}

# Their defaults are 1, which would hide whether a value is multiplied.
_GRANITE = {"residual_multiplier": 0.5, "logits_scaling": 4.0, "embedding_multiplier": 2.0}

#: Fields that an architecture's tiny configuration has beside, or other than, those that `shrink` finds.
CORRECTIONS: dict[str, dict[str, Any]] = {
    "bailing_hybrid": {**_LINEAR, "head_dim": 8, "layer_group_size": 2},
    "bamba": {**_MAMBA, "attn_layer_indices": [1]},
    "blt": {"encoder_hash_byte_group_vocab": 64},
    "cohere_compass_text": {
        "layer_types": ["sliding_attention", "full_attention"],
        "rope_parameters": dict.fromkeys(
            ("sliding_attention", "full_attention"), {"rope_type": "default", "rope_theta": 10000.0}
        ),
    },
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "rope_theta": 10000.0, "clip_qkv": 8.0},
        "ffn_config": {"ffn_hidden_size": 48, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "dots1": {"n_shared_experts": 1},
    "dots3_note": {
        "text_config": {"head_dim": 8},
        "vision_config": {"mlp_layer_types": ["dense", "dense"], "adapter_in_dim": 32, "adapter_out_dim": 32},
        "audio_config": {"adapter_input_size": 32, "adapter_out_dim": 32, "downsample_hidden_size": 32},
    },
    "dots3_note_text": {"head_dim": 8},
    "falcon_h1": {**_MAMBA, "mamba_d_ssm": 64, "attention_out_multiplier": 0.75, "ssm_out_multiplier": 0.5},
    "gemma3n_text": {
        "num_hidden_layers": 4,
        "num_kv_shared_layers": 2,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "activation_sparsity_pattern": [0.5, 0.0, 0.0, 0.0],
    },
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "granite": _GRANITE,
    "granite_swa": _GRANITE,
    "granitemoe": _GRANITE,
    "granitemoe_swa": _GRANITE,
    "granitemoehybrid": {**_GRANITE, **_MAMBA, "layer_types": ["mamba", "attention"]},
    "granitemoeshared": _GRANITE,
    "hunyuan_v1_dense": {"head_dim": 8},
    "hunyuan_v1_moe": {"head_dim": 8},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "kimi_linear": _LINEAR,
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "lfm3": {"layer_types": ["conv", "full_attention"]},
    "longcat_flash": {"zero_expert_num": 2},
    "mamba2": {"num_heads": 8, "head_dim": 8, "n_groups": 2},
    "ministral": {"head_dim": 8},
    "nemotron": {"head_dim": 8, "num_key_value_heads": 2},
    "nemotron_h": {"mamba_num_heads": 8, "mamba_head_dim": 8, "moe_shared_expert_intermediate_size": 48},
    "qwen3_5": {"text_config": _LINEAR},
    "qwen3_5_moe": {"text_config": _LINEAR},
    "qwen3_5_text": _LINEAR,
    "qwen3_5_moe_text": _LINEAR,
    "qwen3_next": _LINEAR,
    "qwen4_exp": {"text_config": _QWEN4},
    "qwen4_exp_text": _QWEN4,
    "recurrent_gemma": {"block_types": ("recurrent", "attention")},
    "reformer": {
        "is_decoder": True,
        "attn_layers": ("local", "lsh"),
        "attention_head_size": 8,
        "axial_pos_shape": (8, 16),
        "axial_pos_embds_dim": (8, 24),
        "feed_forward_size": 48,
        "local_attn_chunk_length": 8,
        "lsh_attn_chunk_length": 8,
        "num_buckets": 4,
        "hash_seed": 0,
    },
    "roc_bert": {
        "pronunciation_embed_dim": 8,
        "shape_embed_dim": 8,
        "shape_vocab_size": 64,
        "pronunciation_vocab_size": 64,
    },
    "xlm": {"emb_dim": 32, "causal": True},
    "xlstm": {"hidden_size": 64, "num_heads": 2, "qk_dim_factor": 1.0},
    "xmod": {"default_language": "en_XX"},
    "zamba": {
        "num_hidden_layers": 4,
        "layers_block_type": ["mamba", "hybrid", "mamba", "hybrid"],
        "attention_hidden_size": 64,
    },
    "zamba2": {"layers_block_type": ["mamba", "hybrid"], "adapter_rank": 8},
    "zaya": {"num_experts_per_tok": 1, "router_hidden_size": 16},
}


def architectures() -> list[str]:
    """Return the model types of all causal language models, in the order of their names."""
    return sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def configuration(architecture: str) -> Any:
    """Return the tiny configuration of an architecture."""
    return shrink(CONFIG_MAPPING[architecture], **CORRECTIONS.get(architecture, {}))


def module(architecture: str) -> torch.nn.Module:
    """Return the tiny model of an architecture, in evaluation mode, with the same weights every time.

    Matrices are drawn so large that tokens, positions and edits all matter; what transformers initialises to something
    else than a matrix (norms, biases, states of recurrent layers) stays as transformers makes it.

    Raises:
        Exception: whatever transformers raises for an architecture that cannot be built from a configuration, or cannot
            run on tokens alone.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = AutoModelForCausalLM.from_config(configuration(architecture)).eval()
        with torch.no_grad():
            for name, parameter in made.named_parameters():
                if parameter.dim() > 1 and "A_log" not in name and parameter.is_floating_point():
                    parameter.normal_(std=0.15)
            made(torch.arange(4, 10)[None])
    return made


def tokens(length: int, seed: int = 0) -> list[int]:
    """Return token ids without special ones."""
    generator = torch.Generator().manual_seed(seed * 1000 + length)
    ids: list[int] = torch.randint(4, VOCABULARY, (length,), generator=generator).tolist()
    return ids
