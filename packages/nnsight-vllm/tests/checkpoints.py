"""Small checkpoints that vLLM can serve, built from configurations with seeded weights, and their plain twins."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers

WORDS = ["<pad>", "<s>", "</s>", "<unk>", *(f"w{number}" for number in range(92))]
_SHAPE = {"vocab_size": len(WORDS), "hidden_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4}
_TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


def llama() -> Any:
    """A Llama: fused residuals, merged projections, grouped heads."""
    config = transformers.LlamaConfig(
        **_SHAPE, **_TOKENS, intermediate_size=192, num_key_value_heads=2, max_position_embeddings=512
    )
    return transformers.LlamaForCausalLM, config


def gpt2() -> Any:
    """A GPT-2: layers that return one tensor."""
    config = transformers.GPT2Config(vocab_size=len(WORDS), n_embd=128, n_layer=4, n_head=4, n_positions=512, **_TOKENS)
    return transformers.GPT2LMHeadModel, config


def mixtral() -> Any:
    """A Mixtral: experts."""
    config = transformers.MixtralConfig(
        **_SHAPE,
        **_TOKENS,
        intermediate_size=64,
        num_key_value_heads=2,
        max_position_embeddings=512,
        num_local_experts=4,
        num_experts_per_tok=2,
    )
    return transformers.MixtralForCausalLM, config


def qwen3() -> Any:
    """A Qwen3: norms of each head, and one head of keys and values for all."""
    config = transformers.Qwen3Config(
        **_SHAPE, **_TOKENS, intermediate_size=192, num_key_value_heads=1, head_dim=32, max_position_embeddings=512
    )
    return transformers.Qwen3ForCausalLM, config


def endless(folder: Path, made: Any) -> Any:
    """Do as `save`, and return a model that generates on behind the end of a text, as `ignore_eos=True` has an engine do."""
    model = save(folder, made)
    model.generation_config.eos_token_id = None
    return model


def save(folder: Path, made: Any) -> Any:
    """Write a model and its tokenizer into a folder, and return the model."""
    cls, config = made
    torch.manual_seed(0)
    model = cls(config).eval()
    # Larger than a fresh model's, so that tokens differ and what is greedily chosen is not a matter of rounding.
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(3)
    model.save_pretrained(folder)
    words = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(folder)
    return model
