"""Standard names: what they resolve to is decided by sums, and what they serve changes the run like a hook would."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch

from nnsight import LanguageModel, NNsightError
from nnsight_hf.oracle import zoo
from nnsight_hf.oracle.checks import check
from nnsight_hf.standard import AbsentNameError
from nnsight_hf.standard.report import lacking

#: By what makes them different: serial, parallel, norms after the parts, the residual inside the parts, multiplied parts,
#: capped logits, scaled logits, experts, rows and positions in one dimension, and layers whose mixers differ.
FAMILIES = [
    "gpt2",
    "llama",
    "gptj",
    "gpt_neox",
    "olmo2",
    "gemma2",
    "bloom",
    "granite",
    "cohere",
    "mixtral",
    "opt",
    "llama4_text",
    "minicpm3",
    "qwen3_next",
]
PROMPT, OTHER = zoo.tokens(6), zoo.tokens(4)
CLOSE = {"rtol": 1e-3, "atol": 1e-3}


def wrapped(architecture: str, **own: Any) -> Any:
    return LanguageModel(zoo.module(architecture), **own)


@pytest.fixture(scope="module", params=FAMILIES)
def names(request: pytest.FixtureRequest) -> Any:
    return wrapped(request.param).standard


def hooked(names: Any, path: str, change: Any) -> torch.Tensor:
    """The logits of a run in which a plain hook changes the first tensor of a module's output."""

    def hook(module: Any, args: Any, output: Any) -> Any:
        return change(output) if isinstance(output, torch.Tensor) else (change(output[0]), *output[1:])

    handle = names.model._module.get_submodule(path).register_forward_hook(hook)
    try:
        return plain(names)
    finally:
        handle.remove()


def plain(names: Any) -> torch.Tensor:
    """The logits that transformers gives."""
    with torch.no_grad():
        return names.model._module(torch.tensor([PROMPT])).logits


def spot(names: Any, name: str, layer: int) -> Any:
    """Where a value was found that lies in one place."""
    (found,) = names.resolution.blocks[layer].where[name]
    return found


def test_the_identities_hold(names) -> None:
    assert check(names.model, "names").kind == "holds"
    assert not lacking(names)


@pytest.mark.parametrize("architecture", ["granite", "bloom", "olmo2"])
def test_what_is_found_is_not_the_nearest_module(architecture: str) -> None:
    names = wrapped(architecture).standard
    block = names.resolution.layers[0]
    expected = {
        "granite": (f"{block}.self_attn", 0.22),
        "bloom": (f"{block}.self_attention.dense", 1.0),
        "olmo2": (f"{block}.post_attention_layernorm", 1.0),
    }[architecture]
    if architecture == "granite":
        expected = (expected[0], names.config.residual_multiplier)
    found = spot(names, "attentions_output", 0)
    assert found.path == expected[0] and found.scale == pytest.approx(expected[1])


def test_a_wrong_sum_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    names = wrapped("llama").standard
    names.mlps_output.values[1] = names.attentions_output.values[1]
    monkeypatch.setattr(type(names.model), "standard", names)
    assert check(names.model, "names").kind == "fails"


@pytest.mark.parametrize("name", ["mixers_output", "mlps_output"])
def test_an_assignment_is_what_a_hook_does(names, name: str) -> None:
    found, value = spot(names, name, 1), getattr(names, name)
    want = hooked(names, found.path, lambda output: output * 0.5 + 0.125 / found.scale)
    with torch.no_grad(), names.trace(PROMPT):
        value[1] = value[1] * 0.5 + 0.125
        logits = names.logits
    torch.testing.assert_close(logits, want, **CLOSE)


