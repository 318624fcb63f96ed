"""What vLLM gives for a request, on its way: `tracer.result`, there and back.

One idea: a result goes to the bodies that ask for it, and comes home with what they saved, as vLLM's own objects. They hold
text, tokens and numbers, so they are read as data.
"""

from __future__ import annotations

from typing import Any

from vllm import RequestOutput
from vllm.logprobs import Logprob
from vllm.lora.request import LoRARequest
from vllm.outputs import CompletionOutput

import nnsight


def register() -> None:
    """Let results travel, and be saved as other values are."""
    for cls in (RequestOutput, CompletionOutput, Logprob, LoRARequest):
        nnsight.register(cls)
    if "save" not in vars(RequestOutput):
        RequestOutput.save = _save


def _save(self: Any) -> Any:
    """Mark this result as part of the trace's; the same as `nnsight.save(result)`."""
    return nnsight.save(self)


def bare(result: RequestOutput) -> RequestOutput:
    """Return a result without what is the engine's own (the times it took)."""
    result.metrics = None
    return result
