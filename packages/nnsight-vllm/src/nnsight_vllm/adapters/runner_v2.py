"""vLLM's second model runner (`vllm.v1.worker.gpu.model_runner.GPUModelRunner` and those made of it).

relies on: requests that come again are among `scheduled_new_reqs`; requests that are over are in `req_states` and
`block_tables` still when `execute_model` is called; it calls `prepare_inputs` for whatever is no dummy, which returns an
`InputBatch` (`req_ids`, `num_scheduled_tokens`, `num_tokens_after_padding`), and then the model; `sample_tokens` calls
`sample`, which calls the model's `compute_logits` once and returns a `SamplerOutput` first, and after it `compute_logits` for
the logprobs of prompts, and returns what has the output as its `model_runner_output`, which may be on its way from the device
still; vLLM 0.30 to 0.33.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

from .around import Around


class AroundV2(Around):
    """The second model runner with a stage in its methods."""

    before = ("execute_model", "prepare_inputs")
    after = ("sample", "sample_tokens")
    aside = True
    held = "model_runner_output"

    def hear(self, scheduler_output: Any) -> None:
        for new in scheduler_output.scheduled_new_reqs:
            if new.req_id in self.stage.runs:
                self.stage.come_again(new.req_id)
            else:
                self.arrive(new, scheduler_output)

    def blocks(self, requests: Collection[str]) -> Iterable[int]:
        tables, places = self.runner.block_tables, self.runner.req_states.req_id_to_index
        for place in (places[request] for request in requests if request in places):
            for table, counts in zip(tables.block_tables, tables.num_blocks.np):
                yield from table.gpu[place, : counts[place]].tolist()

    def execute_model(self, call: Any, scheduler_output: Any, *args: Any, **kwargs: Any) -> Any:
        output = super().execute_model(call, scheduler_output, *args, **kwargs)
        self.after_layers()
        return output

    def prepare_inputs(self, call: Any, *args: Any, **kwargs: Any) -> Any:
        batch = call(*args, **kwargs)
        self.stage.begin(batch.req_ids, batch.num_scheduled_tokens.tolist(), batch.num_tokens_after_padding)
        return batch

    def sample(self, call: Any, *args: Any, **kwargs: Any) -> Any:
        self.aside = False
        try:
            output, *others = call(*args, **kwargs)
        finally:
            self.aside = True
        output.sampled_token_ids = self.stage.show("samples", output.sampled_token_ids)
        return (output, *others)

    def sample_tokens(self, call: Any, *args: Any, **kwargs: Any) -> Any:
        output = None
        try:
            output = call(*args, **kwargs)
            return output
        finally:
            self.end(output)
