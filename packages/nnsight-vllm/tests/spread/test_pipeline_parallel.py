"""A model in two processes, layers after layers: blocks see it whole, in order. Against transformers, with hooks."""

from __future__ import annotations

import multiprocessing
from contextlib import contextmanager

import checkpoints
import pytest
import torch
from vllm.v1.executor import multiproc_executor

import nnsight
from nnsight import ElsewhereError, OutOfOrderError
from nnsight_vllm.model import VLLM

pytestmark = pytest.mark.timeout(300)  # the processes start in the first of them
GREEDY = {"temperature": 0, "max_tokens": 4, "ignore_eos": True}
PROMPTS = [[5, 6, 7, 8, 9], [10, 11], [number % 80 + 4 for number in range(60)]]
CLOSE = {"atol": 2e-4, "rtol": 2e-4}


@contextmanager
def spread(folder):
    """An engine in two processes, forks of this one, which has imported all that takes long to import."""
    sizes = {"max_model_len": 256, "max_num_batched_tokens": 512, "max_num_seqs": 8, "block_size": 32}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_CPU_OMP_THREADS_BIND", "0|1")
        patch.setattr(multiproc_executor, "get_mp_context", lambda: multiprocessing.get_context("fork"))
        model = VLLM(
            str(folder),
            dtype="float32",
            pipeline_parallel_size=2,
            distributed_executor_backend="mp",
            num_gpu_blocks_override=40,
            **sizes,
        )
        model.dispatch()
    yield model
    model.__dict__["_engine"].shutdown()


@pytest.fixture(scope="module")
def model(folder, plain):
    with spread(folder) as model:
        yield model


@pytest.fixture(scope="module")
def vector():
    return torch.randn(128, generator=torch.Generator().manual_seed(3)) * 3


def stream(output):
    """The residual stream after a layer of vLLM's, which returns it in two parts."""
    return output[0] + output[1]