@pytest.mark.parametrize("name", ["mixers_input", "mlps_input"])
def test_an_assigned_input_is_what_a_hook_does(names, name: str) -> None:
    found, value = spot(names, name, 1), getattr(names, name)
    module = names.model._module.get_submodule(found.path)

    def half(value: Any) -> Any:
        states = value.dim() == 2 + (not found.flat) and value.shape[-1] == names.hidden_size
        return value * 0.5 + 0.125 if states and value.is_floating_point() else value

    def before(module: Any, args: Any, kwargs: Any) -> Any:
        if args:
            return (half(args[0]), *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": half(kwargs["hidden_states"])}

    if found.site == "input":
        handle = module.register_forward_pre_hook(before, with_kwargs=True)
    else:
        handle = module.register_forward_hook(lambda module, args, output: half(output))
    try:
        want = plain(names)
    finally:
        handle.remove()
    with torch.no_grad(), names.trace(PROMPT):
        assert value[1].shape == (1, 6, names.hidden_size)
        value[1] = value[1] * 0.5 + 0.125
        logits = names.logits
    torch.testing.assert_close(logits, want, **CLOSE)
    assert not torch.allclose(logits, plain(names), **CLOSE)


def test_an_edit_in_place_is_one_too(names) -> None:
    path = names.resolution.layers[0]
    want = hooked(names, path, lambda output: output * 0.5)
    with torch.no_grad(), names.trace(PROMPT):
        names.layers_output[0].mul_(0.5)
        logits = names.logits
    torch.testing.assert_close(logits, want, **CLOSE)
    want = hooked(names, spot(names, "mlps_output", 0).path, lambda output: output * 0.5)
    with torch.no_grad(), names.trace(PROMPT):
        names.mlps_output[0].mul_(0.5)  # a multiplied value is a copy, and is carried back
        logits = names.logits
    torch.testing.assert_close(logits, want, **CLOSE)


def test_invokes_read_and_write_their_own_rows(names) -> None:
    with torch.no_grad(), names.trace(PROMPT):
        names.layers_output[0] = names.layers_output[0] * 0.5
        want = names.logits
    with torch.no_grad(), names.trace() as tracer:
        with tracer.invoke(OTHER):
            stream = names.layers_output[0]
            untouched = names.logits
        with tracer.invoke(PROMPT):
            names.layers_output[0] = names.layers_output[0] * 0.5
            got = names.logits
    assert stream.shape == (1, 6, names.hidden_size)
    torch.testing.assert_close(got, want, **CLOSE)
    with torch.no_grad(), names.trace(OTHER):
        torch.testing.assert_close(untouched[:, -4:], names.logits, **CLOSE)


def test_steps_of_a_generation(names) -> None:
    with names.generate(PROMPT, max_new_tokens=3, min_new_tokens=3, do_sample=False, pad_token_id=0) as tracer:
        shapes = [names.layers_output[1].shape[1] for _ in tracer.iter[:]]
    assert shapes == [6, 1, 1]


def test_the_names_of_modules(names) -> None:
    module = names.model._module
    assert names.embed_tokens._module is module.get_input_embeddings()
    assert names.lm_head._module is module.get_output_embeddings()
    assert len(names.layers) == names.num_layers and names.vocab_size == zoo.VOCABULARY
    with torch.no_grad(), names.trace(PROMPT):
        start = names.layers[0].input
        seen = names.layers[1].output
        names.layers[1].output = seen * 2
        end = names.ln_final.input
    assert start.shape == (1, 6, names.hidden_size)
    torch.testing.assert_close(end, seen * 2, **CLOSE)


def test_next_token_probs_and_the_embeddings() -> None:
    names = wrapped("llama").standard
    with torch.no_grad(), names.trace(PROMPT):
        embeddings = names.token_embeddings
        names.token_embeddings = embeddings * 0
        probs = names.next_token_probs
        names.logits = names.logits * 0
        flat = names.model.output.logits
    with torch.no_grad():
        want = names.model._module(inputs_embeds=embeddings * 0).logits[:, -1].softmax(-1)
    torch.testing.assert_close(probs, want, **CLOSE)
    assert not flat.any()


def test_steering() -> None:
    names = wrapped("llama").standard
    vector = torch.linspace(-1, 1, names.hidden_size)
    want = hooked(names, names.resolution.layers[0], lambda output: output + 2 * vector)
    with torch.no_grad(), names.trace(PROMPT):
        names.steer(0, vector, factor=2)
        logits = names.logits
    torch.testing.assert_close(logits, want, **CLOSE)
    last = torch.zeros(1, 6, 1)
    last[:, -1] = 1
    want = hooked(names, names.resolution.layers[1], lambda output: output + last * vector)
    with torch.no_grad(), names.trace(PROMPT):
        names.steer([1], vector, positions=-1)
        logits = names.logits
    torch.testing.assert_close(logits, want, **CLOSE)


def test_skipping_layers(names) -> None:
    first = names.resolution.layers[0]
    with torch.no_grad(), names.trace(PROMPT):
        stream = names.layers_input[0]
        names.skip_layers(0, names.num_layers - 1)
        end = names.ln_final.input
    torch.testing.assert_close(end, stream, **CLOSE)
    with pytest.raises(IndexError, match="no range of layers"):
        names.skip_layers(1, names.num_layers)


def test_a_name_that_would_be_untrue_is_absent_and_says_why() -> None:
    names = wrapped("bert").standard
    with pytest.raises(AbsentNameError, match=r"attentions_output\[0\].*normalises the sum") as caught:
        names.attentions_output[0]
    assert isinstance(caught.value, NNsightError) and isinstance(caught.value, AttributeError)
    mamba = wrapped("mamba").standard
    with pytest.raises(AbsentNameError, match="no single module that is its attention"):
        mamba.layers[0].self_attn
    assert "positions are mixed not by attention, but by MambaMixer" in repr(mamba)
    with pytest.raises(AbsentNameError, match=r"has no attention.*`backbone.layers.0.mixer`.*`mixers_output`"):
        mamba.attentions_output[0]
    with torch.no_grad(), mamba.trace(PROMPT):
        assert mamba.layers_output[0].shape == (1, 6, 32)
    with pytest.raises(AbsentNameError, match="encoder beside its decoder"):
        import transformers

        LanguageModel(
            transformers.T5Config(d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2, vocab_size=20)
        ).standard


def test_wrong_indices() -> None:
    names = wrapped("llama").standard
    with pytest.raises(IndexError, match=r"`layers_output\[7\]`: the model has 2 layers"):
        names.layers_output[7]
    with pytest.raises(TypeError, match="indexed with the number of a layer"):
        names.layers_output["0"]
    with pytest.raises(AttributeError, match="index it with the number of a layer"):
        names.layers_output = torch.zeros(1)
    with torch.no_grad(), names.trace(PROMPT):
        both = names.layers_output[:]
        assert torch.equal(names.layers_output[-1], both[1])


def test_the_rest_is_the_models_own(tmp_path) -> None:
    names = LanguageModel("nnsight/toy-landmarks").standard
    assert names.tokenizer is names.model.tokenizer and names.config is names.model.config
    text = repr(names)
    assert "mlps_output[0..5]" in text and "model.transformer.h.i.mlp" in text
    with pytest.raises(AttributeError):
        names.nothing_of_the_kind
    again = copy.copy(names.model)
    assert again.standard.model is again
    assert pickle.loads(pickle.dumps(names.model)).standard.num_layers == 6
