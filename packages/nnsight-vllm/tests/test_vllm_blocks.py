"""What a block can do in an engine: everything that it can do elsewhere, compared with hooks on the plain model."""

from __future__ import annotations

import contextlib

import pytest
import torch

import nnsight
from nnsight import (
    VLLM,
    BarrierError,
    MissedProviderError,
    NNsightError,
    NoTraceError,
    OutOfOrderError,
    RowsError,
    ScanError,
    UnmetSiteWarning,
)

TEXT = "w1 w2 w3"
IDS = [5, 6, 7]
OPTIONS = {"temperature": 0, "max_tokens": 4, "ignore_eos": True}


@pytest.fixture(scope="module")
def model(llama):
    return llama.served


def written(pair, ids=IDS, count=4, **hooks):
    """What the plain model writes, with these modules' outputs changed."""
    with contextlib.ExitStack() as stack:
        for path, change in hooks.items():
            module = pair.plain.get_submodule(path)
            hook = module.register_forward_hook(lambda module, args, output, change=change: change(args, output))
            stack.callback(hook.remove)
        given = torch.tensor([ids])
        made = pair.plain.generate(given, attention_mask=torch.ones_like(given), max_new_tokens=count, do_sample=False)
    return made[0, len(ids) :].tolist()


def without_mlp(pair, **options):
    return written(pair, **{"model.layers.1.mlp": lambda args, output: torch.zeros_like(output)}, **options)


# -- steps -------------------------------------------------------------------------------------------------------------


def test_loops_give_the_steps_that_they_name(llama, model):
    tokens = written(llama)
    with model.trace(TEXT, **OPTIONS) as tracer:
        chosen = nnsight.save([])
        for step in tracer.iter[1, 3]:
            chosen.append((step, model.logits.output.argmax(-1).item()))
    with model.trace(TEXT, **OPTIONS) as tracer:
        nested = nnsight.save([])
        for outer in tracer.iter[0:2]:
            for step in tracer.iter[outer : outer + 2]:
                nested.append((outer, step, model.logits.output.argmax(-1).item()))
        after = nnsight.save("after the loops")
    with model.trace(TEXT, **OPTIONS) as tracer:
        every = nnsight.save([])
        with tracer.all():
            every.append(model.logits.output.argmax(-1).item())
    with model.trace(TEXT, **OPTIONS) as tracer:
        with tracer.iter[2]:
            third = model.logits.output.argmax(-1).item().save()
    with model.trace(TEXT, **OPTIONS) as tracer:
        first = model.logits.output.argmax(-1).item().save()
        second = model.logits.next().output.argmax(-1).item().save()
        tracer.next(2)
        fourth = model.logits.output.argmax(-1).item().save()
    assert chosen == [(1, tokens[1]), (3, tokens[3])]
    assert nested == [(o, s, tokens[s]) for o, s in [(0, 0), (0, 1), (1, 1), (1, 2)]] and after == "after the loops"
    assert every == tokens == [first, second, third, fourth]


def test_a_loop_that_outruns_the_text_ends_with_it_and_says_so(model):
    with pytest.warns(UnmetSiteWarning, match="this run had 4 steps"):
        with model.trace(TEXT, **OPTIONS) as tracer:
            seen = nnsight.save([])
            for step in tracer.iter[0:9]:
                seen.append(step)
    assert seen == [0, 1, 2, 3]


# -- logits and samples ------------------------------------------------------------------------------------------------


def test_assigned_logits_decide_what_is_drawn(model):
    with model.trace(TEXT, **OPTIONS) as tracer:
        for step in tracer.iter[:]:
            wanted = torch.full_like(model.logits.output, -100.0)
            wanted[:, 10 + step] = 100.0
            model.logits.output = wanted
        tokens = tracer.result.outputs[0].token_ids.save()
    assert list(tokens) == [10, 11, 12, 13]


def test_assigned_samples_are_what_is_written_and_what_the_next_step_sees(llama, model):
    with model.trace(TEXT, **OPTIONS) as tracer:
        drawn = nnsight.save([])
        for _ in tracer.iter[:]:
            drawn.append(model.samples.output.item())
            model.samples.output = torch.full_like(model.samples.output, 20)
        result = tracer.result.save()
    assert list(result.outputs[0].token_ids) == [20] * 4
    assert result.outputs[0].text.split() == ["w16"] * 4
    assert drawn == [written(llama, [*IDS, *[20] * step], 1)[0] for step in range(4)]


def test_a_sample_that_ends_the_text_ends_it(model):
    with model.trace(TEXT, temperature=0, max_tokens=20) as tracer:
        for _ in tracer.iter[2:3]:
            model.samples.output[:] = 2  # </s>
        result = tracer.result.save()
    assert list(result.outputs[0].token_ids)[2:] == [2] and result.outputs[0].finish_reason == "stop"


