"""vLLM's first model runner (`vllm.v1.worker.gpu_model_runner.GPUModelRunner` and those made of it).

relies on: `total_num_scheduled_tokens` counts the tokens of a step; requests that come again are in
`scheduled_cached_reqs.resumed_req_ids`; `execute_model` calls `_model_forward` once the rows of the batch are settled
(`input_batch.req_ids`), and then the model's `compute_logits`; `sample_tokens` calls `_sample`, and after it
`compute_logits` for the logprobs of prompts, and returns, where steps are scheduled ahead, what has the output as its
`_model_runner_output`; `requests` have `block_ids`; vLLM 0.30 to 0.33.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

from .around import Around


class AroundV1(Around):
    """The first model runner with a stage in its methods."""

    before = ("execute_model", "_model_forward")
    after = ("_sample", "sample_tokens")
    aside = False
    held = "_model_runner_output"

    def hear(self, scheduler_output: Any) -> None:
        for new in scheduler_output.scheduled_new_reqs:
            self.arrive(new, scheduler_output)
        for again in scheduler_output.scheduled_cached_reqs.resumed_req_ids:
            self.stage.come_again(again)
        self.scheduled = scheduler_output.num_scheduled_tokens
        self.total = scheduler_output.total_num_scheduled_tokens

    def blocks(self, requests: Collection[str]) -> Iterable[int]:
        known = self.runner.requests
        held = (known[request].block_ids for request in requests if request in known)
        return (block for groups in held for group in groups for block in group)

    def model_forward(self, call: Any, *args: Any, **kwargs: Any) -> Any:
        requests = self.runner.input_batch.req_ids
        # Where each has one, as in most steps, nobody has to be asked.
        counts = None if self.total == len(requests) else [self.scheduled[request] for request in requests]
        given = kwargs.get("input_ids")
        given = kwargs.get("positions") if given is None else given
        self.stage.begin(requests, counts, self.total if given is None else given.size(-1))
        output = call(*args, **kwargs)
        self.after_layers()
        return output

    def sample(self, call: Any, *args: Any, **kwargs: Any) -> Any:
        output = call(*args, **kwargs)
        output.sampled_token_ids = self.stage.show("samples", output.sampled_token_ids)
        return output

    def sample_tokens(self, call: Any, *args: Any, **kwargs: Any) -> Any:
        output = None
        self.aside = True
        try:
            output = call(*args, **kwargs)
            return output
        finally:
            self.aside = False
            self.end(output)
