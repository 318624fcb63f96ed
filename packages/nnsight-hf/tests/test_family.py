"""`LanguageModel` keeps the promises of every family, on two architectures that place positions differently."""

from __future__ import annotations

from typing import Any

import checkpoints

from nnsight import LanguageModel
from nnsight.testing import GeneratingSuite


class TestLearnedPositions(GeneratingSuite):
    padding = "left"
    rounding = 1e-4
    options = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False}
    kind = "gpt2"

    def make_model(self) -> Any:
        return LanguageModel(checkpoints.module(self.kind), tokenizer=checkpoints.tokenizer())

    def inputs(self) -> list[Any]:
        return [checkpoints.SHORT, checkpoints.LONG, [checkpoints.MIDDLE, checkpoints.SHORT]]


class TestRotaryPositions(TestLearnedPositions):
    kind = "llama"
