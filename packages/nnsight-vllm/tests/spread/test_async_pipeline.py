"""`VLLM(mode="async")` over a pipeline: streams of many requests, whose blocks see the layers of both processes."""

from __future__ import annotations

import asyncio
import multiprocessing

import engines
import pytest
import torch
from vllm.v1.engine import utils
from vllm.v1.executor import multiproc_executor

import nnsight
from nnsight import VLLM

pytestmark = pytest.mark.timeout(300)  # the processes start in the first of them
GREEDY = {"temperature": 0, "ignore_eos": True, "max_tokens": 5}
PROMPTS = [[5, 6, 7], [10, 11], [60], [number % 80 + 4 for number in range(40)]]


@pytest.fixture(scope="module")
def model(folder, plain):
    def forked():
        return multiprocessing.get_context("fork")

    with pytest.MonkeyPatch.context() as patch:
        # Forks of this process, which has imported all that takes long to import.
        patch.setattr(utils, "get_mp_context", forked)
        patch.setattr(multiproc_executor, "get_mp_context", forked)
        patch.setenv("VLLM_CPU_OMP_THREADS_BIND", "0|1")
        options = {**engines.OPTIONS, "pipeline_parallel_size": 2, "distributed_executor_backend": "mp"}
        with VLLM(str(folder), mode="async", **options) as model:
            yield model.dispatch()


def wanted(plain, ids, vector=None):
    """The tokens that transformers draws, and what its layers give for all but the last."""
    seen, layers, hooks = [], plain.model.layers, []
    if vector is not None:
        hooks.append(layers[3].register_forward_hook(lambda module, args, out: out + vector))
    given = torch.tensor([ids])
    with torch.no_grad():
        tokens = plain.generate(given, attention_mask=torch.ones_like(given), max_new_tokens=5, do_sample=False)[0]
        hooks += [layers[at].register_forward_hook(lambda module, args, out: seen.append(out[0])) for at in (0, 3)]
        plain(tokens[None, :-1])
    for hook in hooks:
        hook.remove()
    return tokens[len(ids) :].tolist(), seen


async def stream(model, ids, vector):
    with model.trace(ids, **GREEDY) as tracer:
        first, last = nnsight.save([]), nnsight.save([])
        for _ in tracer.iter[:]:
            first.append(sum(model.model.layers[0].output))
            if vector is not None:
                model.model.layers[3].output[0][:] += vector
            last.append(sum(model.model.layers[3].output))
    return [output async for output in tracer.backend()]


def test_streams_of_several_requests_see_the_layers_of_both_processes(model, plain):
    vector = torch.randn(plain.config.hidden_size, generator=torch.Generator().manual_seed(1)) * 3
    vectors = [None, vector, None, vector]

    async def all_of_them():
        return await asyncio.gather(*[stream(model, ids, one) for ids, one in zip(PROMPTS, vectors)])

    found = asyncio.run(all_of_them())
    for outputs, ids, one in zip(found, PROMPTS, vectors):
        tokens, (first, last) = wanted(plain, ids, one)
        assert list(outputs[-1].outputs[0].token_ids) == tokens
        saves = outputs[-1].saves
        assert len(saves["first"]) == len(saves["last"]) == 5
        torch.testing.assert_close(torch.cat(saves["first"]), first, atol=2e-4, rtol=2e-4)
        torch.testing.assert_close(torch.cat(saves["last"]), last, atol=2e-4, rtol=2e-4)
