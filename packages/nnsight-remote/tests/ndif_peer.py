"""Runs payloads under nnsight 0.8.1's own classes, in a Python where that is installed: what a server of NDIF does.

Reads one order a line, a table with the places of the payload and of the result; answers with what was printed, or the
error. Nothing of this repository can be imported here.
"""

from __future__ import annotations

import contextlib
import io
import json
import linecache
import sys
from typing import Any

import torch
import zstandard
from nnsight.modeling.transformers import TransformersModel
from nnsight.schema.request import RequestModel
from nnsight.tracing.globals import BLOCKS, SOURCES
from nnsight.tracing.tracer import _saves, dec, inc
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast


def tiny() -> tuple[Any, Any]:
    """Make a model and a tokenizer; `tests-integration/test_ndif.py` makes the same."""
    torch.manual_seed(0)
    config = GPT2Config(
        n_layer=2, n_embd=32, n_head=2, vocab_size=64, n_positions=64, bos_token_id=1, eos_token_id=1, pad_token_id=0
    )
    words = {word: number for number, word in enumerate(["<pad>", "<unk>", *(f"w{i}" for i in range(62))])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>")
    return GPT2LMHeadModel(config).eval(), fast


def run(model: Any, order: dict[str, Any]) -> list[str]:
    """Run one payload as NDIF's server does; return what it printed."""
    for known in (linecache.cache, SOURCES, BLOCKS):
        known.clear()
    with open(order["blob"], "rb") as file:
        blob = file.read()
    tracer = RequestModel.deserialize(blob, model._remoteable_persistent_objects(), order["compress"])
    model._remoteable_set_env(order["env"])
    printed = io.StringIO()
    inc()
    try:
        with contextlib.redirect_stdout(printed):
            tracer.execute(tracer.info.code)
        saved = {name: value for name, value in tracer.info.frame.f_locals.items() if id(value) in _saves()}
        file = io.BytesIO()
        torch.save(saved, file)
    finally:
        dec()
    data = zstandard.ZstdCompressor(level=3).compress(file.getvalue()) if order["compress"] else file.getvalue()
    with open(order["result"], "wb") as target:
        target.write(data)
    return printed.getvalue().splitlines()


def main() -> None:
    """Answer orders until there are none."""
    module, tokenizer = tiny()
    model = TransformersModel(module, tokenizer=tokenizer, task="text-generation")
    answers = sys.stdout
    for line in sys.stdin:
        try:
            said: dict[str, Any] = {"log": run(model, json.loads(line))}
        except BaseException as error:
            said = {"error": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(said) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
