"""What vLLM gives for a request, on its way: `tracer.result`, there and back.

One idea: a result goes to the bodies that ask for it, and comes home with what they saved, as vLLM's own objects. They hold
text, tokens and numbers, so they are read as data.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vllm.logprobs import Logprob
from vllm.outputs import CompletionOutput

import nnsight
from vllm import RequestOutput

#: What the engine gives for a request, and the parts of it.
RESULTS = (RequestOutput, CompletionOutput)


@dataclass(frozen=True)
class Adapter:
    """Which adapter a request had, in what its result says: vLLM's own word for it is read by running it."""

    lora_name: str
    lora_int_id: int
    lora_path: str


def register() -> None:
    """Let results travel, and be saved as other values are."""
    for cls in (RequestOutput, CompletionOutput, Logprob, Adapter):
        nnsight.register(cls)
    if "save" not in vars(RequestOutput):
        RequestOutput.save = _save


def _save(self: Any) -> Any:
    """Mark this result as part of the trace's; the same as `nnsight.save(result)`."""
    return nnsight.save(self)


def bare(result: RequestOutput) -> RequestOutput:
    """Return a result without what is the engine's own (the times it took)."""
    made = _with_adapter(result)
    made.metrics = None
    made.outputs = [_with_adapter(one) for one in result.outputs]
    return made


def _with_adapter(result: Any) -> Any:
    # What `copy.copy` does with such objects, in a quarter of the time: of each request there are two.
    made = object.__new__(type(result))
    made.__dict__.update(result.__dict__)
    if (lora := made.lora_request) is not None:
        made.lora_request = Adapter(lora.lora_name, lora.lora_int_id, lora.lora_path)
    return made


def together(results: Sequence[RequestOutput]) -> RequestOutput:
    """Return one result for the continuations of one prompt, which were requests by themselves."""
    made = copy.copy(results[0])
    if len(results) > 1:
        made.outputs = [copy.copy(one.outputs[0]) for one in results]
        for index, output in enumerate(made.outputs):
            output.index = index
    return made