def test_where_a_value_passes_is_not_the_value(model):
    with pytest.raises(AttributeError, match="`model.logits.output`"):
        with model.trace(TEXT):
            model.logits.save()
    with pytest.raises(AttributeError, match="`model.samples.output`"):
        with model.trace(TEXT):
            model.samples = torch.zeros(1)


# -- values and modules ------------------------------------------------------------------------------------------------


def test_inputs_and_outputs_of_all_kinds_are_read_and_written(llama, model):
    layers = model.model.layers
    with model.trace(TEXT, **OPTIONS) as tracer:
        for step in tracer.iter[:]:
            given = layers[1].inputs
            hidden, residual = layers[1].output
            if step == 0:
                nnsight.save(first := given)
            layers[1].output = (torch.zeros_like(hidden), hidden + residual)  # the same stream, split in another way
        tokens = tracer.result.outputs[0].token_ids.save()
    assert list(tokens) == written(llama)
    assert first[0][0].tolist() == [0, 1, 2]  # positions
    with model.trace(TEXT, **OPTIONS) as tracer:
        for _ in tracer.iter[:]:
            layers[1].mlp.input = layers[1].mlp.input * 2
        tokens = tracer.result.outputs[0].token_ids.save()
    module = llama.plain.model.layers[1].mlp
    hook = module.register_forward_pre_hook(lambda module, args: (args[0] * 2,))
    assert list(tokens) == written(llama)
    hook.remove()
    with model.trace(TEXT, **OPTIONS):
        whole = model.output.save()
    seen = []
    written(llama, count=1, **{"model.norm": lambda args, output: seen.append(output)})
    torch.testing.assert_close(whole, seen[0][0], atol=1e-4, rtol=1e-4)


def test_a_write_of_another_form_is_an_error_of_its_line(model):
    with pytest.raises(RowsError, match="tuple of 2 against Tensor"):
        with model.trace(TEXT, **OPTIONS):
            model.model.layers[1].output = model.model.layers[1].output[0]


def test_modules_are_skipped_and_their_neighbours_are_not(llama, model):
    layers = model.model.layers
    with model.trace(**OPTIONS) as tracer:
        with tracer.invoke(TEXT):
            for _ in tracer.iter[:]:
                layers[1].mlp.skip(torch.zeros_like(layers[1].mlp.input))
            skipped = tracer.result.outputs[0].token_ids.save()
        with tracer.invoke(TEXT):
            for _ in tracer.iter[:]:
                layers[2].skip(layers[1].output)
            layer = tracer.result.outputs[0].token_ids.save()
        with tracer.invoke(TEXT):
            plain = tracer.result.outputs[0].token_ids.save()
    assert list(skipped) == without_mlp(llama) and list(plain) == written(llama)
    assert list(layer) == written(llama, **{"model.layers.2": lambda args, output: args[0]})


def test_operations_inside_a_forward_of_vllm_are_served(llama, model):
    attention = model.model.layers[0].self_attn
    assert "self_qkv_proj_0" in str(attention.source) and "self_rotary_emb_0" in str(attention.source)
    with model.trace(TEXT, **OPTIONS):
        query, key = attention.source.self_rotary_emb_0.output
        shapes = nnsight.save((query.shape, key.shape))
        merged = attention.o_proj.input.save()
    assert shapes == ((3, 128), (3, 64))
    seen = []
    hook = llama.plain.model.layers[0].self_attn.o_proj.register_forward_pre_hook(lambda m, args: seen.append(args[0]))
    written(llama, count=1)
    hook.remove()
    torch.testing.assert_close(merged, seen[0][0], atol=1e-4, rtol=1e-4)
    with model.trace(TEXT, **OPTIONS) as tracer:
        for _ in tracer.iter[:]:
            model.model.layers[1].source.self_mlp_0.output[:] = 0
        tokens = tracer.result.outputs[0].token_ids.save()
    assert list(tokens) == without_mlp(llama)


def test_a_module_is_called_by_hand_inside_a_block(llama, model):
    with model.trace(TEXT, **OPTIONS):
        hidden, residual = model.model.layers[3].output
        normed = model.model.norm(hidden + residual).save()
        whole = model.output.save()
    torch.testing.assert_close(normed, whole, atol=1e-5, rtol=1e-5)
    with pytest.raises(NNsightError, match="weights are in the engine"):
        model.model.norm(torch.zeros(1, 128))
    with pytest.raises(NNsightError, match="model.generate"):
        model(TEXT)
    with pytest.raises(NNsightError, match="cannot be traced by itself"):
        model.model.layers[0].trace(TEXT)


# -- control -----------------------------------------------------------------------------------------------------------


