"""How rows lie in values is found out and not guessed: sizes that happen to be the number of rows say nothing."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from nnsight import LanguageModel, RowsError
from nnsight.plugin import leaves
from nnsight_hf.oracle import zoo
from nnsight_hf.padding import side
from nnsight_hf.rows import ProbedLayout, probe

#: Four rows, because the tiny models have four heads and four experts; two of them four tokens long.
PROMPTS = [zoo.tokens(4), zoo.tokens(7), zoo.tokens(4, seed=1), zoo.tokens(5)]


def first_of(value: Any) -> torch.Tensor:
    return leaves(value)[0]


def model(architecture: str) -> Any:
    return LanguageModel(zoo.module(architecture))


def alone(model: Any, prompt: list[int], path: str) -> torch.Tensor:
    with torch.no_grad(), model.trace(prompt):
        value = first_of(model.get(path).output)
    return value


def among(model: Any, path: str) -> list[torch.Tensor]:
    got = []
    with torch.no_grad(), model.trace() as tracer:
        for prompt in PROMPTS:
            with tracer.invoke(prompt):
                got.append(first_of(model.get(path).output))
    return got


@pytest.mark.parametrize(
    ("architecture", "path"),
    [
        ("mixtral", "model.layers.0.mlp.gate"),
        ("mixtral", "model.layers.1.mlp.experts"),
        ("qwen3_moe", "model.layers.0.mlp.gate"),
        ("gpt_oss", "model.layers.0.mlp.router"),
        ("dbrx", "transformer.blocks.0.ffn.router"),
    ],
)
def test_a_router_gives_an_invoke_its_own_tokens(architecture: str, path: str) -> None:
    lm = model(architecture)
    longest = max(map(len, PROMPTS))
    for prompt, got in zip(PROMPTS, among(lm, path), strict=True):
        assert got.shape[0] == longest, "the tokens of one row, with its padding"
        torch.testing.assert_close(got[-len(prompt) :], alone(lm, prompt, path), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("architecture", "path"),
    [
        ("mixtral", "model.layers.0.mlp.experts.act_fn"),  # sorted by expert
        ("zaya", "model.layers.1.mlp.experts.act_fn"),  # the same, with one expert for a token
        ("llama4_text", "model.layers.0.feed_forward.experts"),  # once for each expert
        ("dbrx", "transformer.blocks.0.ffn.experts.mlp"),  # those of one expert alone
    ],
)
def test_tokens_in_an_order_of_the_experts_are_no_rows(architecture: str, path: str) -> None:
    lm = model(architecture)
    values = among(lm, path)
    with torch.no_grad(), lm.trace(inputs_of(lm)):
        whole = first_of(lm.get(path).output)
    for value in values:
        torch.testing.assert_close(value, whole, rtol=1e-4, atol=1e-4)
    with pytest.raises(RowsError, match="carries no rows"), torch.no_grad(), lm.trace() as tracer:
        with tracer.invoke(PROMPTS[0]):
            first_of(lm.get(path).output)[:] = 0
        with tracer.invoke(PROMPTS[1]):
            logits = lm.output.logits


def inputs_of(lm: Any) -> dict[str, torch.Tensor]:
    """The batch of all prompts, padded on the left by hand."""
    longest = max(map(len, PROMPTS))
    missing = [longest - len(prompt) for prompt in PROMPTS]
    return {
        "input_ids": torch.tensor([[0] * pad + prompt for pad, prompt in zip(missing, PROMPTS)]),
        "attention_mask": torch.tensor([[0] * pad + [1] * (longest - pad) for pad in missing]),
    }


def test_relies_on_the_mark_of_experts_that_sort() -> None:
    lm = model("mixtral")
    assert hasattr(type(lm._model.model.layers[0].mlp.experts), "_apply_gate")
    assert not hasattr(type(lm._model.model.layers[0].mlp), "_apply_gate")


def test_an_edit_of_a_router_leaves_the_other_rows_alone() -> None:
    lm = model("mixtral")
    gate = lm.model.layers[0].mlp.gate
    want = []
    for prompt in PROMPTS[:2]:
        with torch.no_grad(), lm.trace(prompt):
            if prompt is PROMPTS[0]:
                gate.output[1][:] = 0  # how much each expert counts
            want.append(lm.output.logits)
    with torch.no_grad(), lm.trace() as tracer:
        with tracer.invoke(PROMPTS[0]):
            gate.output[1][:] = 0
            edited = lm.output.logits
        with tracer.invoke(PROMPTS[1]):
            other = lm.output.logits
    torch.testing.assert_close(edited[:, -len(PROMPTS[0]) :], want[0], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(other, want[1], rtol=1e-4, atol=1e-4)


def test_as_many_heads_as_rows_are_no_rows() -> None:
    lm = model("mpt")
    heads = lm.config.n_heads
    assert heads == len(PROMPTS)
    biases = []
    with torch.no_grad(), lm.trace() as tracer:
        for prompt in PROMPTS:
            with tracer.invoke(prompt):
                biases.append(lm.transformer.blocks[0].attn.inputs[1]["position_bias"])
    assert all(bias.shape[0] == heads for bias in biases), "every invoke sees the bias of all heads"


def test_what_carries_no_rows_is_guarded() -> None:
    lm = model("mpt")
    with pytest.raises(RowsError, match="carries no rows"), torch.no_grad(), lm.trace() as tracer:
        with tracer.invoke(PROMPTS[0]):
            lm.transformer.blocks[0].attn.inputs[1]["position_bias"][:] = 0
        with tracer.invoke(PROMPTS[1]):
            logits = lm.output.logits


def test_rows_along_another_dimension_than_the_first() -> None:
    xlnet = model("xlnet")  # positions come first
    for prompt, got in zip(PROMPTS, among(xlnet, "transformer.layer.0"), strict=True):
        own = alone(xlnet, prompt, "transformer.layer.0")
        assert got.shape == (7, 1, 32)
        torch.testing.assert_close(got[-len(prompt) :], own, rtol=1e-4, atol=1e-4)
    gemma = model("gemma3n_text")  # streams come first, and there are four of them
    for prompt, got in zip(PROMPTS, among(gemma, "model.layers.0"), strict=True):
        own = alone(gemma, prompt, "model.layers.0")
        torch.testing.assert_close(got[:, :, -len(prompt) :], own, rtol=1e-4, atol=1e-4)


def test_an_edit_along_another_dimension_is_put_where_it_belongs() -> None:
    lm = model("gemma3n_text")
    layer = lm.model.layers[1]
    with torch.no_grad(), lm.trace(PROMPTS[2]):
        layer.output = layer.output * 0.5
        want = lm.output.logits
    with torch.no_grad(), lm.trace() as tracer:
        with tracer.invoke(PROMPTS[1]):
            untouched = lm.output.logits
        with tracer.invoke(PROMPTS[2]):
            layer.output = layer.output * 0.5
            got = lm.output.logits
    torch.testing.assert_close(got[:, -4:], want, rtol=1e-4, atol=1e-4)
    with torch.no_grad(), lm.trace(PROMPTS[1]):
        logits = lm.output.logits
    torch.testing.assert_close(untouched, logits, rtol=1e-4, atol=1e-4)


def test_a_table_of_positions_as_long_as_there_are_rows() -> None:
    prompts = [zoo.tokens(2), zoo.tokens(2, seed=1)]
    lm = model("gpt2")
    tables = []
    with torch.no_grad(), lm.trace() as tracer:
        for prompt in prompts:
            with tracer.invoke(prompt):
                tables.append(lm.transformer.wpe.output)
    assert [table.shape for table in tables] == [(1, 2, 32)] * 2, "one for all, shared"


def test_a_model_is_probed_once_and_runs_of_one_input_never(monkeypatch: pytest.MonkeyPatch) -> None:
    import nnsight_hf.language as language

    probed = []
    monkeypatch.setattr(language, "probe", lambda model: probed.append(model) or probe(model))
    lm = model("llama")
    with lm.trace(PROMPTS[0]):
        logits = lm.output.logits
    assert not probed
    for _ in range(2):
        among(lm, "model.layers.0")
    assert len(probed) == 1


def test_probing_leaves_a_model_as_it_was() -> None:
    lm = model("mixtral")
    before = {name: value.clone() for name, value in lm._model.state_dict().items()}
    implementation = lm._model.config._experts_implementation
    state = torch.get_rng_state()
    probe(lm)
    assert torch.equal(state, torch.get_rng_state()) and lm._model.config._experts_implementation == implementation
    assert all(torch.equal(value, lm._model.state_dict()[name]) for name, value in before.items())
    assert not any("forward" in part.__dict__ for part in lm._model.modules())


def test_a_model_that_was_settled_is_probed_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    import nnsight_hf.language as language

    lm = LanguageModel("nnsight/toy-landmarks", dispatch=True)
    lm._settle()
    monkeypatch.setattr(language, "probe", None)
    monkeypatch.setattr(language, "resolve", None)
    with lm.trace() as tracer:
        with tracer.invoke("The Eiffel Tower"):
            first = lm.lm_head.output
        with tracer.invoke("The"):
            second = lm.lm_head.output
    assert first.shape[0] == second.shape[0] == 1 and lm.standard.layers_output is not None


def test_a_librarys_own_preparing_is_not_probed() -> None:
    class Library(LanguageModel):
        def _prepare_input(self, *given: Any, **kwargs: Any) -> Any:
            prepared.append(given)
            return super()._prepare_input(*given, **kwargs)

    prepared: list[Any] = []
    lm = Library(zoo.module("llama"))
    assert "model.model.layers.0" in probe(lm) and not prepared
    among(lm, "model.layers.0")
    assert len(prepared) == len(PROMPTS)


def test_stored_edits_are_not_probed() -> None:
    lm = model("llama")
    with lm.edit(inplace=True):
        lm.model.layers[0].output = lm.model.layers[0].output[:1]  # wrong for a batch, and none of probing's business
    assert "model.model.layers.0" in probe(lm)


def test_a_stated_multiple_of_the_rows() -> None:
    layout = ProbedLayout(2, (1, 3), {}, ("result",))
    value = torch.arange(12).view(6, 2)
    assert layout.take(value, (1, 1), "x").tolist() == value[3:].tolist()
    assert layout.take(torch.zeros(4, 2), (1, 1), "x") is None and layout.take(torch.zeros(6), (0, 1), "x") is None
    assert layout.take(torch.arange(6), (1, 1), "result").tolist() == [3, 4, 5]
    joined = layout.join(value, {(0, 1): torch.zeros(3, 2, dtype=torch.long)}, "x")
    assert joined.tolist() == [[0, 0]] * 3 + value[3:].tolist()


@pytest.mark.parametrize("architecture", ["bart", "rwkv", "recurrent_gemma", "roberta", "bloom", "mamba"])
def test_padding_lies_where_it_does_no_harm(architecture: str) -> None:
    lm = model(architecture)
    got = []
    with torch.no_grad(), lm.trace() as tracer:
        for prompt in PROMPTS:
            with tracer.invoke(prompt):
                got.append(lm.output.logits)
    for prompt, logits in zip(PROMPTS, got, strict=True):
        with torch.no_grad():
            want = lm._model(torch.tensor([prompt])).logits
        own = logits[:, -len(prompt) :] if side(lm._model) == "left" else logits[:, : len(prompt)]
        torch.testing.assert_close(own, want, rtol=1e-3, atol=1e-3)


def test_a_generation_whose_states_would_be_mixed_up_is_refused() -> None:
    lm = model("rwkv")
    with pytest.raises(RowsError, match="mixes up the states.*each in a run of its own"):
        lm.generate([PROMPTS[0], PROMPTS[2]], max_new_tokens=2)
    assert lm.generate(PROMPTS[0], max_new_tokens=2).shape[0] == 1


@pytest.mark.parametrize("architecture", ["bart", "recurrent_gemma", "xlnet"])
def test_a_generation_that_padding_would_spoil_is_refused(architecture: str) -> None:
    lm = model(architecture)
    with pytest.raises(RowsError, match=r"Generate from each in a run of its own"):
        with lm.generate(max_new_tokens=2) as tracer:
            for prompt in PROMPTS[:2]:
                with tracer.invoke(prompt):
                    result = tracer.result
    with pytest.raises(RowsError, match="Generate from each"):
        lm.generate(PROMPTS[:2], max_new_tokens=2)


def test_a_model_that_cannot_tell_padding_from_text_takes_one_length() -> None:
    lm = model("prophetnet")
    with pytest.raises(RowsError, match="no way to tell padding from text.*Trace each"):
        lm.trace(PROMPTS[:2], trace=False)
    assert lm.trace([PROMPTS[0], PROMPTS[2]], trace=False).logits.shape[:2] == (2, 4)
