"""GPT-2 as transformers has it, with random weights, and a tokenizer made on the spot: nothing is fetched.

One at its true size (124 million parameters), where ratios are what people meet, and a narrow one, where what is added to
a forward weighs most.
"""

from __future__ import annotations

from typing import Any

import torch

#: Every word is a token, and this many are known.
_WORDS = 50257


def make(width: int, vocabulary: int) -> Any:
    """Make GPT-2 with 12 layers; it has no end of text, so that a generation is as long as it was asked to be."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        n_embd=width,
        vocab_size=vocabulary,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=0,
        n_head=width // 64 or 1,
    )
    return GPT2LMHeadModel(config)


def tokenizer() -> Any:
    """Make a tokenizer that knows "w0", "w1" and so on."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({f"w{number}": number for number in range(_WORDS)}, unk_token="w0"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="w0", unk_token="w0", padding_side="left")


def prompts(count: int, vocabulary: int) -> list[str]:
    """Make prompts of 6 to 13 tokens, the same in every process."""
    generator = torch.Generator().manual_seed(1)
    lengths = [6 + number % 8 for number in range(count)]
    return [
        " ".join(f"w{number}" for number in torch.randint(1, vocabulary, (length,), generator=generator).tolist())
        for length in lengths
    ]


def wrapped() -> Any:
    """Make the narrow one and wrap it with the nnsight that is installed here: the same weights in every process."""
    from nnsight import LanguageModel

    torch.manual_seed(0)
    return LanguageModel(make(64, 1000).eval(), tokenizer=tokenizer())