def test_stopping_ends_the_request_at_that_step_and_no_other(model):
    from vllm.v1.core.sched.output import SchedulerOutput

    engine = model.dispatch().__dict__["_engine"].engine.engine_core.engine_core
    steps, execute = [], engine.model_executor.execute_model

    def counted(output: SchedulerOutput, *args, **kwargs):
        steps.append(set(output.num_scheduled_tokens))
        return execute(output, *args, **kwargs)

    engine.model_executor.execute_model = counted
    try:
        with model.trace(temperature=0, ignore_eos=True) as tracer:
            with tracer.invoke(TEXT, max_tokens=200):
                for step in tracer.iter[:]:
                    last = nnsight.save(step)
                    if step == 3:
                        tracer.stop()
            with tracer.invoke(TEXT, max_tokens=9):
                tokens = tracer.result.outputs[0].token_ids.save()
    finally:
        del engine.model_executor.execute_model
    assert last == 3 and len(tokens) == 9
    assert [len(one) for one in steps if one] == [2, 2, 2, 2, 1, 1, 1, 1, 1]


def test_sessions_carry_values_from_trace_to_trace(llama, model):
    layers = model.model.layers
    with model.session():
        with model.trace("w7 w8 w9", **OPTIONS):
            vector = layers[1].mlp.output.save()
        with model.trace(TEXT, **OPTIONS) as tracer:
            layers[1].mlp.output = vector
            tokens = tracer.result.outputs[0].token_ids.save()
    first = []

    def patch(args, output):
        first.append(output.shape[1])
        return vector[None] if len(first) == 1 else output

    assert list(tokens) == written(llama, **{"model.layers.1.mlp": patch})


