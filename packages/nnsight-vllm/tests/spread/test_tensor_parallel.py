"""A model over two processes (tensor parallel): what bodies see and do is what it is in one process."""

from __future__ import annotations

import multiprocessing
import os
from pathlib import Path

import checkpoints
import engines
import pytest
import torch
from vllm.v1.executor import multiproc_executor

import nnsight
from nnsight import VLLM, NNsightError, RanksError
from nnsight.plugin import leaves

OPTIONS = {**engines.OPTIONS, "max_num_batched_tokens": 256, "num_gpu_blocks_override": 40}
SPREAD = {"tensor_parallel_size": 2, "distributed_executor_backend": "mp"}
GREEDY = {"temperature": 0, "ignore_eos": True}
PROMPT = list(range(5, 12))


@pytest.fixture(scope="module", autouse=True)
def one_core_each():
    """Each worker has a core of its own, and is a fork of this process, which has imported all that takes long to import."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_CPU_OMP_THREADS_BIND", "0|1")
        # relies on: `multiproc_executor.get_mp_context` says how workers are started, vLLM 0.30 to 0.33
        patch.setattr(multiproc_executor, "get_mp_context", lambda: multiprocessing.get_context("fork"))
        yield


class Both:
    """A model in two processes and in one."""

    def __init__(self, folder, made, **options):
        self.plain = checkpoints.endless(folder, made)
        self.one = VLLM(str(folder), **OPTIONS)
        self.two = VLLM(str(folder), **OPTIONS, **SPREAD, turn_seconds=3, **options)

    def close(self):
        self.two.shutdown()
        self.one.shutdown()


@pytest.fixture(scope="module")
def llama(tmp_path_factory, one_core_each):
    both = Both(tmp_path_factory.mktemp("llama"), checkpoints.llama())
    yield both
    both.close()


def as_in_one_process(both, block):
    """Compare what a block saves in two processes with what it saves in one."""
    found, expected = block(both.two), block(both.one)
    assert found.keys() == expected.keys() and found
    for name, value in found.items():
        torch.testing.assert_close(
            value, expected[name], rtol=1e-4, atol=1e-4, msg=lambda said, name=name: f"{name}: {said}"
        )


def called(model):
    """The modules that a forward calls: all but lists, the head, which is read only, and what takes modules."""
    skipped = ("ModuleList", "ParallelLMHead", "LogitsProcessor", "RoutedExperts")
    found = [(name, type(part).__name__) for name, part in model._module.named_modules() if name]
    return [name for name, kind in found if kind not in skipped and not kind.endswith("MoEMethod")]


def everything(model):
    """The tensors that all modules of a model take and give, by their paths."""
    names = called(model)
    with model.trace(PROMPT, max_tokens=1, temperature=0) as tracer:
        cache = tracer.cache(modules=names, include_inputs=True)
    found = {}
    for path, entry in cache.items():
        visits = entry if isinstance(entry, list) else [entry]
        for number, one in enumerate(visits):
            for stage in ("inputs", "output"):
                for at, tensor in enumerate(leaves(getattr(one, stage))):
                    found[f"{path}[{number}].{stage}[{at}]"] = tensor
    return found


@pytest.mark.parametrize("kind", ["gpt2", "mixtral", "qwen3"])
def test_other_families_are_whole_too(kind, tmp_path):
    # Before `llama` is there: its engine in this process has groups, which workers forked then would take for theirs.
    # Not with `enable_expert_parallel`: vLLM's CPU kernels for it end the process, without anything of ours (0.32).
    both = Both(tmp_path, getattr(checkpoints, kind)())
    try:
        as_in_one_process(both, everything)
    finally:
        both.close()


def test_what_every_module_takes_and_gives_is_whole(llama):
    found = {}

    def block(model):
        found.update(everything(model))
        return everything(model)

    as_in_one_process(llama, block)
    paths = {key.partition("[")[0] for key in found}
    assert {f"model.model.layers.2.{name}" for name in ("self_attn.qkv_proj", "self_attn.attn", "mlp.act_fn")} <= paths


def test_hidden_states_and_logits_are_those_of_transformers(llama):
    model = llama.two
    with torch.no_grad():
        wanted = llama.plain(torch.tensor([PROMPT]), output_hidden_states=True)
    with model.trace(PROMPT, max_tokens=1, temperature=0):
        hidden, residual = model.model.layers[1].output
        stream = nnsight.save(hidden + residual)
        logits = model.logits.output.save()
    torch.testing.assert_close(stream, wanted.hidden_states[2][0], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(logits[0], wanted.logits[0, -1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "place",
    [
        "self_attn.qkv_proj.output",
        "self_attn.attn.input",
        "self_attn.attn.output",
        "self_attn.o_proj.input",
        "mlp.act_fn.input",
    ]
    + ["mlp.act_fn.output", "mlp.gate_up_proj.output", "mlp.down_proj.output", "self_attn.output"],
)
@pytest.mark.parametrize("how", ["assigned", "edited"])
def test_a_write_has_the_effect_that_it_has_in_one_process(llama, place, how):
    path, _, stage = place.rpartition(".")

    def block(model):
        with model.trace() as tracer:
            found = nnsight.save({})
            with tracer.invoke(PROMPT, max_tokens=2, **GREEDY):
                module = model.get(f"model.layers.1.{path}")
                value = getattr(module, stage)
                value = value[0] if isinstance(value, tuple) else value
                size = value.shape[-1]
                if how == "edited":
                    value[:, size // 4 : size // 2] = 0.5
                else:
                    new = value.flip(-1)
                    new = (new, None) if isinstance(getattr(module, stage), tuple) else new
                    setattr(module, stage, new)
                found["given"] = model.model.layers[1].output[0]
                found["next"] = model.model.layers[2].self_attn.qkv_proj.output[0]
                found["logits"] = model.logits.output
            with tracer.invoke(PROMPT[::-1], max_tokens=2, **GREEDY):
                found["neighbour"] = model.logits.output
        return found

    as_in_one_process(llama, block)


def test_modules_are_skipped_and_operations_are_seen_where_they_are_whole(llama):
    def block(model):
        with model.trace() as tracer:
            found = nnsight.save({})
            with tracer.invoke(PROMPT, max_tokens=1, temperature=0):
                gate = model.model.layers[0].mlp.gate_up_proj.output[0]
                model.model.layers[0].mlp.act_fn.skip(gate[:, :192] * 0.1)
                found["logits"] = model.logits.output
            with tracer.invoke(PROMPT[1:], max_tokens=1, temperature=0):
                found["operation"] = model.model.layers[1].mlp.source.self_down_proj_0.output[0]
                model.model.layers[2].mlp.skip(model.model.layers[2].mlp.input * 0)
                found["others"] = model.logits.output
        return found

    as_in_one_process(llama, block)


def test_an_operation_that_is_spread_is_refused_where_it_is_asked_for(llama):
    model = llama.two
    with pytest.raises(RanksError, match=r"self_gate_up_proj_0.*spread over several workers"):
        with model.trace(PROMPT, max_tokens=1):
            model.model.layers[1].mlp.source.self_gate_up_proj_0.output.save()


def test_parameters_are_whole_and_cannot_be_changed(llama):
    model = llama.two
    weights = dict(llama.plain.named_parameters())
    with model.trace(PROMPT, max_tokens=2, **GREEDY) as tracer:
        layer = model.model.layers[1]
        merged = layer.mlp.gate_up_proj.weight.save()
        qkv = layer.self_attn.qkv_proj.weight * 1
        qkv = qkv.save()
        for _ in tracer.iter[:]:
            layer.output  # noqa: B018
        down = layer.mlp.down_proj.weight.save()
        norm = model.model.norm.weight.save()
        table = model.model.embed_tokens.weight.save()
    prefix = "model.layers.1."
    joined = [weights[f"{prefix}mlp.{name}_proj.weight"] for name in ("gate", "up")]
    torch.testing.assert_close(merged, torch.cat(joined).detach())
    joined = [weights[f"{prefix}self_attn.{name}_proj.weight"] for name in "qkv"]
    torch.testing.assert_close(qkv, torch.cat(joined).detach())
    torch.testing.assert_close(down, weights[f"{prefix}mlp.down_proj.weight"].detach())
    torch.testing.assert_close(norm, weights["model.norm.weight"].detach())
    torch.testing.assert_close(table[: len(checkpoints.WORDS)], weights["model.embed_tokens.weight"].detach())
    for model in (llama.two, llama.one):
        with pytest.raises(NNsightError, match="belongs to all requests"):
            with model.trace(PROMPT, max_tokens=1):
                model.model.layers[1].mlp.down_proj.weight[:] = 0
        with pytest.raises(NNsightError, match="belongs to all requests"):
            with model.trace(PROMPT, max_tokens=1):
                model.model.norm.weight = torch.nn.Parameter(torch.zeros(128))


def test_modules_are_called_by_hand_with_whole_values(llama):
    def block(model):
        with model.trace(PROMPT, max_tokens=1, temperature=0):
            found = nnsight.save({})
            middle = model.model.layers[1].mlp.act_fn.output
            found["down"] = model.model.layers[1].mlp.down_proj(middle)[0]
            found["norm"] = model.model.norm(model.model.layers[1].output[0])
        return found

    as_in_one_process(llama, block)


def test_requests_of_a_batch_are_steered_each_for_itself(llama):
    vector = torch.randn(128, generator=torch.Generator().manual_seed(3)) * 3

    def block(model):
        with model.trace() as tracer:
            found = nnsight.save({})
            for number in range(6):
                with tracer.invoke([7 + number, *PROMPT[: number + 1]], max_tokens=4, **GREEDY):
                    for step in tracer.iter[:]:
                        if number % 2:
                            model.model.layers[number % 4].mlp.output[:] += vector
                        found[f"{number}.{step}"] = model.logits.output
        return found

    as_in_one_process(llama, block)


@pytest.mark.parametrize("odd", [0, 1])
@pytest.mark.parametrize("how", ["raises", "never ends", "asks for something else", "gives other numbers"])
def test_a_body_that_parts_on_one_rank_ends_and_the_engine_goes_on(llama, odd, how):
    model = llama.two
    with torch.no_grad():
        wanted = llama.plain.generate(torch.tensor([PROMPT]), max_new_tokens=3, do_sample=False)[0, len(PROMPT) :]
    with pytest.raises((RanksError, ZeroDivisionError, TimeoutError), match="rank|zero|turn"):
        with model.trace() as tracer:
            with tracer.invoke(PROMPT[:3], max_tokens=3, **GREEDY):
                import torch.distributed as dist

                model.model.layers[0].mlp.act_fn.output  # noqa: B018
                mine = dist.get_rank() == odd
                if mine and how == "raises":
                    1 / 0  # noqa: B018
                while mine and how == "never ends":
                    pass
                if mine and how == "asks for something else":
                    model.model.layers[1].mlp.output.save()
                if how == "gives other numbers":
                    model.model.layers[1].mlp.output[:] += float(mine)
                for _ in tracer.iter[:]:
                    model.model.layers[2].mlp.act_fn.output.save()
            with tracer.invoke(PROMPT, max_tokens=3, **GREEDY):
                for _ in tracer.iter[:]:
                    model.model.layers[3].mlp.act_fn.output.save()
    with model.trace(PROMPT, max_tokens=3, **GREEDY) as tracer:
        for _ in tracer.iter[:]:
            model.model.layers[3].mlp.act_fn.output.save()
        tokens = nnsight.save(list(tracer.result.outputs[0].token_ids))
    assert tokens == wanted.tolist()


def test_the_words_of_one_rank_are_heard(llama, tmp_path):
    model, folder = llama.two, str(tmp_path)
    with model.trace(PROMPT, max_tokens=1):
        import sys

        import torch.distributed as dist

        model.model.layers[0].output  # noqa: B018
        Path(folder, str(dist.get_rank())).write_text(str(getattr(sys.stdout, "name", "")))
    assert [Path(folder, rank).read_text() == os.devnull for rank in "01"] == [False, True]


def test_random_numbers_of_torch_are_the_same_on_all_ranks_and_others_are_not_given_in_silence(llama):
    model = llama.two
    model.dispatch()
    model.__dict__["_engine"].engine.collective_rpc(_draw)
    for _ in range(2):
        with model.trace(PROMPT, max_tokens=2, **GREEDY):
            first = torch.randn(128).save()
            model.model.layers[1].mlp.output[:] += first
            second = torch.randn(128).save()
            model.model.layers[2].mlp.act_fn.output[:] += second[0]
            model.logits.output.save()
        assert not torch.equal(first, second)
    with pytest.raises(RanksError, match="Draw random numbers with torch"):
        with model.trace(PROMPT, max_tokens=2, **GREEDY):
            import random

            random.seed()  # from the system
            model.model.layers[1].mlp.output[:] += random.random()


def _draw(worker):
    """Let the random numbers of the workers come apart."""
    torch.rand(1 + worker.rank)