@contextmanager
def changed(plain, **layers):
    """Change what layers of the plain model give: `_2=lambda hidden: hidden + 1`."""

    def hook(change):
        return lambda module, args, output: (
            change(output) if torch.is_tensor(output) else (change(output[0]), *output[1:])
        )

    handles = [plain.model.layers[int(name[1:])].register_forward_hook(hook(c)) for name, c in layers.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def generated(plain, prompt, count=4):
    ids = torch.tensor([prompt])
    out = plain.generate(ids, max_new_tokens=count, do_sample=False, attention_mask=torch.ones_like(ids))
    return out[0].tolist()


def hidden_of(plain, ids):
    """What each layer gives for these tokens, without the last norm, and the logits."""
    found, handles = [], []
    for layer in plain.model.layers:
        handles.append(
            layer.register_forward_hook(lambda m, a, o: found.append((o if torch.is_tensor(o) else o[0])[0].clone()))
        )
    with torch.no_grad():
        logits = plain(torch.tensor([ids])).logits[0]
    for handle in handles:
        handle.remove()
    return found, logits


def test_one_block_reads_all_layers_of_both_stages_in_every_step(model, plain):
    prompt = PROMPTS[0]
    with model.trace(prompt, **GREEDY) as tracer:
        seen = nnsight.save([])
        for _ in tracer.iter[:]:
            embedded = model.model.embed_tokens.output
            layers = [stream(layer.output) for layer in model.model.layers]
            seen.append((embedded, layers, model.model.norm.output[0], model.logits.output, model.samples.output))
        tokens = list(tracer.result.outputs[0].token_ids)
        nnsight.save(tokens)
    ids = generated(plain, prompt)
    assert tokens == ids[len(prompt) :]
    layers, logits = hidden_of(plain, ids[:-1])
    assert len(seen) == 4
    torch.testing.assert_close(torch.cat([one[0] for one in seen]), plain.model.embed_tokens(torch.tensor(ids[:-1])))
    for number, wanted in enumerate(layers):
        torch.testing.assert_close(torch.cat([one[1][number] for one in seen]), wanted, **CLOSE)
    torch.testing.assert_close(torch.cat([one[2] for one in seen]), plain.model.norm(layers[-1]), **CLOSE)
    torch.testing.assert_close(torch.cat([one[3] for one in seen]), logits[len(prompt) - 1 :], **CLOSE)
    assert [int(one[4]) for one in seen] == tokens


@pytest.mark.parametrize("number", range(4))
def test_steering_reaches_the_layer_on_whichever_stage_it_is(model, plain, vector, number):
    with model.trace() as tracer:
        got = nnsight.save([None] * 4)
        for at, prompt in enumerate([*PROMPTS, PROMPTS[0]]):
            with tracer.invoke(prompt, **GREEDY):
                if at < 3:
                    for _ in tracer.iter[:]:
                        model.model.layers[number].output[0][:] += vector
                got[at] = list(tracer.result.outputs[0].token_ids)
    with changed(plain, **{f"_{number}": lambda hidden: hidden + vector}):
        wanted = [generated(plain, prompt)[len(prompt) :] for prompt in PROMPTS]
    assert got == [*wanted, generated(plain, PROMPTS[0])[len(PROMPTS[0]) :]]
    assert got[0] != got[3]


def test_a_value_of_the_first_stage_is_written_on_the_second(model, plain):
    prompt = PROMPTS[2]
    with model.trace(prompt, **GREEDY) as tracer:
        for _ in tracer.iter[:]:
            early = stream(model.model.layers[0].output)
            mlp, residual = model.model.layers[3].output
            model.model.layers[3].output = (early - residual, residual)
        tokens = nnsight.save(list(tracer.result.outputs[0].token_ids))
    held = {}

    def keep(hidden):
        held["early"] = hidden
        return hidden

    with changed(plain, _0=keep, _3=lambda hidden: held["early"]):
        assert tokens == generated(plain, prompt)[len(prompt) :]
    assert tokens != generated(plain, prompt)[len(prompt) :]


def test_what_the_last_stage_gave_is_used_by_the_first_in_the_next_step(model, plain, vector):
    prompt = PROMPTS[0]
    with model.trace(prompt, **GREEDY) as tracer:
        factor = 0.0
        factors = nnsight.save([])
        for _ in tracer.iter[:]:
            model.model.layers[0].output[0][:] += vector * factor
            factor = float(torch.sigmoid(model.logits.output.max()))
            factors.append(factor)
        tokens = nnsight.save(list(tracer.result.outputs[0].token_ids))
    ids, wanted, factor, cache = list(prompt), [], 0.0, None
    given = torch.tensor([prompt])
    for _ in range(4):
        with changed(plain, _0=lambda hidden, factor=factor: hidden + vector * factor), torch.no_grad():
            out = plain(given, past_key_values=cache, use_cache=True)
        cache, logits = out.past_key_values, out.logits[0, -1]
        factor = float(torch.sigmoid(logits.max()))
        wanted.append(factor)
        ids.append(int(logits.argmax()))
        given = torch.tensor([ids[-1:]])
    assert tokens == ids[len(prompt) :]
    torch.testing.assert_close(factors, wanted, **CLOSE)


def test_many_requests_at_once_do_not_mix(model, plain, vector):
    prompts = [[4 + (7 * n + k) % 80 for k in range(3 + 5 * n)] for n in range(6)]
    with model.trace() as tracer:
        got = nnsight.save([None] * 6)
        for n, prompt in enumerate(prompts):
            with tracer.invoke(prompt, temperature=0, max_tokens=2 + n, ignore_eos=True):
                seen = []
                for _ in tracer.iter[:]:
                    early = stream(model.model.layers[n % 2].output)
                    late = stream(model.model.layers[2 + n % 2].output)
                    if n == 3:
                        model.model.layers[3].output[0][:] += vector
                    seen.append((early, late))
                got[n] = (list(tracer.result.outputs[0].token_ids), seen)
    for n, prompt in enumerate(prompts):
        with changed(plain, **({"_3": lambda hidden: hidden + vector} if n == 3 else {})):
            ids = generated(plain, prompt, 2 + n)
            layers, _ = hidden_of(plain, ids[:-1])
        tokens, seen = got[n]
        assert tokens == ids[len(prompt) :]
        torch.testing.assert_close(torch.cat([early for early, _ in seen]), layers[n % 2], **CLOSE)
        if n != 3:
            torch.testing.assert_close(torch.cat([late for _, late in seen]), layers[2 + n % 2], **CLOSE)


def test_inputs_modules_inside_and_operations_of_both_stages(model, plain):
    prompt = PROMPTS[0]
    with model.trace(prompt, **{**GREEDY, "max_tokens": 1}):
        first = model.model.layers[0].mlp.input.save()
        acted = model.model.layers[0].mlp.act_fn.output.save()
        ran = model.model.layers[1].mlp.source.self_down_proj_0.input.save()
        last = model.model.layers[3].mlp.down_proj.output[0].save()
    held = {}
    handles = [
        plain.model.layers[0].mlp.register_forward_pre_hook(lambda m, a: held.update(first=a[0][0])),
        plain.model.layers[0].mlp.down_proj.register_forward_pre_hook(lambda m, a: held.update(acted=a[0][0])),
        plain.model.layers[1].mlp.down_proj.register_forward_pre_hook(lambda m, a: held.update(ran=a[0][0])),
        plain.model.layers[3].mlp.register_forward_hook(lambda m, a, o: held.update(last=o[0])),
    ]
    with torch.no_grad():
        plain(torch.tensor([prompt]))
    for handle in handles:
        handle.remove()
    for name, ours in (("first", first), ("acted", acted), ("ran", ran), ("last", last)):
        torch.testing.assert_close(ours, held[name], **CLOSE)


def test_a_skipped_layer_is_skipped_on_its_own_stage(model, plain):
    prompt = PROMPTS[0]
    for number in (1, 2):
        with model.trace(prompt, **GREEDY) as tracer:
            for _ in tracer.iter[:]:
                positions, hidden, residual = model.model.layers[number].inputs[0]
                model.model.layers[number].skip((hidden, residual))
            tokens = nnsight.save(list(tracer.result.outputs[0].token_ids))
        layer = plain.model.layers[number]
        own, layer.forward = layer.forward, lambda hidden, *args, **kwargs: hidden
        try:
            ids = torch.tensor([prompt])
            for _ in range(4):
                with torch.no_grad():
                    ids = torch.cat([ids, plain(ids, use_cache=False).logits[:, -1:].argmax(-1)], 1)
        finally:
            layer.forward = own
        assert tokens == ids[0, len(prompt) :].tolist()


def test_a_cache_holds_what_passed_on_both_stages(model, plain):
    prompt = PROMPTS[0]
    with model.trace(prompt, **{**GREEDY, "max_tokens": 2}) as tracer:
        cache = tracer.cache(modules=[model.model.layers[0], model.model.layers[3]])
    layers, _ = hidden_of(plain, generated(plain, prompt, 2)[:-1])
    for number in (0, 3):
        seen = [stream(entry.output) for entry in cache[f"model.model.layers.{number}"]]
        torch.testing.assert_close(torch.cat(seen), layers[number], **CLOSE)


@pytest.mark.parametrize("number", [0, 3])
def test_an_error_on_either_stage_ends_its_own_request_with_its_type_and_line(model, plain, number):
    with pytest.raises(LookupError, match="seen") as caught:
        with model.trace() as tracer:
            with tracer.invoke(PROMPTS[0], **GREEDY):
                model.model.layers[number].output
                raise LookupError("seen")
            with tracer.invoke(PROMPTS[1], **GREEDY):
                tracer.result.save()
    assert "LookupError" in repr(caught.value)
    with pytest.raises(ValueError, match="shape"):
        with model.trace(PROMPTS[0], **GREEDY):
            model.model.layers[number].output = (torch.zeros(1, 128), torch.zeros(1, 128))
            model.logits.output.save()
    output = model.generate(PROMPTS[1], **GREEDY)
    assert list(output.outputs[0].token_ids) == generated(plain, PROMPTS[1])[2:]


@pytest.mark.parametrize("number", [0, 3])
def test_a_request_is_stopped_on_either_stage(model, number):
    with model.trace(PROMPTS[0], temperature=0, max_tokens=50, ignore_eos=True) as tracer:
        seen = nnsight.save([])
        for step in tracer.iter[:]:
            seen.append(stream(model.model.layers[number].output))
            if step == 2:
                tracer.stop()
    assert len(seen) == 3


def test_what_a_stage_has_passed_cannot_be_asked_for(model):
    with pytest.raises(OutOfOrderError, match=r"layers\.0\.output"):
        with model.trace(PROMPTS[0], **GREEDY):
            model.model.layers[3].output.save()
            model.model.layers[0].output.save()


def test_weights_can_be_used_on_the_last_stage_and_say_where_they_are_elsewhere(model, plain):
    with model.trace(PROMPTS[0], **{**GREEDY, "max_tokens": 1}):
        hidden = [stream(layer.output) for layer in model.model.layers]
        lens = [model.model.norm(one) @ model.lm_head.weight.T for one in hidden]
        lens = nnsight.save(torch.stack(lens)[..., :96])  # vLLM has room for more tokens
    layers, _ = hidden_of(plain, PROMPTS[0])
    torch.testing.assert_close(lens, torch.stack([plain.lm_head(plain.model.norm(one)) for one in layers]), **CLOSE)
    with pytest.raises(ElsewhereError, match=r"layers\.0\.mlp\.down_proj\.weight"):
        with model.trace(PROMPTS[0], **GREEDY):
            late = stream(model.model.layers[3].output)
            torch.nn.functional.linear(late, model.model.layers[0].mlp.down_proj.weight.T).save()


def test_standing_edits_are_on_every_stage(model, plain, vector):
    with model.edit() as steered:
        model.model.layers[0].output[0][:] += vector
        model.model.layers[3].output[0][:] -= vector
    model.install("calm", steered)
    try:
        got = [list(output.outputs[0].token_ids) for output in model.generate(PROMPTS, standing="calm", **GREEDY)]
    finally:
        model.uninstall("calm")
    with changed(plain, _0=lambda hidden: hidden + vector, _3=lambda hidden: hidden - vector):
        assert got == [generated(plain, prompt)[len(prompt) :] for prompt in PROMPTS]


def test_modules_that_a_model_has_on_stages_that_do_not_use_them(tmp_path):
    plain = checkpoints.endless(tmp_path, checkpoints.gpt2())  # whose embeddings and last norm are on both
    prompt, own = PROMPTS[0], plain.transformer
    with spread(tmp_path) as model:
        parts = model.transformer
        with model.trace(prompt, **GREEDY) as tracer:
            seen = nnsight.save([])
            for _ in tracer.iter[:]:
                values = [parts.h[0].input, *(layer.output for layer in parts.h)]
                seen.append((*values, parts.ln_f.output, model.logits.output))
            tokens = nnsight.save(list(tracer.result.outputs[0].token_ids))
        with model.trace(prompt, **GREEDY) as tracer:
            for _ in tracer.iter[:]:
                parts.wpe.output[:] *= -1
            moved = nnsight.save(list(tracer.result.outputs[0].token_ids))
    ids, found = generated(plain, prompt), []
    assert tokens == ids[len(prompt) :]
    for part in (own.drop, *own.h, own.ln_f):
        part.register_forward_hook(lambda m, a, o: found.append((o if torch.is_tensor(o) else o[0])[0]))
    with torch.no_grad():
        logits = plain(torch.tensor([ids[:-1]])).logits[0]
    for number, wanted in enumerate(found):
        torch.testing.assert_close(torch.cat([one[number] for one in seen]), wanted, **CLOSE)
    torch.testing.assert_close(torch.cat([one[-1] for one in seen]), logits[len(prompt) - 1 :], **CLOSE)
    own.wpe.register_forward_hook(lambda m, a, o: -o)
    assert moved == generated(plain, prompt)[len(prompt) :] != tokens
