"""Attention probabilities: what is read is what transformers returns, and what is written is multiplied with the values."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from nnsight import LanguageModel
from nnsight_hf.oracle import zoo
from nnsight_hf.standard import AbsentNameError

PROMPT, OTHER = zoo.tokens(6), zoo.tokens(4)
CLOSE = {"rtol": 1e-3, "atol": 1e-5}

#: By where the weights lie: in a function that the forward calls by another name, in a method, in a dropout, in the forward.
KINDS = [
    "llama",
    "gpt2",
    "gemma2",
    "gptj",
    "bloom",
    "gpt_neo",
    "gpt_neox_japanese",
    "mpt",
    "opt",
    "mixtral",
    "qwen3_next",
]


@pytest.fixture(scope="module", params=KINDS)
def names(request: pytest.FixtureRequest) -> Any:
    module: Any = zoo.module(request.param)
    module.set_attn_implementation("eager")
    return LanguageModel(module).standard


def weighed(monkeypatch: pytest.MonkeyPatch, module: Any, layer: int, change: Any) -> torch.Tensor:
    """The logits of transformers alone, where the softmax of one attention gives something else."""
    softmax, calls = torch.nn.functional.softmax, iter(range(1000))

    def other(given: Any, *args: Any, **kwargs: Any) -> Any:
        result = softmax(given, *args, **kwargs)
        attends = given.dim() == 4 and given.shape[-1] == given.shape[-2]
        return change(result) if attends and next(calls) == layer else result

    with monkeypatch.context() as patch, torch.no_grad():
        patch.setattr(torch.nn.functional, "softmax", other)
        patch.setattr(torch, "softmax", other)
        return module(torch.tensor([PROMPT])).logits


def attending(names: Any) -> list[int]:
    return [at for at, kind in enumerate(names.mixers) if kind == "attention"]


def test_what_is_read_is_what_transformers_returns(names) -> None:
    with torch.no_grad():
        want = names.model._module(torch.tensor([PROMPT]), output_attentions=True).attentions
    got = {}
    with torch.no_grad(), names.trace(PROMPT):
        for at in attending(names):
            got[at] = names.attention_probabilities[at].clone()
    assert len(want) in (len(got), len(names.layers))
    for (at, weights), right in zip(got.items(), want[-len(got) :]):
        assert weights.shape == (1, names.num_heads, 6, 6), at
        torch.testing.assert_close(weights, right)
        torch.testing.assert_close(weights.sum(-1), torch.ones(1, names.num_heads, 6))


def test_what_is_written_is_multiplied_with_the_values(names, monkeypatch: pytest.MonkeyPatch) -> None:
    ramp = torch.linspace(0.2, 1, 6)
    last = attending(names)[-1]
    want = weighed(monkeypatch, names.model._module, len(attending(names)) - 1, lambda weights: weights * ramp)
    with torch.no_grad(), names.trace(PROMPT):
        names.attention_probabilities[last] = names.attention_probabilities[last] * ramp
        assigned = names.logits
    with torch.no_grad(), names.trace(PROMPT):
        names.attention_probabilities[last].mul_(ramp)
        in_place = names.logits
    with torch.no_grad():
        usual = names.model._module(torch.tensor([PROMPT])).logits
    assert not torch.allclose(want, usual, atol=1e-4)
    torch.testing.assert_close(assigned, want, **CLOSE)
    torch.testing.assert_close(in_place, want, **CLOSE)


def test_without_probabilities_attention_adds_only_its_bias() -> None:
    module: Any = zoo.module("llama")
    module.set_attn_implementation("eager")
    names = LanguageModel(module).standard
    with torch.no_grad(), names.trace(PROMPT):
        names.attention_probabilities[0] = torch.zeros_like(names.attention_probabilities[0])
        nothing = names.attentions_output[0].clone()
    assert not nothing.any()


def test_one_head_is_ablated_as_by_hand() -> None:
    module: Any = zoo.module("gpt2")
    module.set_attn_implementation("eager")
    names = LanguageModel(module).standard
    with torch.no_grad(), names.trace(PROMPT):
        names.attention_probabilities[1][:, 2] = 0
        got = names.logits

    def without(part: Any, args: Any) -> Any:
        heads = args[0].unflatten(-1, (4, -1)).clone()
        heads[:, :, 2] = 0
        return (heads.flatten(-2),)

    handle = module.transformer.h[1].attn.c_proj.register_forward_pre_hook(without)
    with torch.no_grad():
        want = module(torch.tensor([PROMPT])).logits
    handle.remove()
    torch.testing.assert_close(got, want, **CLOSE)


def test_after_another_value_of_the_same_attention() -> None:
    module: Any = zoo.module("llama")
    module.set_attn_implementation("eager")
    names = LanguageModel(module).standard
    with torch.no_grad():
        want = module(torch.tensor([PROMPT]), output_attentions=True).attentions[0]
    with torch.no_grad(), names.trace(PROMPT):
        taken = names.attentions_input[0].clone()
        weights = names.attention_probabilities[0].clone()
        added = names.attentions_output[0].clone()
    assert taken.shape == added.shape == (1, 6, 32)
    torch.testing.assert_close(weights, want)


def test_in_invokes_and_steps() -> None:
    module: Any = zoo.module("llama")
    module.set_attn_implementation("eager")
    names = LanguageModel(module).standard
    with torch.no_grad(), names.trace(OTHER):
        usual = names.logits
    with torch.no_grad(), names.trace(PROMPT):
        names.attention_probabilities[1] = names.attention_probabilities[1] * 0.5
        want = names.logits
    with torch.no_grad(), names.trace() as tracer:
        with tracer.invoke(PROMPT):
            names.attention_probabilities[1] = names.attention_probabilities[1] * 0.5
            got = names.logits
        with tracer.invoke(OTHER):
            shape = names.attention_probabilities[1].shape
            other = names.logits
    assert shape == (1, 4, 6, 6)
    torch.testing.assert_close(got, want, **CLOSE)
    torch.testing.assert_close(other[:, -4:], usual, **CLOSE)
    with names.generate(PROMPT, max_new_tokens=3, min_new_tokens=3, do_sample=False, pad_token_id=0) as tracer:
        shapes = [tuple(names.attention_probabilities[0].shape) for _ in tracer.iter[:]]
    assert shapes == [(1, 4, 6, 6), (1, 4, 1, 7), (1, 4, 1, 8)]


def test_where_they_are_not_computed_they_are_absent() -> None:
    module: Any = zoo.module("llama")
    model = LanguageModel(module)
    with pytest.raises(AbsentNameError, match="attn_implementation='eager'"), model.trace(PROMPT):
        model.standard.attention_probabilities[0]
    module.set_attn_implementation("eager")
    assert 0 not in model.standard.attention_probabilities.absent
    module.set_attn_implementation("sdpa")
    assert 0 in model.standard.attention_probabilities.absent


def test_a_layer_without_attention_has_none_in_any_implementation() -> None:
    module: Any = zoo.module("qwen3_next")
    module.set_attn_implementation("eager")
    names = LanguageModel(module).standard
    with pytest.raises(AbsentNameError, match="no attention.*Qwen3NextGatedDeltaNet"):
        names.attention_probabilities[0]
