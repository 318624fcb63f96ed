"""Runs payloads under nnsight 0.7's own classes, in a Python where that is installed: what a server of NDIF did until 2026.

Reads one order a line, a table with the places of the payload and of the result; answers with what was printed, or the
error. Nothing of this repository can be imported here. As those servers did, it admits few modules while it reads.
"""

from __future__ import annotations

import contextlib
import io
import json
import linecache
import sys
import traceback
from typing import Any

import torch
import zstandard
from nnsight.intervention import serialization
from nnsight.intervention.tracing.globals import Globals
from nnsight.schema.request import RequestModel
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from nnsight import LanguageModel

#: What a payload may name: a module, or with a dot at the end whatever begins so. From the list that those servers had.
ADMITTED = ("builtins", "torch", "torch.", "collections", "nnsight.intervention.envoy", "numpy", "numpy.", "math", "enum",
            "typing", "_operator", "operator", "pickle", "cloudpickle", "cloudpickle.", "copyreg", "nnsight.schema.request",
            "nnsight.modeling.", "nnsight.intervention.tracing.base", "nnsight.intervention.interleaver",
            "nnsight.intervention.batching", "nnsight.intervention.serialization")  # fmt: skip
#: What it names besides, for functions of nnsight's own, which the servers' own Python code brings in.
BESIDES = {("nnsight.intervention.tracing.globals", "save")}


def tiny() -> tuple[Any, Any]:
    """Make a model and a tokenizer; `tests-integration/test_ndif_older.py` makes the same."""
    torch.manual_seed(0)
    config = GPT2Config(
        n_layer=2, n_embd=32, n_head=2, vocab_size=64, n_positions=64, bos_token_id=1, eos_token_id=1, pad_token_id=0
    )
    words = {word: number for number, word in enumerate(["<pad>", "<unk>", *(f"w{i}" for i in range(62))])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>", padding_side="left"
    )
    return GPT2LMHeadModel(config).eval(), fast


class Unpickler(serialization.CustomCloudUnpickler):
    """Theirs, which admits what those servers admit."""

    def find_class(self, module: str, name: str) -> Any:
        known = any(module == one or one.endswith(".") and module.startswith(one) for one in ADMITTED)
        if not known and (module, name) not in BESIDES:
            raise ImportError(f"Module {module} is not whitelisted")
        return super().find_class(module, name)


def run(model: Any, order: dict[str, Any]) -> list[str]:
    """Run one payload as NDIF's server did; return what it printed."""
    linecache.clearcache()
    with open(order["blob"], "rb") as file:
        blob = file.read()
    # Theirs names `AutoModelForCausalLM`, which the list does not have; ours names nothing but what it has.
    if not order.get("own_client"):
        serialization.CustomCloudUnpickler = Unpickler
    try:
        request = RequestModel.deserialize(blob, model._remoteable_persistent_objects(), order["compress"])
    finally:
        serialization.CustomCloudUnpickler = Unpickler.__base__
    printed = io.StringIO()
    Globals.saves.clear()
    with contextlib.redirect_stdout(printed):
        request.tracer.execute(request.interventions)
    # All that is in the frame is sent back, as far as its name does not look like nnsight's own.
    own = ("__nnsight_tracer__", "__nnsight_model__", "tracer", "fn", "__nnsight_tracing_info__", "_frame", "mediator")
    saved = {name: value for name, value in request.tracer.info.frame.f_locals.items() if name not in own}
    file = io.BytesIO()
    torch.save(saved, file)
    data = zstandard.ZstdCompressor(level=6).compress(file.getvalue()) if order["compress"] else file.getvalue()
    with open(order["result"], "wb") as target:
        target.write(data)
    return printed.getvalue().splitlines()


def main() -> None:
    """Answer orders until there are none."""
    module, tokenizer = tiny()
    model = LanguageModel(module, tokenizer=tokenizer)
    answers = sys.stdout
    for line in sys.stdin:
        try:
            said: dict[str, Any] = {"log": run(model, json.loads(line))}
        except BaseException as error:
            said = {"error": f"{traceback.format_exc()}\n{error}"}
        answers.write(json.dumps(said) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
