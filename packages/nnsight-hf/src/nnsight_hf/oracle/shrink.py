"""A tiny configuration of any architecture: the default one, with the sizes in it made small.

The names under which configurations keep their sizes are few, so one table serves all of them; what it makes
inconsistent in one architecture is put right in `zoo.py`.
"""

from __future__ import annotations

import inspect
from typing import Any

from transformers import AutoConfig, PretrainedConfig

#: How many tokens there are. More than any tiny vocabulary of a tokenizer needs.
VOCABULARY = 64

_WIDTH, _HEADS, _KEYS, _HEAD, _INNER, _LAYERS = 32, 4, 2, 8, 48, 2

#: What a field of a configuration becomes, if the architecture has such a field and it is not None there.
SIZES: dict[str, Any] = {
    **dict.fromkeys(("vocab_size", "unpadded_vocab_size", "vocab_size_per_layer_input"), VOCABULARY),
    **dict.fromkeys(
        ("hidden_size", "d_model", "n_embd", "dim", "model_dim", "embedding_size", "word_embed_proj_dim"), _WIDTH
    ),
    **dict.fromkeys(
        ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers", "encoder_layers"), _LAYERS
    ),
    **dict.fromkeys(
        (
            "num_attention_heads",
            "n_head",
            "n_heads",
            "num_heads",
            "decoder_attention_heads",
            "encoder_attention_heads",
            "swa_num_attention_heads",
        ),
        _HEADS,
    ),
    **dict.fromkeys(("num_key_value_heads", "swa_num_key_value_heads", "num_kv_heads"), _KEYS),
    **dict.fromkeys(("head_dim", "swa_head_dim", "global_head_dim", "attention_head_dim", "kv_channels"), _HEAD),
    **dict.fromkeys(
        (
            "intermediate_size",
            "moe_intermediate_size",
            "shared_expert_intermediate_size",
            "shared_intermediate_size",
            "decoder_ffn_dim",
            "encoder_ffn_dim",
            "ffn_dim",
            "d_ff",
            "dim_ff",
            "dff",
            "ffn_hidden_size",
            "expert_ffn_hidden_size",
            "dense_intermediate_size",
            "intermediate_size_mlp",
            "attention_hidden_size",
        ),
        _INNER,
    ),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "max_seq_len", "n_ctx"), 128),
    **dict.fromkeys(("num_experts", "n_routed_experts", "num_local_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "num_experts_per_token", "moe_k", "moe_topk"), 2),
    **dict.fromkeys(("n_group", "topk_group", "num_expert_group", "first_k_dense_replace"), 1),
    "n_shared_experts": 1,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "o_lora_rank": 8,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "qk_head_dim": 16,
    "v_head_dim": 8,
    "index_head_dim": 8,
    "index_n_heads": 2,
    "index_topk": 64,
    "hidden_size_per_layer_input": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_head_dim": 8,
    "linear_num_heads": 4,
    "rotary_dim": 4,
    "query_pre_attn_scalar": 8,
    "state_size": 8,
    "time_step_rank": 4,
    "mamba_d_state": 8,
    "mamba_d_head": 8,
    "mamba_n_heads": 8,
    "mamba_chunk_size": 8,
    "chunk_size": 8,
    "sliding_window": 32,
    "window_size": 32,
    "laurel_rank": 4,
    "pretraining_tp": 1,
    "position_embedding_size": 64,
    "projection_dim": _WIDTH,
    "out_hidden_size": _WIDTH,
}

#: Sizes that some configurations leave unset and their models need.
_ALSO_UNSET = ("vocab_size", "n_routed_experts", "num_experts_per_tok")

#: Tokens with a meaning; every other token id of a configuration is dropped, for it lies outside the vocabulary.
TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


def shrink(cls: Any, **own: Any) -> Any:
    """Return a tiny configuration.

    Args:
        cls: the class of the configuration.
        own: fields that are to be as given here; a dict for a configuration inside corrects that one.
    """
    # A few classes draw sizes from others when made; only what they say without arguments tells which they have.
    fields = {
        name: parameter.default
        for base in reversed(cls.__mro__)
        for name, parameter in inspect.signature(base.__init__).parameters.items()
        if parameter.default is not inspect.Parameter.empty
    }
    inner: dict[str, Any] = getattr(cls, "sub_configs", {})
    given: dict[str, Any] = {}
    for name, default in fields.items():
        if name in SIZES and (default is not None or name in _ALSO_UNSET):
            given[name] = SIZES[name]
        elif name in TOKENS:
            given[name] = TOKENS[name]
    if "kv_lora_rank" in fields:
        # Latent attention: every head has keys of its own, and their size is the sum of two others.
        given["num_key_value_heads"] = _HEADS
        if fields.get("head_dim") is None or fields["head_dim"] != fields.get("qk_rope_head_dim"):
            given.pop("head_dim", None)
    for name, part in inner.items():
        corrections = own.get(name, {})
        if part is AutoConfig:  # which one it is shows in the default
            part = type(getattr(cls(), name, None))
        if isinstance(corrections, dict) and issubclass(part, PretrainedConfig):
            given[name] = shrink(part, **corrections)
    given.update({name: value for name, value in own.items() if name not in inner or not isinstance(value, dict)})
    return cls(**given)
