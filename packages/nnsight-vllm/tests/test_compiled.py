"""Engines with compiled graphs: bodies see and change what lies at declared sites, and everything else is refused.

On a CPU vLLM compiles a model as one (`whole`), and never into pieces. What cuts it into pieces is the same code on every
device, so `pieces` asks for it here too: vLLM's own compiler cuts at the declared sites and runs Python between two pieces.
"""

from __future__ import annotations

import dataclasses

import pytest
import torch
from runner_behaviour import GREEDY, PROMPTS, TOKENS, RunnerBehaviour, alone, stream
from vllm.compilation.counter import compilation_counter
from vllm.config import CompilationMode
from vllm.model_executor.models.llama import LlamaDecoderLayer
from vllm.platforms.cpu import CpuPlatform

import nnsight
from nnsight import MissedProviderError

LAYERS = 4
TAPS = [f"model.layers.{layer}.output" for layer in range(LAYERS)]


@pytest.fixture(scope="module")
def compiling():
    """Let graphs be built without a compiler for C++, which would take a minute: what is tested is where they end."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_CPU_CI_ENV", "1")
        yield patch


@pytest.fixture(scope="module")
def whole(pair, compiling):
    return pair("llama", taps=[*TAPS, "model.layers.2.mlp.input", "model.layers.1.mlp"])


@pytest.fixture(scope="module")
def pieces(pair, compiling):
    with pytest.MonkeyPatch.context() as patch:
        settle = CpuPlatform.check_and_update_config.__func__

        def in_pieces(cls, config):
            wanted = config.compilation_config.mode
            settle(cls, config)
            if wanted == CompilationMode.VLLM_COMPILE:
                config.compilation_config.mode = wanted
                config.compilation_config.backend = "eager"
                config.compilation_config.compile_sizes = []

        patch.setattr(CpuPlatform, "check_and_update_config", classmethod(in_pieces))
        before = compilation_counter.clone()
        made = pair("llama", taps=TAPS)
        made.served.generate(PROMPTS[0], **GREEDY, max_tokens=1)
        made.served.__dict__["seen"] = {
            name: count - getattr(before, name) for name, count in vars(compilation_counter).items()
        }
        yield made


@pytest.fixture(scope="module")
def eager(pair):
    return pair("llama")


class GraphBehaviour(RunnerBehaviour):
    module = "vllm.v1.worker.gpu_model_runner"
    knows_what_is_alike = False

    # How vLLM ranks tokens is compiled by itself then, which takes long and has nothing to do with where a model is cut.
    test_log_probabilities_of_a_prompt_are_no_logits_of_a_step = None

    def test_none_of_its_layers_is_called_and_values_are_those_of_an_engine_without_graphs(
        self, llama, eager, monkeypatch
    ):
        llama.served.generate(PROMPTS[0], **GREEDY, max_tokens=1)
        calls, seen, forward = [], [], LlamaDecoderLayer.forward
        monkeypatch.setattr(
            LlamaDecoderLayer, "forward", lambda *args, **kwargs: (calls.append(1), forward(*args, **kwargs))[1]
        )
        for served, times in ((llama.served, 0), (eager.served, 3 * LAYERS)):
            calls.clear()
            with served.trace(PROMPTS[2], **GREEDY, max_tokens=3) as tracer:
                values = nnsight.save([])
                for _ in tracer.iter[:]:
                    values.append((stream(served.model.layers[3].output), served.logits.output))
            seen.append(values)
            assert len(calls) == times
        for ours, theirs in zip(*seen):
            for one, other in zip(ours, theirs):
                torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)

    def test_a_value_that_is_replaced_is_as_good_as_one_that_is_edited_in_place(self, llama):
        model, layers, vector = llama.served, llama.served.model.layers, torch.randn(128) * 3
        with model.trace() as tracer:
            found = nnsight.save({})
            for number in range(2):
                with tracer.invoke(PROMPTS[number], **GREEDY, max_tokens=4):
                    for _ in tracer.iter[:]:
                        hidden, residual = layers[1].output
                        layers[1].output = hidden + vector, residual
                    found[number] = list(tracer.result.outputs[0].token_ids)
        for number in range(2):
            assert found[number] == alone(llama.plain, PROMPTS[number], 4, at=1, change=lambda v: v + vector)[0]

    def test_rows_that_fill_a_batch_up_to_the_size_of_a_graph_are_nobodys(self, llama, monkeypatch):
        runner = llama.served.dispatch()._engine.engine.model_executor.driver_worker.worker.model_runner
        dispatch, sizes = runner.cudagraph_dispatcher.dispatch, set()

        def filled_up(*args, **kwargs):
            mode, batch = dispatch(*args, **kwargs)
            sizes.add((batch.num_tokens, size := -(-batch.num_tokens // 16) * 16))
            return mode, dataclasses.replace(batch, num_tokens=size)

        monkeypatch.setattr(runner.cudagraph_dispatcher, "dispatch", filled_up)
        vector = torch.randn(128) * 3
        with llama.served.trace() as tracer:
            found = nnsight.save({})
            for number, (ids, tokens) in enumerate(zip(PROMPTS, TOKENS)):
                with tracer.invoke(ids, **GREEDY, max_tokens=tokens):
                    values = []
                    for _ in tracer.iter[:]:
                        values.append(stream(llama.served.model.layers[1].output))
                        if number == 0:
                            llama.served.model.layers[1].output[0][:] += vector
                    found[number] = values, list(tracer.result.outputs[0].token_ids)
        assert any(given < size for given, size in sizes)
        for number, (ids, tokens) in enumerate(zip(PROMPTS, TOKENS)):
            change = (lambda hidden: hidden + vector) if number == 0 else None
            drawn, hidden, _ = alone(llama.plain, ids, tokens, at=1, change=change)
            assert found[number][1] == drawn
            torch.testing.assert_close(torch.cat(found[number][0]), hidden, rtol=1e-4, atol=1e-4)

    @pytest.mark.parametrize(
        "ask",
        [
            lambda layers: layers[1].self_attn.output,
            lambda layers: layers[1].input,
            lambda layers: layers[1].skip(torch.zeros(3, 128)),
            lambda layers: layers[1].mlp.source.self_down_proj_0.output,
        ],
        ids=["another module", "another stage", "to skip", "an operation"],
    )
    def test_a_site_that_was_not_declared_is_refused_with_those_that_were(self, llama, ask):
        with pytest.raises(MissedProviderError) as caught:
            with llama.served.trace(PROMPTS[0], max_tokens=2):
                ask(llama.served.model.layers)
        assert "`model.model.layers.0.output`, `model.model.layers.1.output`" in str(caught.value)

    def test_a_cache_is_of_declared_sites_or_refused(self, llama):
        with pytest.raises(MissedProviderError, match="Declared are"):
            with llama.served.trace(PROMPTS[0], max_tokens=2) as tracer:
                tracer.cache()
        with llama.served.trace(PROMPTS[0], **GREEDY, max_tokens=3) as tracer:
            cache = tracer.cache(modules=["model.layers.2"])
        values = [stream(entry.output) for entry in cache["model.model.layers.2"]]
        torch.testing.assert_close(torch.cat(values), alone(llama.plain, PROMPTS[0], 3, at=2)[1], rtol=1e-4, atol=1e-4)


class TestWhole(GraphBehaviour):
    @pytest.fixture
    def llama(self, whole):
        return whole

    def test_inputs_and_inner_modules_are_sites_too(self, whole):
        model, layers = whole.served, whole.served.model.layers
        with model.trace(PROMPTS[2], **GREEDY, max_tokens=1):
            inner = layers[1].mlp.output.save()
            given = layers[2].mlp.input.save()
        with model.trace(PROMPTS[2], **GREEDY, max_tokens=1):
            layers[2].mlp.input = layers[2].mlp.input * 0
            changed = stream(layers[2].output).save()
        seen = {}
        plain = whole.plain.model.layers
        handles = [
            plain[1].mlp.register_forward_hook(lambda module, args, output: seen.update(inner=output)),
            plain[2].mlp.register_forward_pre_hook(lambda module, args: seen.update(given=args[0])),
        ]
        with torch.no_grad():
            whole.plain(torch.tensor([PROMPTS[2]]))
        for handle in handles:
            handle.remove()
        torch.testing.assert_close(inner, seen["inner"][0], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(given, seen["given"][0], rtol=1e-4, atol=1e-4)
        handle = plain[2].mlp.register_forward_pre_hook(lambda module, args: (args[0] * 0,))
        wanted = alone(whole.plain, PROMPTS[2], 1, at=2)[1]
        handle.remove()
        torch.testing.assert_close(changed, wanted, rtol=1e-4, atol=1e-4)


class TestPieces(GraphBehaviour):
    @pytest.fixture
    def llama(self, pieces):
        return pieces

    def test_the_model_was_cut_at_each_site_and_nowhere_else_but_at_attention(self, pieces):
        seen = pieces.served.__dict__["seen"]
        cuts = LAYERS + len(TAPS)
        assert seen["num_graphs_seen"] == 1
        assert seen["num_piecewise_capturable_graphs_seen"] == cuts + 1
        assert seen["num_piecewise_graphs_seen"] == cuts + cuts + 1
