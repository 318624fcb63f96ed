"""Small checkpoints of families whose layers are built differently, and where their plain twins add to the stream."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any

import transformers

_SHAPE = {"vocab_size": 96, "hidden_size": 128, "num_hidden_layers": 3, "num_attention_heads": 4}
_TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_MORE = {"intermediate_size": 192, "num_key_value_heads": 2, "max_position_embeddings": 512}
_ALL = {**_SHAPE, **_TOKENS, **_MORE}
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64}


@dataclass(frozen=True)
class Family:
    """A family.

    Attributes:
        file: vLLM's, where its model is.
        model: its class, in both.
        config: its configuration's.
        options: of the configuration.
        layers: the path of its layers in transformers.
        attention, mlp: what of a layer adds to the stream there.
        scale: by what that is multiplied before.
    """

    file: str
    model: str
    config: str
    options: dict[str, Any]
    layers: str = "model.layers"
    attention: str = "self_attn"
    mlp: str = "mlp"
    scale: float = 1.0

    #: What vLLM calls the class, if it is none of its own.
    runs: str = ""

    def make(self) -> tuple[Any, Any]:
        """Return what `checkpoints.save` takes."""
        # vLLM looks into classes that it does not know in a process of their own, which costs half a minute.
        registry = importlib.import_module("vllm").ModelRegistry
        runs = self.runs or self.model
        registry.register_model(runs, getattr(importlib.import_module(f"vllm.model_executor.models.{self.file}"), runs))
        return getattr(transformers, self.model), getattr(transformers, self.config)(**self.options)


_GEMMA: dict[str, Any] = {
    "attention": "post_attention_layernorm",
    "mlp": "post_feedforward_layernorm",
    "options": {**_ALL, "head_dim": 32, "sliding_window": 64},
}

FAMILIES = {
    "qwen2": Family("qwen2", "Qwen2ForCausalLM", "Qwen2Config", _ALL),
    "qwen3": Family("qwen3", "Qwen3ForCausalLM", "Qwen3Config", {**_ALL, "head_dim": 32}),
    "mistral": Family("mistral", "MistralForCausalLM", "MistralConfig", {**_ALL, "sliding_window": None}),
    "gemma2": Family("gemma2", "Gemma2ForCausalLM", "Gemma2Config", **_GEMMA),
    "gemma3": Family("gemma3", "Gemma3ForCausalLM", "Gemma3TextConfig", **_GEMMA),
    "gpt2": Family(
        "gpt2",
        "GPT2LMHeadModel",
        "GPT2Config",
        {"vocab_size": 96, "n_embd": 128, "n_layer": 3, "n_head": 4, "n_positions": 512, **_TOKENS},
        layers="transformer.h",
        attention="attn",
    ),
    "opt": Family(
        "opt",
        "OPTForCausalLM",
        "OPTConfig",
        {**_SHAPE, **_TOKENS, "ffn_dim": 192, "max_position_embeddings": 512, "word_embed_proj_dim": 128},
        layers="model.decoder.layers",
        mlp="fc2",
    ),
    "mixtral": Family("mixtral", "MixtralForCausalLM", "MixtralConfig", {**_ALL, "num_local_experts": 4}),
    "qwen2_moe": Family(
        "qwen2_moe",
        "Qwen2MoeForCausalLM",
        "Qwen2MoeConfig",
        {**_ALL, **_EXPERTS, "shared_expert_intermediate_size": 64},
    ),
    "falcon": Family(
        "falcon",
        "FalconForCausalLM",
        "FalconConfig",
        {**_SHAPE, **_TOKENS, "new_decoder_architecture": True, "num_kv_heads": 2},
        layers="transformer.h",
        attention="self_attention",
    ),
    "granite": Family(
        "granite",
        "GraniteForCausalLM",
        "GraniteConfig",
        {**_ALL, "residual_multiplier": 0.5, "embedding_multiplier": 2.0, "logits_scaling": 3.0},
        scale=0.5,
    ),
    "gpt_neox": Family(
        "transformers",
        "GPTNeoXForCausalLM",
        "GPTNeoXConfig",
        {**_SHAPE, **_TOKENS, "intermediate_size": 192, "max_position_embeddings": 512},
        layers="gpt_neox.layers",
        attention="attention",
        runs="TransformersForCausalLM",
    ),
}
