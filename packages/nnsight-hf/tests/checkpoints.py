"""Tiny checkpoints of several architectures, with seeded weights, and a tokenizer that the tests can read.

They are saved as transformers saves them and loaded as a user loads them. The tokenizer knows the words of `WORDS` and
one token stands for one word, so lengths and ids are plain to see.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import tokenizers
import torch
import transformers
from transformers import PreTrainedTokenizerFast

WORDS = "a the cat dog sat ran on in red blue mat house and then slept it was very old big small of".split()
TOKENS = ["<pad>", "<s>", "</s>", "<unk>", *WORDS]

SHORT, LONG, MIDDLE = "the cat", "a small dog ran in the old house", "it was very big"

#: The architectures, by how they place positions: learned, rotary, learned with an offset, rotary in part.
CONFIGS: dict[str, Callable[..., Any]] = {
    "gpt2": lambda **own: transformers.GPT2Config(n_embd=32, n_layer=2, n_head=4, n_positions=64, **own),
    "llama": lambda **own: transformers.LlamaConfig(**_decoder(), num_key_value_heads=2, **own),
    "mistral": lambda **own: transformers.MistralConfig(**_decoder(), num_key_value_heads=2, sliding_window=6, **own),
    "gpt_neox": lambda **own: transformers.GPTNeoXConfig(**_decoder(), **own),
    "opt": lambda **own: transformers.OPTConfig(
        hidden_size=32, ffn_dim=48, num_hidden_layers=2, num_attention_heads=4, word_embed_proj_dim=32, **own
    ),
    "qwen3": lambda **own: transformers.Qwen3Config(**_decoder(), num_key_value_heads=2, head_dim=8, **own),
}

#: The blocks of each.
LAYERS = {
    "gpt2": "transformer.h",
    "llama": "model.layers",
    "mistral": "model.layers",
    "gpt_neox": "gpt_neox.layers",
    "opt": "model.decoder.layers",
    "qwen3": "model.layers",
}


def _decoder() -> dict[str, Any]:
    return {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}


def ids(text: str) -> list[int]:
    """The token ids of a text, read off the list."""
    return [TOKENS.index(word) for word in text.split()]


def tokenizer(pad: str | None = "<pad>", side: str = "right") -> PreTrainedTokenizerFast:
    """Make the tokenizer; by default it pads on the right, as most do."""
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({word: n for n, word in enumerate(TOKENS)}, "<unk>"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    if pad is not None:
        special["pad_token"] = pad
    return PreTrainedTokenizerFast(tokenizer_object=words, padding_side=side, model_max_length=64, **special)


def module(kind: str, **own: Any) -> torch.nn.Module:
    """Make a model of one architecture, with weights large enough that tokens and positions matter."""
    config = CONFIGS[kind](vocab_size=len(TOKENS), bos_token_id=1, eos_token_id=2, pad_token_id=0, **own)
    with torch.random.fork_rng():
        torch.manual_seed(len(kind))
        made = transformers.AutoModelForCausalLM.from_config(config)
        with torch.no_grad():
            for parameter in made.parameters():
                if parameter.dim() > 1:
                    parameter.normal_(std=0.3)
    return made.eval()


def save(folder: Path, kind: str, pad: str | None = "<pad>", **own: Any) -> str:
    """Save a checkpoint, and return where it is."""
    module(kind, **own).save_pretrained(folder)
    tokenizer(pad).save_pretrained(folder)
    return str(folder)


def alone(plain: torch.nn.Module, text: str) -> torch.Tensor:
    """The logits [1, positions, tokens] of one text, from transformers, with nothing around it."""
    with torch.no_grad():
        return plain(torch.tensor([ids(text)])).logits


def continued(plain: torch.nn.Module, text: str, **options: Any) -> torch.Tensor:
    """The tokens [rows, positions] with which transformers continues one text."""
    return plain.generate(torch.tensor([ids(text)]), attention_mask=torch.ones(1, len(ids(text))), **options)


def hidden(output: Any) -> torch.Tensor:
    """The hidden states in what a block gives: a tensor, in some families the first of a tuple."""
    return output[0] if isinstance(output, tuple) else output
