"""What bodies see and do whichever of vLLM's model runners is at work; few tokens, for one of them is slow without a GPU."""

from __future__ import annotations

import gc
import traceback
import weakref

import pytest
import torch

import nnsight
from nnsight.plugin import leaves
from nnsight_vllm import adapters
from nnsight_vllm.worker import memory

GREEDY = {"temperature": 0, "ignore_eos": True}
PROMPTS = [[7, 30, 12], [44], [5, 60, 21, 9, 71, 33, 18, 2 + 40, 11], [90, 8]]
TOKENS = [4, 3, 1, 2]


def stream(output):
    """The residual stream after a layer: a fused layer hands on what is to be added to it, and it."""
    return output if isinstance(output, torch.Tensor) else output[0] + output[1]


def alone(plain, ids, tokens, at=None, change=None):
    """Return the tokens that transformers draws, and the stream after layer `at` and the logits where vLLM has them."""
    seen, handles = [], []

    def hook(module, args, output):
        hidden = output if isinstance(output, torch.Tensor) else output[0]
        seen.append(hidden.clone())
        if change is not None:
            return change(hidden) if isinstance(output, torch.Tensor) else (change(hidden), *output[1:])

    if at is not None:
        handles.append(plain.model.layers[at].register_forward_hook(hook))
    given, logits = torch.tensor([ids]), []
    with torch.no_grad():
        for _ in range(tokens):
            logits.append(plain(given, use_cache=False).logits[0, -1])
            given = torch.cat([given, logits[-1].argmax().view(1, 1)], 1)
    for handle in handles:
        handle.remove()
    return given[0, len(ids) :].tolist(), seen[-1][0] if seen else None, torch.stack(logits)


# Not in a class, where what a loop does is not read off its text.
def kept_at_each_step(model, prompt, steps):
    with model.trace(prompt, **GREEDY, max_tokens=steps) as tracer:
        kept = nnsight.save([])
        for _ in tracer.iter[:]:
            kept.append(model.model.layers[1].output)
    return kept


def logits_of_each_step(model, prompt, steps):
    with model.trace(prompt, **GREEDY, max_tokens=steps) as tracer:
        kept = nnsight.save([])
        for _ in tracer.iter[:]:
            kept.append(model.logits.output[-1])
    return kept


def one_of_each_kind(model):
    with model.trace() as tracer:
        with tracer.invoke(PROMPTS[0], **GREEDY, max_tokens=9):
            kept = nnsight.save([])
            for _ in tracer.iter[:]:
                kept.append(model.model.layers[1].output[0])
        with tracer.invoke(PROMPTS[1], **GREEDY, max_tokens=2):
            logits = nnsight.save(model.logits.output)
        with tracer.invoke(PROMPTS[3], **GREEDY, max_tokens=9):
            table = [0] * 4
            for step in tracer.iter[:]:
                x = model.model.layers[1].output[0] + table[step]


