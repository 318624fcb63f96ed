"""vLLM's second model runner (`vllm.v1.worker.gpu.model_runner.GPUModelRunner` and those made of it).

relies on: `execute_model` takes a `SchedulerOutput` with `scheduled_new_reqs` (those that come again are among them),
`num_scheduled_tokens`, and `finished_req_ids` while `req_states` and `block_tables` have them still; it calls
`prepare_inputs` for whatever is no dummy, which returns an `InputBatch` (`req_ids`, `num_scheduled_tokens`,
`num_tokens_after_padding`), and then the model; `sample_tokens` calls `sample`, which calls the model's `compute_logits` once
and returns a `SamplerOutput` first, and after it `compute_logits` for the logprobs of prompts; vLLM 0.30 to 0.33.
"""

from __future__ import annotations

import functools
from collections.abc import Collection
from typing import Any

from ..worker import memory


def attach(runner: Any, stage: Any) -> None:
    """Put the stage into a runner's methods: on the instance, around its own."""
    for name, around in (
        ("execute_model", _execute_model),
        ("prepare_inputs", _prepare_inputs),
        ("sample", _sample),
        ("sample_tokens", _sample_tokens),
    ):
        setattr(runner, name, functools.partial(around, runner, stage, getattr(runner, name)))
    runner.nnsight_sampling = False
    model = runner.get_model()
    model.compute_logits = functools.partial(_compute_logits, runner, stage, model.compute_logits)


def run_dummy(runner: Any, tokens: int) -> None:
    """Let a runner call its model on some tokens, of no request.

    relies on: `_dummy_run` runs the model once and leaves the memory of requests alone, vLLM 0.30 to 0.33.
    """
    runner._dummy_run(tokens)


def _execute_model(runner: Any, stage: Any, call: Any, scheduler_output: Any, *args: Any, **kwargs: Any) -> Any:
    _wipe(runner, stage.gone(scheduler_output.finished_req_ids))
    for new in scheduler_output.scheduled_new_reqs:
        if new.req_id in stage.runs:
            stage.come_again(new.req_id)
        elif new.sampling_params is not None:
            count = scheduler_output.num_scheduled_tokens[new.req_id]
            prompt = new.prompt_embeds if new.prompt_token_ids is None else new.prompt_token_ids
            whole = new.num_computed_tokens == 0 and count == len(prompt)
            stage.arrive(new.req_id, new.sampling_params.extra_args, whole)
    output = None
    try:
        output = call(scheduler_output, *args, **kwargs)
        return output
    finally:
        if runner.execute_model_state is None:
            # No tokens are drawn here: nothing was to do, or an error.
            _end(stage, output)


def _prepare_inputs(runner: Any, stage: Any, call: Any, *args: Any, **kwargs: Any) -> Any:
    batch = call(*args, **kwargs)
    stage.begin(batch.req_ids, batch.num_scheduled_tokens.tolist(), batch.num_tokens_after_padding)
    return batch


def _sample(runner: Any, stage: Any, call: Any, *args: Any, **kwargs: Any) -> Any:
    runner.nnsight_sampling = True
    try:
        output, *others = call(*args, **kwargs)
    finally:
        runner.nnsight_sampling = False
    output.sampled_token_ids = stage.show("samples", output.sampled_token_ids)
    return (output, *others)


def _compute_logits(runner: Any, stage: Any, call: Any, hidden: Any, *args: Any, **kwargs: Any) -> Any:
    if not runner.nnsight_sampling:
        with stage.aside():  # for the logprobs of a prompt
            return call(hidden, *args, **kwargs)
    stage.after_layers(hidden.shape[0])
    return stage.show("logits", call(hidden, *args, **kwargs))


def _sample_tokens(runner: Any, stage: Any, call: Any, *args: Any, **kwargs: Any) -> Any:
    output = None
    try:
        output = call(*args, **kwargs)
        return output
    finally:
        _end(stage, output)


def _wipe(runner: Any, requests: Collection[str]) -> None:
    if requests:
        tables, places = runner.block_tables, runner.req_states.req_id_to_index
        blocks: set[int] = set()
        for place in (places[request] for request in requests if request in places):
            for table, counts in zip(tables.block_tables, tables.num_blocks.np):
                blocks.update(table.gpu[place, : counts[place]].tolist())
        memory.wipe(runner.kv_caches, blocks, runner.kv_cache_config.num_blocks)


def _end(stage: Any, output: Any) -> None:
    ended = stage.end()
    if ended and output is not None:
        # What is handed out may be on its way from the device still; what the scheduler will get is in it already.
        getattr(output, "model_runner_output", output).nnsight_ended = ended