def test_a_cache_keeps_every_step_of_its_own_request(llama, model):
    with model.trace(**OPTIONS) as tracer:
        with tracer.invoke(TEXT):
            cache = tracer.cache(modules=[model.model.layers[0].mlp, "model.layers.1.mlp"], include_inputs=True)
        with tracer.invoke("w8 w9"):
            model.logits.output.save()
    seen = []
    written(llama, **{"model.layers.1.mlp": lambda args, output: seen.append((args[0][0], output[0]))})
    entries = cache["model.model.layers.1.mlp"]
    assert len(entries) == len(seen) == 4 and set(cache) == {"model.model.layers.0.mlp", "model.model.layers.1.mlp"}
    for entry, (given, output) in zip(entries, seen):
        torch.testing.assert_close(entry.output, output, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(entry.input, given, atol=1e-4, rtol=1e-4)
    with pytest.raises(NoTraceError, match="belongs to one request"):
        with model.trace(**OPTIONS) as tracer:
            tracer.cache()
            with tracer.invoke(TEXT):
                model.logits.output.save()


def test_a_cache_of_what_all_modules_take_names_the_module_that_another_is_given(llama, model):
    with model.trace(IDS, **{**OPTIONS, "max_tokens": 1}) as tracer:
        cache = tracer.cache(include_inputs=True).save()
    (head, given), _ = cache.logits_processor.inputs
    assert head.path == "model.lm_head" and len(cache) > 40
    seen = []
    hook = llama.plain.lm_head.register_forward_hook(lambda module, args, output: seen.append((args[0], output)))
    with torch.no_grad():
        llama.plain(torch.tensor([IDS]))
    hook.remove()
    ((hidden, logits),) = seen
    torch.testing.assert_close(given, hidden[0, -1:], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(cache.logits_processor.output, logits[0, -1:], atol=1e-4, rtol=1e-4)


def test_edits_travel_with_every_trace_and_hold_in_a_plain_call(llama, model):
    wanted, plain = without_mlp(llama), written(llama)
    with model.edit() as edited:
        for _ in edited.iter[:]:
            edited.model.layers[1].mlp.output[:] = 0
    with edited.trace(TEXT, **OPTIONS) as tracer:
        tokens = tracer.result.outputs[0].token_ids.save()
    assert list(tokens) == wanted
    assert list(edited.generate(TEXT, **OPTIONS).outputs[0].token_ids) == wanted
    outputs = edited.generate([TEXT, IDS], **OPTIONS)
    assert [list(output.outputs[0].token_ids) for output in outputs] == [wanted, wanted]
    options = {**OPTIONS, "temperature": 1.0, "n": 3, "top_k": 1, "seed": 3}
    output = edited.generate(TEXT, **options)
    assert [(one.index, list(one.token_ids)) for one in output.outputs] == [(n, wanted) for n in range(3)]
    assert list(model.generate(TEXT, **OPTIONS).outputs[0].token_ids) == plain
    with model.edit(inplace=True):
        for _ in model.iter[:]:
            model.model.layers[1].mlp.output[:] = 0
    try:
        assert list(model.generate(TEXT, **OPTIONS).outputs[0].token_ids) == wanted
    finally:
        model.clear_edits()
    assert list(model.generate(TEXT, **OPTIONS).outputs[0].token_ids) == plain


# -- several requests --------------------------------------------------------------------------------------------------


def test_values_pass_between_requests_of_one_batch(llama, model):
    embeddings = model.model.embed_tokens
    with model.trace(**OPTIONS) as tracer:
        with tracer.invoke(TEXT):
            given = embeddings.output
        with tracer.invoke("w7 w8 w9"):
            embeddings.output = given
            tokens = tracer.result.outputs[0].token_ids.save()
    assert list(tokens) == written(llama)


def test_requests_of_one_batch_meet_at_a_barrier(llama, model):
    layers = model.model.layers
    with model.trace(**OPTIONS) as tracer:
        barrier = tracer.barrier(2)
        with tracer.invoke("w7 w8 w9"):
            vector = layers[1].mlp.output.clone()
            barrier()
        with tracer.invoke(TEXT):
            layers[1].mlp.output
            barrier()
            layers[1].mlp.output = vector
            patched = model.logits.output.save()
    seen = []
    written(llama, [11, 12, 13], 1, **{"model.layers.1.mlp": lambda args, output: seen.append(output)})
    logits = []
    hooks = {"model.layers.1.mlp": lambda args, output: seen[0], "lm_head": lambda args, output: logits.append(output)}
    written(llama, IDS, 1, **hooks)
    torch.testing.assert_close(patched, logits[0][0, -1:], atol=1e-4, rtol=1e-4)


def test_requests_that_do_not_run_together_are_told_so_and_nothing_hangs(pair):
    model = pair("llama", max_num_seqs=1).served
    layers = model.model.layers
    with pytest.raises(OutOfOrderError, match="passed already"):
        with model.trace(**OPTIONS) as tracer:
            barrier = tracer.barrier(2)
            with tracer.invoke(TEXT):
                layers[1].output
                barrier()
                layers[2].output.save()
            with tracer.invoke(TEXT):
                barrier()
                model.logits.output.save()
    with pytest.raises(BarrierError, match="reached by 1 only"):
        with model.trace(**OPTIONS) as tracer:
            barrier = tracer.barrier(2)
            with tracer.invoke(TEXT):
                layers[1].output.save()
            with tracer.invoke(TEXT):
                barrier()
                model.logits.output.save()
    with model.trace(**OPTIONS) as tracer:  # what comes first is there for what comes later, whenever that is
        with tracer.invoke(TEXT):
            vector = layers[3].mlp.output
        with tracer.invoke(TEXT):
            layers[1].mlp.output = vector
            tokens = tracer.result.outputs[0].token_ids.save()
    assert len(tokens) == 4 and len(model.generate(TEXT, **OPTIONS).outputs[0].token_ids) == 4


# -- the tree ----------------------------------------------------------------------------------------------------------


def test_the_tree_is_explored_without_an_engine(llama):
    model = VLLM(str(llama.folder), rename={"model.layers": "blocks", "mlp": "ff"}, dtype="float32", max_model_len=64)
    assert "QKVParallelLinear" in str(model) and len(model.blocks) == 4
    assert list(model.tokenizer(TEXT).input_ids) == IDS
    assert model.model.norm.weight.shape == (128,) and model.device.type in ("cpu", "cuda")
    assert model.blocks[1].ff.down_proj is model.model.layers[1].mlp.down_proj
    assert not model.dispatched
    with pytest.raises(ScanError, match="max_tokens=1"):
        with model.scan(TEXT):
            model.blocks[0].output.shape
    with pytest.raises(TypeError, match="max_tokens=1"):
        with model.trace(TEXT, scan=True):
            model.blocks[0].output.shape
    assert not model.dispatched


def test_a_renamed_model_is_traced_by_its_names(llama):
    model = VLLM(str(llama.folder), rename={"model.layers": "blocks"}, dtype="float32", max_model_len=64, block_size=32)
    with model.trace(TEXT, **OPTIONS):
        renamed = model.blocks[1].mlp.output.save()
    with llama.served.trace(TEXT, **OPTIONS):
        plain = llama.served.model.layers[1].mlp.output.save()
    torch.testing.assert_close(renamed, plain)


def test_what_never_comes_is_an_error_of_its_line(model):
    with pytest.raises(MissedProviderError, match="lm_head.output"):
        with model.trace(TEXT, **OPTIONS):
            model.lm_head.output.save()
    with pytest.raises(OutOfOrderError, match="layers.1.output"):
        with model.trace(TEXT, **OPTIONS):
            model.model.layers[2].output
            model.model.layers[1].output.save()
