"""Standard names over a toy decoder, as somebody writes them who brings a family: values are those of plain hooks."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from nnsight import AbsentNameError, NNsight, NNsightError
from nnsight.plugin import decode_request, decode_results, encode_request, encode_results, standard
from nnsight.testing import Hooked, Transformer, assert_alike, seeded

IDS = torch.tensor([[3, 1, 4, 1], [5, 9, 2, 6]])


class Names(standard.StandardNames):
    """A toy decoder under standard names; a value lies at the output of a module, or at its input."""

    def _serve(self, name: str, where: Any, block: Any) -> standard.Value:
        return standard.Value(name, self.model.get(where.path), site=where.site)

    def _logits_of(self, model: Any) -> standard.Value:
        return standard.Value("logits", model)

    def project_on_vocab(self, states: torch.Tensor) -> torch.Tensor:
        return self.lm_head._module(self.ln_final._module(states))

    @property
    def num_heads(self) -> int:
        return self.model._module.layers[0].heads

    @property
    def vocab_size(self) -> int:
        return self.model._module.head.out_features


def block(path: str) -> standard.Block:
    parts = {"self_attn": f"{path}.proj", "mlp": f"{path}.mlp"}
    where = {
        "layers_input": standard.Spot(path, "input"),
        "attentions_output": standard.Spot(parts["self_attn"]),
        "mixers_output": standard.Spot(parts["self_attn"]),
        "mlps_input": standard.Spot(parts["mlp"], "input"),
        "mlps_output": standard.Spot(parts["mlp"]),
        "layers_output": standard.Spot(path),
    }
    return standard.Block(path, where, {"mixers_input": "three modules take it"}, parts, "attention")


def resolution(depth: int = 3) -> standard.Resolution:
    blocks = [block(f"layers.{at}") for at in range(depth)]
    absent = {"attention_probabilities": "they are never computed"}
    return standard.Resolution(8, "embed", "norm", "head", blocks, absent)


@pytest.fixture
def names() -> Any:
    return Names(NNsight(seeded(Transformer, depth=3)), resolution())


def plain(names: Any, **edits: Any) -> Hooked:
    module = names.model._module
    changes = {path.replace("__", "."): edit for path, edit in edits.items()}
    return Hooked(module, lambda: module(IDS), edits=changes)


def test_values_are_those_of_the_modules(names: Any) -> None:
    with torch.no_grad(), names.trace(IDS):
        embeddings = names.token_embeddings
        seen = {}
        for at in range(names.num_layers):
            for name in ("layers_input", "attentions_output", "mlps_input", "mlps_output", "layers_output"):
                seen[name, at] = getattr(names, name)[at]
        lens = names.project_on_vocab(names.layers_output[-1])
        logits = names.logits
    want = plain(names)
    assert_alike(embeddings, want["embed"])
    for at in range(3):
        (given,), _ = want.inputs[f"layers.{at}"][0]
        assert_alike(seen["layers_input", at], given)
        assert_alike(seen["attentions_output", at], want[f"layers.{at}.proj"])
        assert_alike(seen["mlps_input", at], want[f"layers.{at}.mlp_norm"])
        assert_alike(seen["layers_output", at], want[f"layers.{at}"])
        total = seen["layers_input", at] + seen["attentions_output", at] + seen["mlps_output", at]
        assert_alike(total, want[f"layers.{at}"])
    assert_alike(logits, want.result)
    assert_alike(lens, want.result)


def test_what_is_assigned_is_what_the_model_goes_on_with(names: Any) -> None:
    with torch.no_grad(), names.trace(IDS):
        names.token_embeddings = names.token_embeddings * 2
        names.mlps_output[1] = names.mlps_output[1] * 0
        names.layers[2].output = names.layers[2].output + 1
        logits = names.logits
        names.logits = logits * 2
        doubled = names.model.output
    want = plain(
        names,
        embed=lambda output, visit: output * 2,
        layers__1__mlp=lambda output, visit: output * 0,
        layers__2=lambda output, visit: output + 1,
    )
    assert_alike(logits, want.result)
    assert_alike(doubled, want.result * 2)


def test_an_assigned_input_and_an_edit_in_place(names: Any) -> None:
    with torch.no_grad(), names.trace(IDS):
        names.layers_input[1] = names.layers_input[1] * 0.5
        names.layers_output[1][:, -1] = 0
        logits = names.logits

    def last(output: torch.Tensor, visit: int) -> torch.Tensor:
        output = output.clone()
        output[:, -1] = 0
        return output

    want = plain(names, layers__0=lambda output, visit: output * 0.5, layers__1=last)
    assert_alike(logits, want.result)


def test_invokes_have_their_own_rows(names: Any) -> None:
    with torch.no_grad(), names.trace() as tracer:
        with tracer.invoke(IDS[:1]):
            names.layers_output[0] = names.layers_output[0] * 0
            cut = names.logits
        with tracer.invoke(IDS[1:]):
            whole = names.next_token_probs
    assert_alike(cut, plain(names, layers__0=lambda output, visit: output * 0).result[:1])
    assert_alike(whole, plain(names).result[1:, -1].softmax(-1))


def test_steering_adds_a_vector_where_it_is_asked_to(names: Any) -> None:
    vector = torch.linspace(-1, 1, 8)
    with torch.no_grad(), names.trace(IDS):
        names.steer([0, 1], vector, factor=2)
        names.steer(2, vector, positions=-1)
        logits = names.logits

    def last(output: torch.Tensor, visit: int) -> torch.Tensor:
        return torch.cat([output[:, :-1], output[:, -1:] + vector], 1)

    def everywhere(output: torch.Tensor, visit: int) -> torch.Tensor:
        return output + 2 * vector

    want = plain(names, layers__0=everywhere, layers__1=everywhere, layers__2=last)
    assert_alike(logits, want.result)


def test_layers_that_are_skipped_do_not_run(names: Any) -> None:
    with torch.no_grad(), names.trace(IDS):
        start = names.layers_input[1]
        names.skip_layers(1, 2)
        end = names.ln_final.input
    assert torch.equal(start, end)
    with pytest.raises(IndexError, match="no range of layers of this model, which has 3"):
        names.skip_layers(1, 3)


def test_a_layer_is_its_envoy_with_parts_by_their_standard_names(names: Any) -> None:
    layer = names.layers[1]
    module = names.model._module.layers[1]
    assert layer._module is module and layer.mlp._module is module.mlp and layer.self_attn._module is module.proj
    with pytest.raises(AbsentNameError, match=r"`layers\[1\].mixer`.*no single module that is its mixing of positions"):
        layer.mixer  # noqa: B018
    assert names.embed_tokens._module is names.model._module.embed and names.mixers == ["attention"] * 3
    assert names.hidden_size == 8 and names.num_heads == 2 and names.vocab_size == 17


def test_what_is_absent_says_why_and_is_ours_and_an_attribute_error(names: Any) -> None:
    with pytest.raises(
        AbsentNameError, match=r"`attention_probabilities\[2\]`.*in Transformer: they are never"
    ) as caught:
        names.attention_probabilities[-1]
    assert isinstance(caught.value, NNsightError) and isinstance(caught.value, AttributeError)
    with pytest.raises(AbsentNameError, match=r"`mixers_input\[0\]`.*three modules take it"):
        names.mixers_input[0]
    with pytest.raises(AbsentNameError, match=r"`attentions_input\[1\]`.*it was not found"):
        names.attentions_input[1] = IDS
    bare = Names(names.model, standard.Resolution(8, absent={"layers": "there are none", "ln_final": "it has no norm"}))
    with pytest.raises(AbsentNameError, match="`layers` .*there are none"):
        bare.layers  # noqa: B018
    with pytest.raises(AbsentNameError, match="`ln_final` .*it has no norm"):
        bare.ln_final  # noqa: B018


def test_wrong_indices(names: Any) -> None:
    with pytest.raises(IndexError, match=r"`layers_output\[3\]`: the model has 3 layers"):
        names.layers_output[3]
    with pytest.raises(TypeError, match="indexed with the number of a layer, not with 'x'"):
        names.layers_output["x"]
    with pytest.raises(AttributeError, match="index it with the number of a layer"):
        names.layers_output = IDS
    with torch.no_grad(), names.trace(IDS):
        slices = names.layers_output[1:]
    assert len(slices) == 2
    with torch.no_grad(), names.trace(IDS):
        each = list(names.layers_output)
    assert len(each) == 3 and torch.equal(each[-1], slices[-1])


def test_printed_it_says_where_each_name_lies_and_why_one_does_not(names: Any) -> None:
    text = repr(names)
    assert "mlps_output[0..2]" in text and "model.layers.i.mlp.output" in text
    assert "mlps_input[0..2]" in text and "model.layers.i.mlp.input" in text
    assert "positions are mixed by attention" in text and "mixers_input: three modules take it" in text
    assert "[rows, positions, hidden]" in repr(names.layers_output)
    assert "absent in layers [0, 1, 2]" in repr(names.mixers_input)


def test_the_rest_is_the_models_own(names: Any) -> None:
    assert names.head is names.model.head
    names.noted = 3
    assert names.model.noted == 3
    with pytest.raises(AttributeError):
        names.nothing_of_the_kind  # noqa: B018


def test_every_value_has_a_meaning_and_a_shape() -> None:
    assert set(standard.VALUES) == {
        name for name, kind in standard.StandardNames.__annotations__.items() if kind == "PerLayer"
    }
    for what, shape in standard.VALUES.values():
        assert what and shape.startswith("[rows, ")


class There:
    """Sends each block through bytes to a copy of the model, and what it saved back."""

    def run(self, request: Any) -> dict[str, Any]:
        there = decode_request(encode_request(request), NNsight(copy.deepcopy(request.node._root._module)))
        return decode_results(encode_results(there.replay()))


def test_names_and_layers_go_with_a_block_to_where_it_runs(names: Any) -> None:
    layer, there = names.layers[1], There()
    with names.model.trace(IDS, backend=there):
        names.mlps_output[0] = names.mlps_output[0] * 2
        stream, logits = layer.output.save(), names.logits.save()
    want = plain(names, layers__0__mlp=lambda output, visit: output * 2)
    assert_alike(stream, want["layers.1"])
    assert_alike(logits, want.result)
