"""Compiled graphs on two processes that share a model: declared sites have whole values, and take them."""

from __future__ import annotations

import multiprocessing

import pytest
import torch
from runner_behaviour import GREEDY, PROMPTS, alone, stream
from vllm.v1.executor import multiproc_executor

import nnsight


@pytest.fixture(scope="module")
def llama(pair):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_CPU_CI_ENV", "1")  # no compiler for C++
        patch.setenv("VLLM_CPU_OMP_THREADS_BIND", "0|1")
        patch.setattr(multiproc_executor, "get_mp_context", lambda: multiprocessing.get_context("fork"))
        made = pair(
            "llama",
            taps=["model.layers.1", "model.layers.2.mlp.gate_up_proj"],
            tensor_parallel_size=2,
            distributed_executor_backend="mp",
        )
        yield made
        made.served.shutdown()


def test_values_are_whole_and_writes_reach_every_part_of_the_model(llama):
    model, layers, vector = llama.served, llama.served.model.layers, torch.randn(128) * 3
    with model.trace() as tracer:
        found = nnsight.save([])
        with tracer.invoke(PROMPTS[2], **GREEDY, max_tokens=4):
            for _ in tracer.iter[:]:
                found.append((stream(layers[1].output), layers[2].mlp.gate_up_proj.output[0]))
            read = nnsight.save(list(tracer.result.outputs[0].token_ids))
        with tracer.invoke(PROMPTS[0], **GREEDY, max_tokens=4):
            for _ in tracer.iter[:]:
                layers[1].output[0][:] += vector
            steered = nnsight.save(list(tracer.result.outputs[0].token_ids))
    drawn, hidden, _ = alone(llama.plain, PROMPTS[2], 4, at=1)
    assert read == drawn
    torch.testing.assert_close(torch.cat([one for one, _ in found]), hidden, rtol=1e-4, atol=1e-4)
    assert found[0][1].shape == (len(PROMPTS[2]), 2 * 192)
    assert steered == alone(llama.plain, PROMPTS[0], 4, at=1, change=lambda value: value + vector)[0]


def test_what_was_not_declared_is_refused(llama):
    with pytest.raises(nnsight.MissedProviderError, match="Declared are"):
        with llama.served.trace(PROMPTS[0], max_tokens=1):
            llama.served.model.layers[0].output  # noqa: B018
