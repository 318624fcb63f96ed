"""What a user says about names, and how the identities come out: against sums taken by plain hooks."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch

from nnsight import LanguageModel
from nnsight_hf.oracle import zoo
from nnsight_hf.standard import AbsentNameError

PROMPT = zoo.tokens(6)


class Gated(torch.nn.Module):
    """Two halves of a feed-forward part, of which nothing tells that they belong together."""

    def __init__(self, mlp: Any) -> None:
        super().__init__()
        self.left, self.right = mlp, copy.deepcopy(mlp)
        with torch.no_grad():
            self.right.up_proj.weight.copy_(mlp.up_proj.weight.flip(0))

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return self.left(states) + self.right(states) * 0.5


def test_a_correction_moves_a_name() -> None:
    module = zoo.module("llama")
    for layer in module.model.layers:
        layer.mlp = Gated(layer.mlp)
    model = LanguageModel(module)
    assert [spot.path for spot in model.standard.resolution.blocks[0].where["mlps_output"]] == ["model.layers.0.mlp"]
    names = model.standardize(mlp=["mlp.left", "mlp.right"])
    where = names.resolution.blocks[0].where["mlps_output"]
    assert [(spot.path, spot.scale) for spot in where] == [
        ("model.layers.0.mlp.left", 1.0),
        ("model.layers.0.mlp.right", pytest.approx(0.5)),
    ]
    assert model.standard.identities(PROMPT).hold
    with torch.no_grad(), model.trace(PROMPT):
        added = model.standard.mlps_output[0].clone()
    with torch.no_grad(), model.trace(PROMPT):
        whole = model.model.layers[0].mlp.output.clone()
    torch.testing.assert_close(added, whole)
    assert model.standardize().resolution.blocks[0].where["mlps_output"][0].path == "model.layers.0.mlp"


@pytest.mark.parametrize(
    ("said", "complaint"),
    [
        ({"mlp": "mlp.up_proj"}, r"mlp=mlp.up_proj.*layer 0.*does not come out"),
        ({"mlp": "input_layernorm"}, r"mlp=input_layernorm.*layer 0"),
        ({"attention": "mlp", "mlp": "mlp"}, r"attention=mlp, mlp=mlp"),
        ({"mlp": "feed_forward"}, r"no layer has a module at that path"),
        ({"layers": "model.blocks"}, r"no module at that path"),
        ({"layers": "model.layers.0.mlp"}, r"are no layers"),
    ],
)
def test_a_wrong_correction_is_refused_and_changes_nothing(said: Any, complaint: str) -> None:
    model = LanguageModel(zoo.module("llama"))
    before = model.standardize(mlp="mlp.down_proj").resolution.blocks[1].where["mlps_output"]
    with pytest.raises(AbsentNameError, match=complaint):
        model.standardize(**said)
    assert model.standard.resolution.blocks[1].where["mlps_output"] == before
    assert before[0].path == "model.layers.1.mlp.down_proj"


def test_the_layers_may_be_said() -> None:
    model = LanguageModel(zoo.module("gpt2"))
    assert model.standardize(layers="transformer.h").num_layers == 2


def test_corrections_are_those_of_one_model_and_travel_with_it() -> None:
    module = zoo.module("llama")
    model, other = LanguageModel(module), LanguageModel(module)
    model.standardize(mlp="mlp.down_proj")

    def path(model: Any) -> str:
        return model.standard.resolution.blocks[0].where["mlps_output"][0].path

    assert path(model).endswith("down_proj") and path(other).endswith("mlp")
    assert path(pickle.loads(pickle.dumps(model))).endswith("down_proj")
    assert path(copy.copy(model)).endswith("down_proj")


def test_the_identities_compare_norms_as_well_as_directions() -> None:
    names = LanguageModel(zoo.module("granite")).standard
    report = names.identities(PROMPT)
    assert report.hold and {identity.layer for identity in report} == {0, 1, None}
    assert all(identity.norm == pytest.approx(1, abs=1e-4) for identity in report)
    for name in ("mixers_output", "mlps_output"):
        block = names.resolution.blocks[1]
        block.where[name] = tuple(type(spot)(spot.path, spot.site, 1.0) for spot in block.where[name])
    wrong = type(names)(names.model, names.resolution).identities(PROMPT)
    (failed,) = [identity for identity in wrong if not identity.holds and "mlps_output" in identity.name]
    assert not wrong.hold and failed.layer == 1
    seen: dict[str, torch.Tensor] = {}
    layer = names.model._module.model.layers[1]
    handles = [
        layer.register_forward_pre_hook(lambda part, args: seen.update(start=args[0])),
        layer.self_attn.register_forward_hook(lambda part, args, output: seen.update(attention=output[0])),
        layer.mlp.register_forward_hook(lambda part, args, output: seen.update(mlp=output)),
        layer.register_forward_hook(lambda part, args, output: seen.update(end=output)),
    ]
    with torch.no_grad():
        names.model._module(torch.tensor([PROMPT]))
    for handle in handles:
        handle.remove()
    made = seen["start"] + seen["attention"] + seen["mlp"]
    assert failed.norm == pytest.approx(float(made.norm() / seen["end"].norm()), rel=1e-4)
    cosine = torch.nn.functional.cosine_similarity(made.flatten(), seen["end"].flatten(), 0)
    assert failed.direction == pytest.approx(float(cosine), rel=1e-4)
    assert str(wrong).splitlines()[1].startswith("✗ ") and "direction" in str(wrong)


def test_a_report_of_a_model_with_few_names_leaves_out_what_needs_the_others() -> None:
    report = LanguageModel(zoo.module("bert")).standard.identities(PROMPT)
    assert report.hold and not any("mlps_output" in identity.name for identity in report)
    assert any("layers_input[i]" in identity.name for identity in report)


def test_what_only_equals_a_contribution_is_not_served_as_one() -> None:
    module = zoo.module("llama")
    for layer in module.model.layers:
        layer.shadow = copy.deepcopy(layer.mlp)  # gives the same, and nobody goes on with it
        layer.mlp.register_forward_pre_hook(lambda part, args, layer=layer: [layer.shadow(args[0]), None][1])
    model = LanguageModel(module)
    with pytest.raises(AbsentNameError, match="what is assigned where it lies is not what the layer adds"):
        model.standard.mlps_output[0]
    names = model.standardize(mlp="mlp")
    with torch.no_grad(), names.trace(PROMPT):
        before, mixed = names.layers_input[0].clone(), names.mixers_output[0].clone()
        names.mlps_output[0] = torch.ones_like(before)
        after = names.layers_output[0].clone()
    torch.testing.assert_close(after, before + mixed + 1)


def test_positions_before_the_tokens_have_no_logits() -> None:
    names = LanguageModel(zoo.module("cpmant")).standard
    with torch.no_grad(), names.trace(PROMPT):
        last = names.layers_output[-1].clone()
        logits = names.logits.clone()
    assert last.shape[1] > logits.shape[1] == 6
    with torch.no_grad():
        torch.testing.assert_close(names.project_on_vocab(last[:, -6:]), logits)
