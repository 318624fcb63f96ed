"""A tiny model for each task that transformers' pipelines serve, seeded, with two inputs and what transformers makes of them.

`heads.py` has those of text, images and sound that other tests use too. The rest are in `tasks_of_images.py` and
`tasks_of_text_and_sound.py`; here is what one is, and the tokenizers that they share.
"""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tokenizers
import transformers
from checkpoints import TOKENS

from nnsight import TransformersModel
from nnsight.testing import FamilySuite

SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}

Arguments = dict[str, Any]


@dataclass
class Kind(FamilySuite):
    """A kind of model: what it is, what it takes, and what transformers alone makes of that.

    Attributes:
        task: its task.
        make: makes the module.
        encode: makes the arguments of the module for one input, without nnsight.
        given: two inputs.
        parts: its processors, by the names that `TransformersModel` has for them.
        refused: what the error says if the inputs cannot share a forward.
        within: below which modules values are compared, for a model that shuffles what it reads on its way there.
        rounding: how far values may differ, absolute and relative.
    """

    task: str
    make: Callable[[], Any]
    encode: Callable[[Any], Arguments]
    given: list[Any]
    parts: Arguments = field(default_factory=dict)
    refused: str = ""
    within: tuple[str, ...] = ("",)
    rounding: float = 1e-3

    padding = "right"

    def make_model(self) -> Any:
        module = self.make()
        return TransformersModel(module, task=self.task, **self.parts)

    def inputs(self) -> list[Any]:
        return self.given

    def call(self, model: Any, given: Any, method: str | None = None, **options: Any) -> Any:
        return model._module(**self.encode(given))


KINDS: dict[str, Callable[[], Kind]] = {}


def kind(function: Callable[[], Kind]) -> Callable[[], Kind]:
    KINDS[function.__name__] = functools.cache(function)
    return function


@functools.cache
def words() -> Any:
    """A tokenizer that marks the beginning and the ends of two texts, as BERT's."""
    plain = tokenizers.Tokenizer(tokenizers.models.WordLevel({word: n for n, word in enumerate(TOKENS)}, "<unk>"))
    plain.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    plain.post_processor = tokenizers.processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> $B:1 </s>:1", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    names = {"cls_token": "<s>", "sep_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    return transformers.PreTrainedTokenizerFast(tokenizer_object=plain, model_max_length=40, **names)


def from_vocabulary(name: str, **own: Any) -> Any:
    """A tokenizer that is made from a list of pieces of words."""
    special = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "[EMPTY]"]
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "vocab.txt").write_text("\n".join([*special, *TOKENS[4:]][: len(TOKENS)]), encoding="utf-8")
        return getattr(transformers, name).from_pretrained(folder, **own)


def text(value: Any, pair: Any = None) -> Arguments:
    return dict(words()(value, pair, return_tensors="pt"))
