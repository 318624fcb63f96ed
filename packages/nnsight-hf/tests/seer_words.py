"""What the tiny models that read images share: their words, the sizes of their parts, and a tokenizer.

It knows one word a token and every mark that a processor writes. Torchvision is not needed: processors do without their
part for videos.
"""

from __future__ import annotations

from typing import Any

import tokenizers
import transformers
from checkpoints import TOKENS
from transformers import PreTrainedTokenizerFast

#: Marks of all the processors together.
MARKS = (
    "<image> <video> <|image|> <|python_tag|> <fake_token_around_image> <end_of_utterance> <global-img> <boi> <eoi> <img> "
    "</img> <ctx> [IMG] [IMG_BREAK] [IMG_END] <|START_OF_IMG|> <|END_OF_IMG|> <|IMG_PATCH|> <|IMG_LINE_BREAK|> "
    "<|image_pad|> <|video_pad|> <|vision_start|> <|vision_end|> </image> <racm3:break> <eoss> |SPEAKER| "
).split() + [f"<row_{row}_col_{column}>" for row in (1, 2, 3) for column in (1, 2, 3)]
WORDS = [*TOKENS, *MARKS]


def number(token: str) -> int:
    return WORDS.index(token)


def tokenizer(**named: str) -> PreTrainedTokenizerFast:
    """Make the tokenizer; `named` are tokens that it is to have as attributes (`image_token=`)."""
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({word: n for n, word in enumerate(WORDS)}, "<unk>"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    made = PreTrainedTokenizerFast(
        tokenizer_object=words,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="<pad>",
        padding_side="left",
        model_max_length=512,
        extra_special_tokens=dict(named),
    )
    made.add_special_tokens({"additional_special_tokens": MARKS})
    return made


TEXT = {
    "vocab_size": len(WORDS) + 8,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
SIGHT = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 7,
}
SQUARE = {"height": 28, "width": 28}
MROPE = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e4}


def unfilmed(kind: str) -> Any:
    """Return a processor's class that does without its part for videos, which needs torchvision."""
    cls = getattr(transformers, kind)

    class Unfilmed(cls):  # type: ignore[misc, valid-type]
        def check_argument_for_proper_class(self, name: str, argument: Any) -> Any:
            return None if name == "video_processor" else super().check_argument_for_proper_class(name, argument)

    return Unfilmed