class RunnerBehaviour:
    """A subclass says which module defines its runner, and whether steps that are alike are found out once."""

    module: str
    knows_what_is_alike = True

    def test_it_is_this_runner_that_is_at_work(self, llama):
        runner = llama.served.dispatch()._engine.engine.model_executor.driver_worker.worker.model_runner
        (found,) = [cls.__module__ for cls in type(runner).__mro__ if cls.__module__ in adapters.RUNNERS]
        assert found == self.module

    def test_rows_of_requests_of_different_lengths_are_their_own(self, llama):
        model, layers = llama.served, llama.served.model.layers
        with model.trace() as tracer:
            found = nnsight.save({})
            for number, (ids, tokens) in enumerate(zip(PROMPTS, TOKENS)):
                with tracer.invoke(ids, **GREEDY, max_tokens=tokens):
                    streams, logits, samples = [], [], []
                    for _ in tracer.iter[:]:
                        streams.append(stream(layers[2].output))
                        logits.append(model.logits.output)
                        samples.append(model.samples.output)
                    found[number] = streams, logits, samples, list(tracer.result.outputs[0].token_ids)
        for number, (ids, tokens) in enumerate(zip(PROMPTS, TOKENS)):
            streams, logits, samples, told = found[number]
            drawn, hidden, wanted = alone(llama.plain, ids, tokens, at=2)
            assert told == drawn
            assert [len(value) for value in streams] == [len(ids)] + [1] * (tokens - 1)
            torch.testing.assert_close(torch.cat(streams), hidden, rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(torch.cat(logits), wanted, rtol=1e-4, atol=1e-4)
            assert torch.cat(samples).flatten().tolist() == drawn

    def test_a_request_is_steered_on_every_token_and_its_neighbours_on_none(self, llama):
        model, layers, vector = llama.served, llama.served.model.layers, torch.randn(128) * 3
        with model.trace() as tracer:
            found = nnsight.save({})
            for number, (ids, tokens) in enumerate(zip(PROMPTS, TOKENS)):
                with tracer.invoke(ids, **GREEDY, max_tokens=tokens):
                    if number % 2 == 0:
                        for _ in tracer.iter[:]:
                            layers[1].output[0][:] += vector
                    found[number] = list(tracer.result.outputs[0].token_ids)
        for number, (ids, tokens) in enumerate(zip(PROMPTS, TOKENS)):
            change = (lambda hidden: hidden + vector) if number % 2 == 0 else None
            assert found[number] == alone(llama.plain, ids, tokens, at=1, change=change)[0]

    def test_logits_that_are_replaced_decide_what_is_drawn(self, llama):
        model = llama.served
        with model.trace() as tracer:
            with tracer.invoke(PROMPTS[0], **GREEDY, max_tokens=3):
                for step in tracer.iter[:]:
                    if step == 1:
                        model.logits.output[:, 50] = 1e4
                first = nnsight.save(list(tracer.result.outputs[0].token_ids))
            with tracer.invoke(PROMPTS[1], **GREEDY, max_tokens=3):
                second = nnsight.save(list(tracer.result.outputs[0].token_ids))
        before = alone(llama.plain, PROMPTS[0], 1)[0]
        assert first == [*before, 50, *alone(llama.plain, [*PROMPTS[0], *before, 50], 1)[0]]
        assert second == alone(llama.plain, PROMPTS[1], 3)[0]

    def test_a_token_that_is_replaced_is_what_the_model_reads_next(self, llama):
        model = llama.served
        with model.trace() as tracer:
            with tracer.invoke(PROMPTS[0], **GREEDY, max_tokens=3):
                for step in tracer.iter[:]:
                    if step == 0:
                        model.samples.output[:] = 61
                first = nnsight.save(list(tracer.result.outputs[0].token_ids))
            with tracer.invoke(PROMPTS[3], **GREEDY, max_tokens=2):
                second = nnsight.save(list(tracer.result.outputs[0].token_ids))
        assert first == [61, *alone(llama.plain, [*PROMPTS[0], 61], 2)[0]]
        assert second == alone(llama.plain, PROMPTS[3], 2)[0]

    def test_stopping_and_errors_end_their_own_requests_at_once(self, llama):
        model, layers = llama.served, llama.served.model.layers
        engine = model.dispatch()._engine.engine
        steps, step = [], engine.step
        engine.step = lambda: (steps.append(None), step())[1]
        try:
            with pytest.raises(ZeroDivisionError) as caught:
                with model.trace() as tracer:
                    with tracer.invoke(PROMPTS[0], **GREEDY, max_tokens=100):
                        for number in tracer.iter[:]:
                            layers[0].output  # noqa: B018
                            if number == 1:
                                1 / 0  # noqa: B018
                    with tracer.invoke(PROMPTS[1], **GREEDY, max_tokens=100):
                        stopped = nnsight.save([])
                        for _ in tracer.iter[:]:
                            stopped.append(layers[3].output)
                            if len(stopped) == 2:
                                tracer.stop()
                    with tracer.invoke(PROMPTS[3], **GREEDY, max_tokens=3):
                        model.logits.output.save()
        finally:
            del engine.step
        assert "1 / 0" in "".join(traceback.format_exception(caught.value))
        assert len(steps) < 8
        assert not engine.has_unfinished_requests()

    def test_what_comes_after_the_layers_is_wrapped_only_in_steps_in_which_somebody_wants_it(self, llama, monkeypatch):
        model, (prompt, *_), steps = llama.served, PROMPTS, 6
        stage = model.dispatch()._engine.engine.model_executor.driver_worker.worker.model_runner.nnsight
        heard, end = [], stage.end
        monkeypatch.setattr(stage, "end", lambda: heard.append(1) or end())
        tokens, stream_after, logits = alone(llama.plain, prompt, steps, at=1)

        def check_reading():
            heard.clear()
            found = torch.cat([stream(one) for one in kept_at_each_step(model, prompt, steps)])
            torch.testing.assert_close(found, stream_after, atol=1e-4, rtol=1e-4)
            # Its first step, and the first that is like the one before.
            assert len(heard) == (2 if self.knows_what_is_alike else steps)

        check_reading()
        heard.clear()
        found = logits_of_each_step(model, prompt, steps)
        assert len(heard) == steps
        torch.testing.assert_close(torch.stack(found), logits, atol=1e-4, rtol=1e-4)
        # One goes on by itself, another comes and goes whose logits are asked for, and a third fails on its way.
        heard.clear()
        with pytest.raises(IndexError):
            one_of_each_kind(model)
        assert len(heard) > 2 and (len(heard) < 9) is self.knows_what_is_alike
        heard.clear()
        (output,) = model.generate([prompt], **GREEDY, max_tokens=steps)
        assert list(output.outputs[0].token_ids) == tokens and not heard
        check_reading()

    def test_nothing_of_a_trace_is_held_when_it_is_over(self, llama, monkeypatch):
        model, runs = llama.served, []
        forwards = model.dispatch()._engine.engine.model_executor.driver_worker.worker.model_runner.nnsight.forwards
        admit = forwards.admit
        monkeypatch.setattr(forwards, "admit", lambda run: runs.append(weakref.ref(run)) or admit(run))
        kept_at_each_step(model, PROMPTS[0], 4)
        logits_of_each_step(model, PROMPTS[1], 2)
        with pytest.raises(IndexError):
            one_of_each_kind(model)
        gc.collect()
        assert len(runs) >= 5 and not [run for run in runs if run() is not None]

    def test_log_probabilities_of_a_prompt_are_no_logits_of_a_step(self, llama):
        model = llama.served
        with model.trace() as tracer:
            with tracer.invoke(PROMPTS[2], **GREEDY, max_tokens=2, prompt_logprobs=1):
                told = nnsight.save(tracer.result.prompt_logprobs)
            with tracer.invoke(PROMPTS[0], **GREEDY, max_tokens=3):
                cache = tracer.cache(modules=["logits"])
        values = [entry.output for entry in cache["model.logits"]]
        torch.testing.assert_close(torch.cat(values), alone(llama.plain, PROMPTS[0], 3)[2], rtol=1e-4, atol=1e-4)
        with torch.no_grad():
            wanted = torch.log_softmax(llama.plain(torch.tensor([PROMPTS[2]])).logits[0, :-1], -1)
        for number, token in enumerate(PROMPTS[2][1:], 1):
            assert told[number][token].logprob == pytest.approx(wanted[number - 1, token].item(), abs=1e-4)

    def test_the_memory_of_a_request_is_wiped_when_it_is_over(self, llama):
        runner = llama.served.dispatch()._engine.engine.model_executor.driver_worker.worker.model_runner
        with llama.served.trace(PROMPTS[2], **GREEDY, max_tokens=3):
            for layer in (0, 1, 2):
                llama.served.model.layers[layer].output[0][:] = float("nan")
        assert any(not cache.isfinite().all() for cache in leaves(runner.kv_caches))
        told = llama.served.generate(PROMPTS[0], **GREEDY, max_tokens=2)
        assert all(cache.isfinite().all() for cache in leaves(runner.kv_caches))
        assert list(told.outputs[0].token_ids) == alone(llama.plain, PROMPTS[0], 2)[0]

    def test_the_memory_of_a_request_that_changed_nothing_is_left_as_it_is(self, llama, monkeypatch):
        model, layers = llama.served, llama.served.model.layers
        wiped = []
        monkeypatch.setattr(memory, "wipe", lambda caches, blocks, count: wiped.append(len(blocks)))
        for wanted in (False, True):
            with model.trace() as tracer:
                for ids in PROMPTS[:2]:
                    with tracer.invoke(ids, **GREEDY, max_tokens=2):
                        for _ in tracer.iter[:]:
                            layers[1].output[0].sum()
                            if wanted:
                                layers[1].output[0][:] *= 2
            model.generate(PROMPTS[0], **GREEDY, max_tokens=1)  # its step tells that those are over
            assert wiped == [2] * wanted  # a block of each

    def test_a_later_trace_begins_anew(self, llama):
        with llama.served.trace(PROMPTS[1], **GREEDY, max_tokens=1):
            before = stream(llama.served.model.layers[0].output).save()
        torch.testing.assert_close(before, alone(llama.plain, PROMPTS[1], 1, at=0)[1], rtol=1e-4, atol=1e-4)
