"""vLLM's first model runner (`vllm.v1.worker.gpu_model_runner.GPUModelRunner` and those made of it).

relies on: `execute_model` takes a `SchedulerOutput` with `scheduled_new_reqs`, `scheduled_cached_reqs.resumed_req_ids`,
`num_scheduled_tokens`, and `finished_req_ids` before anybody else gets the `block_ids` of those `requests`; it calls
`_model_forward` once the rows of the batch are settled (`input_batch.req_ids`), and then the model's `compute_logits`;
`sample_tokens` calls `_sample`, and after it `compute_logits` for the logprobs of prompts, and returns, where steps are
scheduled ahead, what has the output as its `_model_runner_output`; vLLM 0.30 to 0.33.
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
        ("_model_forward", _model_forward),
        ("_sample", _sample),
        ("sample_tokens", _sample_tokens),
    ):
        setattr(runner, name, functools.partial(around, runner, stage, getattr(runner, name)))
    runner.nnsight_drawing = False
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
        if new.sampling_params is not None:
            count = scheduler_output.num_scheduled_tokens[new.req_id]
            prompt = new.prompt_embeds if new.prompt_token_ids is None else new.prompt_token_ids
            whole = new.num_computed_tokens == 0 and count == len(prompt)
            stage.arrive(new.req_id, new.sampling_params.extra_args, whole)
    for again in scheduler_output.scheduled_cached_reqs.resumed_req_ids:
        stage.come_again(again)
    runner.nnsight_scheduled = scheduler_output.num_scheduled_tokens
    output = None
    try:
        output = call(scheduler_output, *args, **kwargs)
        return output
    finally:
        if runner.execute_model_state is None:
            # No tokens are drawn here: nothing was to do, an error, or another stage of a pipeline.
            _end(stage, output)


def _model_forward(runner: Any, stage: Any, call: Any, *args: Any, **kwargs: Any) -> Any:
    requests = runner.input_batch.req_ids
    counts = [runner.nnsight_scheduled[request] for request in requests]
    given = kwargs.get("input_ids")
    given = kwargs.get("positions") if given is None else given
    stage.begin(requests, counts, sum(counts) if given is None else given.shape[-1])
    runner.nnsight_logits_due = True
    return call(*args, **kwargs)


def _compute_logits(runner: Any, stage: Any, call: Any, hidden: Any, *args: Any, **kwargs: Any) -> Any:
    if runner.nnsight_drawing:
        with stage.aside():  # for the logprobs of a prompt
            return call(hidden, *args, **kwargs)
    stage.after_layers(hidden.shape[0])
    return stage.show("logits", call(hidden, *args, **kwargs))


def _sample(runner: Any, stage: Any, call: Any, *args: Any, **kwargs: Any) -> Any:
    output = call(*args, **kwargs)
    output.sampled_token_ids = stage.show("samples", output.sampled_token_ids)
    return output


def _sample_tokens(runner: Any, stage: Any, call: Any, *args: Any, **kwargs: Any) -> Any:
    output = None
    runner.nnsight_drawing = True
    try:
        output = call(*args, **kwargs)
        return output
    finally:
        runner.nnsight_drawing = False
        _end(stage, output)


def _wipe(runner: Any, requests: Collection[str]) -> None:
    if requests:
        held = (runner.requests[request].block_ids for request in requests if request in runner.requests)
        blocks = {block for groups in held for group in groups for block in group}
        memory.wipe(runner.kv_caches, blocks, runner.kv_cache_config.num_blocks)


def _end(stage: Any, output: Any) -> None:
    ended = stage.end()
    if ended and output is not None:
        # Of a runner that is a step ahead, the output stands for one that comes later.
        getattr(output, "_model_runner_output", output).nnsight_ended = ended
