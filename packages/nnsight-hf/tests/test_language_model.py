"""A language model of each architecture: what a trace gives is what transformers gives, alone and in a batch."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from checkpoints import LAYERS, LONG, MIDDLE, SHORT, alone, hidden, ids

import nnsight

# Rows of a batch are computed by other kernels than a row alone, so they agree to rounding and not to the bit.
ROUNDING = {"rtol": 1e-4, "atol": 1e-4}


def blocks(model: Any, kind: str) -> Any:
    return model.get(LAYERS[kind])


def head_of(plain: torch.nn.Module) -> str:
    return next(name for name, part in plain.named_modules() if part is plain.get_output_embeddings())


def test_one_prompt_is_what_transformers_gives(model, plain, kind) -> None:
    seen = []
    handle = plain.get_submodule(LAYERS[kind])[1].register_forward_hook(
        lambda m, i, output: seen.append(hidden(output))
    )
    want = alone(plain, LONG)
    handle.remove()
    with model.trace(LONG) as tracer:
        middle = hidden(blocks(model, kind)[1].output)
        head = model.get(head_of(plain)).output
        result = tracer.result
    torch.testing.assert_close(middle, seen[0], **ROUNDING)
    torch.testing.assert_close(head, want, **ROUNDING)
    torch.testing.assert_close(result.logits, want, **ROUNDING)


def test_invokes_of_different_lengths_get_what_they_get_alone(model, plain, kind) -> None:
    texts = [SHORT, LONG, MIDDLE]
    with model.trace() as tracer:
        logits = []
        for text in texts:
            with tracer.invoke(text):
                logits.append(model.output.logits)
        with tracer.invoke():
            together = model.output.logits
    for text, got in zip(texts, logits):
        assert got.shape[:2] == (1, len(ids(LONG)))
        torch.testing.assert_close(got[:, -len(ids(text)) :], alone(plain, text), **ROUNDING)
    assert torch.equal(together, torch.cat(logits))


def test_a_list_of_prompts_gets_what_they_get_alone(model, plain) -> None:
    with model.trace([LONG, SHORT]):
        logits = model.output.logits
    torch.testing.assert_close(logits[:1], alone(plain, LONG), **ROUNDING)
    torch.testing.assert_close(logits[1:, -2:], alone(plain, SHORT), **ROUNDING)


def test_an_edit_changes_the_rows_of_its_invoke_only(model, plain, kind) -> None:
    def half(module: Any, given: Any, output: Any) -> Any:
        return (output[0] / 2, *output[1:]) if isinstance(output, tuple) else output / 2

    handle = plain.get_submodule(LAYERS[kind])[0].register_forward_hook(half)
    changed = alone(plain, SHORT)
    handle.remove()
    with model.trace() as tracer:
        with tracer.invoke(SHORT):
            block = blocks(model, kind)[0]
            block.output = half(None, None, block.output)
            edited = model.output.logits
        with tracer.invoke(LONG):
            other = model.output.logits
        with tracer.invoke(SHORT):
            hidden(blocks(model, kind)[0].output).div_(2)
            in_place = model.output.logits
    torch.testing.assert_close(edited[:, -2:], changed, **ROUNDING)
    torch.testing.assert_close(in_place[:, -2:], changed, **ROUNDING)
    torch.testing.assert_close(other, alone(plain, LONG), **ROUNDING)
    assert not torch.allclose(changed, alone(plain, SHORT), atol=1e-2)


def test_a_value_of_one_invoke_goes_into_another(model, plain, kind) -> None:
    swapped = ["the cat sat", "a dog ran"]
    with model.trace() as tracer:
        with tracer.invoke(swapped[0]):
            taken = hidden(blocks(model, kind)[1].output)
            first = model.output.logits
        with tracer.invoke(swapped[1]):
            hidden(blocks(model, kind)[1].output)[:] = taken
            second = model.output.logits
    # The last block's output decides the logits, so the second row's become the first's.
    torch.testing.assert_close(second, first, **ROUNDING)
    torch.testing.assert_close(first, alone(plain, swapped[0]), **ROUNDING)


def test_positions_that_are_one_dimensional_are_no_rows(gpt2) -> None:
    # Two invokes of two tokens: a value [positions] has the size of the batch, and belongs to no row.
    with gpt2.trace() as tracer:
        with tracer.invoke("the cat", position_ids=[0, 1]):
            mine = gpt2.transformer.inputs[1]["position_ids"]
        with tracer.invoke("a dog", position_ids=[1, 0]):
            other = gpt2.transformer.inputs[1]["position_ids"]
    assert mine.tolist() == [[0, 1]] and other.tolist() == [[1, 0]]


def test_gradients_reach_an_early_layer(model, plain, kind) -> None:
    kept = []
    handle = plain.get_submodule(LAYERS[kind])[0].register_forward_hook(
        lambda m, i, output: (hidden(output).retain_grad(), kept.append(hidden(output)))[-1]
    )
    plain(torch.tensor([ids(LONG)])).logits[0, -1].max().backward()
    handle.remove()
    plain.zero_grad()
    with model.trace(LONG):
        early = hidden(blocks(model, kind)[0].output)
        loss = model.output.logits[0, -1].max()
        with loss.backward():
            grad = early.grad
    model._module.zero_grad()
    torch.testing.assert_close(grad, kept[0].grad, **ROUNDING)


def test_a_scan_needs_no_weights_and_knows_the_shapes(folder, kind) -> None:
    lazy = nnsight.LanguageModel(folder)
    with lazy.scan(LONG, use_cache=False):
        block = hidden(blocks(lazy, kind)[0].output).shape
        logits = lazy.output.logits.shape
    assert not lazy.dispatched and {p.device.type for p in lazy._module.parameters()} == {"meta"}
    assert block == (1, len(ids(LONG)), 32) and logits[:2] == (1, len(ids(LONG)))


def test_a_scan_of_a_padded_batch(gpt2_folder) -> None:
    lazy = nnsight.LanguageModel(gpt2_folder)
    with lazy.scan([SHORT, LONG]):
        shape = lazy.transformer.h[0].output.shape
    assert tuple(shape) == (2, len(ids(LONG)), 32)


def test_a_cache_keeps_every_layer(gpt2, plain_gpt2) -> None:
    with torch.no_grad():
        want = plain_gpt2(torch.tensor([ids(LONG)]), output_hidden_states=True).hidden_states
    with gpt2.trace(LONG) as tracer:
        cache = tracer.cache(modules=[f"transformer.h.{n}" for n in range(2)], include_inputs=True)
    torch.testing.assert_close(cache["transformer.h.0"].input, want[0], **ROUNDING)
    torch.testing.assert_close(hidden(cache.model.transformer.h[0].output), want[1], **ROUNDING)


def test_hidden_states_can_be_asked_of_transformers(gpt2, plain_gpt2) -> None:
    with gpt2.trace(LONG, output_hidden_states=True) as tracer:
        result = tracer.result
    with torch.no_grad():
        want = plain_gpt2(torch.tensor([ids(LONG)]), output_hidden_states=True).hidden_states
    assert len(result.hidden_states) == len(want) == 3
    torch.testing.assert_close(result.hidden_states[1], want[1], **ROUNDING)


def test_labels_give_a_loss(gpt2, plain_gpt2) -> None:
    tokens = torch.tensor([ids(LONG)])
    with gpt2.trace(LONG, labels=tokens) as tracer:
        loss = tracer.result.loss
    with torch.no_grad():
        torch.testing.assert_close(loss, plain_gpt2(tokens, labels=tokens).loss, **ROUNDING)


def test_names_of_our_own_for_its_modules(gpt2_folder, plain_gpt2) -> None:
    model = nnsight.LanguageModel(gpt2_folder, rename={"transformer.h": "layers", "mlp": ["ffn", "feedforward"]})
    with model.trace(LONG):
        ffn = model.layers[0].ffn.output
    assert model.layers[0].feedforward._module is model.transformer.h[0].mlp._module
    seen = []
    handle = plain_gpt2.transformer.h[0].mlp.register_forward_hook(lambda m, i, o: seen.append(o))
    alone(plain_gpt2, LONG)
    handle.remove()
    torch.testing.assert_close(ffn, seen[0], **ROUNDING)


def test_a_ready_module_with_its_tokenizer(plain_gpt2, gpt2) -> None:
    model = nnsight.LanguageModel(plain_gpt2, tokenizer=gpt2.tokenizer)
    assert model.dispatched and model._model is plain_gpt2 and model.config is plain_gpt2.config
    with model.trace(SHORT):
        logits = model.output.logits
    torch.testing.assert_close(logits, alone(plain_gpt2, SHORT), **ROUNDING)


def test_options_for_loading_a_ready_module_are_said_to_change_nothing(plain_gpt2) -> None:
    with pytest.warns(nnsight.NNsightWarning, match="device_map, attn_implementation"):
        nnsight.LanguageModel(plain_gpt2, device_map="cpu", attn_implementation="eager", trust_remote_code=True)


@pytest.mark.parametrize(
    "again", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))], ids=["copy", "pickle"]
)
def test_a_copy_is_a_model_of_its_own(gpt2_folder, plain_gpt2, again) -> None:
    lazy = again(nnsight.LanguageModel(gpt2_folder))
    assert not lazy.dispatched
    with lazy.trace(SHORT):
        logits = lazy.output.logits
    torch.testing.assert_close(logits, alone(plain_gpt2, SHORT), **ROUNDING)
    other = again(lazy)
    assert other.dispatched and other._module is not lazy._module and other.tokenizer.pad_token == "<pad>"
    with other.trace(SHORT):
        other.transformer.h[0].output.zero_()
        changed = other.output.logits
    with lazy.trace(SHORT):
        still = lazy.output.logits
    assert torch.equal(still, logits) and not torch.allclose(changed, logits)


def test_the_module_is_left_as_it_was(gpt2) -> None:
    def state() -> dict[str, Any]:
        return {name: (set(part.__dict__), len(part._forward_hooks)) for name, part in gpt2._module.named_modules()}

    gpt2.dispatch()._module.generate(torch.tensor([ids(SHORT)]), max_new_tokens=2)  # which leaves its own notes
    before = state()
    with gpt2.trace(LONG):
        gpt2.transformer.h[0].output
    with gpt2.generate(SHORT, max_new_tokens=2):
        gpt2.generator.output
    assert state() == before and not any("forward" in names for names, _ in before.values())
