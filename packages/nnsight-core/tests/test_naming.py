"""Aliases: what a rename stands for, in toy models whose every module is at hand to compare with."""

from __future__ import annotations

import copy
import doctest
import pickle

import pytest
import torch
from torch import nn

from nnsight._core import naming as naming_file
from nnsight._core.errors import RenameError
from nnsight._core.naming import Naming


class Mlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(4, 8), nn.Linear(8, 4)


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.proj = nn.Linear(4, 4)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attn, self.mlp = Attention(), Mlp()


class Body(nn.Module):
    def __init__(self, depth: int = 3) -> None:
        super().__init__()
        self.h = nn.ModuleList([Block() for _ in range(depth)])
        self.ln = nn.LayerNorm(4)


class Model(nn.Module):
    def __init__(self, depth: int = 3) -> None:
        super().__init__()
        self.transformer, self.head = Body(depth), nn.Linear(4, 4)
        self.config = {"depth": depth}


def found(naming: Naming, root: nn.Module, path: str, name: str) -> str | None:
    """What `name` stands for at `path`, as a path from the root."""
    relative = naming.resolve(root, path, root.get_submodule(path), name)
    return relative if relative is None or not path else f"{path}.{relative}"


def everywhere(naming: Naming, root: nn.Module, name: str) -> dict[str, str]:
    """All places where `name` stands for something, and for what."""
    places = {path: found(naming, root, path, name) for path, _ in root.named_modules()}
    return {path: target for path, target in places.items() if target is not None}


@pytest.fixture
def model() -> Model:
    return Model()


def test_a_single_name_is_renamed_on_every_parent(model: Model) -> None:
    blocks = [f"transformer.h.{i}" for i in range(3)]
    assert everywhere(Naming({"mlp": "feedforward"}), model, "feedforward") == {b: f"{b}.mlp" for b in blocks}


def test_a_dotted_path_is_mounted_where_it_starts(model: Model) -> None:
    assert everywhere(Naming({"transformer.h": "layers"}), model, "layers") == {"": "transformer.h"}
    blocks = [f"transformer.h.{i}" for i in range(3)]
    assert everywhere(Naming({"mlp.down": "out"}), model, "out") == {b: f"{b}.mlp.down" for b in blocks}
    assert everywhere(Naming({"h.1.mlp": "middle"}), model, "middle") == {"transformer": "transformer.h.1.mlp"}


def test_a_leading_dot_starts_at_the_root_only() -> None:
    nested = nn.ModuleDict({"mlp": nn.Identity(), "inner": nn.ModuleDict({"mlp": nn.Identity()})})
    assert everywhere(Naming({"mlp": "ff"}), nested, "ff") == {"": "mlp", "inner": "inner.mlp"}
    assert everywhere(Naming({".mlp": "ff"}), nested, "ff") == {"": "mlp"}
    assert everywhere(Naming({"mlp": ".ff"}), nested, "ff") == {"": "mlp"}
    assert everywhere(Naming({".h": "layers"}), Model(), "layers") == {}


def test_several_aliases_for_one_module(model: Model) -> None:
    naming = Naming({".transformer": ["model", "backbone"], "transformer": ("body",)})
    assert {name: found(naming, model, "", name) for name in ("model", "backbone", "body", "transformer")} == {
        "model": "transformer",
        "backbone": "transformer",
        "body": "transformer",
        "transformer": None,
    }


def test_a_class_renames_its_instances_on_their_parents(model: Model) -> None:
    blocks = [f"transformer.h.{i}" for i in range(3)]
    assert everywhere(Naming({Mlp: "ff"}), model, "ff") == {b: f"{b}.mlp" for b in blocks}
    assert everywhere(Naming({nn.LayerNorm: ".norm"}), model, "norm") == {}


def test_a_star_is_one_component_and_each_that_it_stands_for_has_the_alias(model: Model) -> None:
    blocks = [f"transformer.h.{i}" for i in range(3)]
    for key in ("transformer.h.*.attn", ".transformer.h.*.attn", "h.*.attn", "*.*.*.attn"):
        assert everywhere(Naming({key: "attention"}), model, "attention") == {b: f"{b}.attn" for b in blocks}, key
    assert everywhere(Naming({".h.*.attn": "attention"}), model, "attention") == {}
    deep = everywhere(Naming({"h.*.attn.proj": "out"}), model, "out")
    assert deep == {b: f"{b}.attn.proj" for b in blocks}


def test_a_starred_path_to_one_module_is_also_mounted_where_it_starts(model: Model) -> None:
    assert everywhere(Naming({".*.h": "layers"}), model, "layers") == {
        "": "transformer.h",
        "transformer": "transformer.h",
    }
    shallow = Model(depth=1)
    assert found(Naming({"transformer.h.*.attn": "attention"}), shallow, "transformer.h.0", "attention") is not None
    assert found(Naming({"h.*": "block"}), shallow, "transformer", "block") == "transformer.h.0"


def test_a_key_may_go_through_an_alias(model: Model) -> None:
    naming = Naming(
        {"transformer": "model", "h": "layers", "model.layers": "layers", "model.layers.*.attn": "self_attn"}
    )
    assert found(naming, model, "", "layers") == "transformer.h"
    assert found(naming, model, "transformer", "layers") == "transformer.h"
    assert found(naming, model, "transformer.h.2", "self_attn") == "transformer.h.2.attn"
    assert naming.names_of(model, "transformer.h") == ["layers"]


def test_keys_that_lead_in_a_circle_lead_nowhere(model: Model) -> None:
    naming = Naming({"one": "two", "two": "one", "three": "three", "three.h": "three"})
    assert naming.aliases(model, "", model) == {}
    naming.check(model)


def test_one_rename_serves_many_families(model: Model) -> None:
    """The form in which libraries write it: whatever a family has not is passed over."""
    rename = dict.fromkeys(("model", "transformer", "gpt_neox"), "model")
    rename |= dict.fromkeys(("h", "layers", "model.layers", "model.decoder.layers"), "layers")
    rename |= dict.fromkeys(("mlp", "block_sparse_moe"), "mlp")
    naming = Naming(rename)
    naming.check(model)
    assert naming.aliases(model, "", model) == {"model": "transformer", "layers": "transformer.h"}
    assert naming.aliases(model, "transformer.h.0", model.transformer.h[0]) == {}
    assert naming.names_of(model, "transformer.h.0.mlp") == []

    other = nn.ModuleDict({"model": nn.ModuleDict({"layers": nn.ModuleList([nn.ModuleDict({"mlp": Mlp()})])})})
    naming.check(other)
    assert naming.aliases(other, "", other) == {"layers": "model.layers"}


@pytest.mark.parametrize("taken", ["head", "config"])
def test_a_real_attribute_comes_before_an_alias(model: Model, taken: str) -> None:
    assert found(Naming({"transformer": taken}), model, "", taken) is None
    Naming({"transformer": taken}).check(model)


def test_a_property_is_not_run_to_find_out_whether_it_is_there() -> None:
    class Touchy(Mlp):
        @property
        def alias(self) -> None:
            raise AssertionError("the property was run")

    module = Touchy()
    assert Naming({"up": "alias"}).resolve(module, "", module, "alias") is None


@pytest.mark.parametrize(
    ("rename", "named"),
    [
        ({nn.Linear: "linear"}, ["'up'", "'down'", "Linear", "Mlp"]),
        ({"attn": "part", "mlp": "part"}, ["'attn'", "'mlp'", "Block", "'transformer.h.0'"]),
        ({"h.*": "block"}, ["'h.0'", "'h.1'", "'h.*'", "'transformer'"]),
    ],
)
def test_an_alias_of_two_modules_is_an_error_that_names_both(model: Model, rename: dict, named: list[str]) -> None:
    with pytest.raises(RenameError) as error:
        Naming(rename).check(model)
    assert all(name in str(error.value) for name in named), str(error.value)


def test_an_alias_of_two_modules_is_an_error_at_use_too(model: Model) -> None:
    naming = Naming({"attn": "part", "mlp": "part"})
    with pytest.raises(RenameError, match="part"):
        naming.resolve(model, "transformer.h.0", model.transformer.h[0], "part")


def test_two_names_of_one_shared_module_are_no_conflict() -> None:
    module = Mlp()
    module.again = module.up
    module.down = nn.Identity()
    naming = Naming({nn.Linear: "linear"})
    naming.check(module)
    assert naming.resolve(module, "", module, "linear") == "up"


@pytest.mark.parametrize(
    ("rename", "told"),
    [
        ({"mlp": ""}, "one name, such as"),
        ({"mlp": "feed.forward"}, "one name, such as"),
        ({"mlp": "3"}, "one name, such as"),
        ({"mlp": "feed-forward"}, "one name, such as"),
        ({"mlp": "class"}, "one name, such as"),
        ({"mlp": 3}, "write one alias"),
        ({"mlp": []}, "write one alias"),
        ({"mlp": ["ok", None]}, "write one alias"),
        ({"": "x"}, "empty component"),
        ({".": "x"}, "empty component"),
        ({"a..b": "x"}, "empty component"),
        ({3: "x"}, "neither a path nor a class"),
        ({"mlp": "eval"}, "torch.nn.Module"),
        ({"mlp": "training"}, "torch.nn.Module"),
        ({"mlp": "output"}, "nnsight"),
        ([("mlp", "ff")], "must be a dict"),
    ],
)
def test_a_bad_rename_is_refused_with_the_right_form(rename: dict, told: str) -> None:
    with pytest.raises(RenameError, match=told):
        Naming(rename, reserved={"output"})


def test_a_key_that_is_its_own_alias_is_never_refused() -> None:
    Naming({"output": "output", "layer.half": "half"}, reserved={"output"})


def test_answers_follow_the_model_when_it_changes(model: Model) -> None:
    naming = Naming({"transformer.h": "layers", "attn": "part", "ffn": "part"})
    assert found(naming, model, "", "layers") == "transformer.h"
    model.transformer = nn.Identity()
    assert found(naming, model, "", "layers") is None
    model.transformer = Body()
    assert found(naming, model, "", "layers") == "transformer.h"

    block = model.transformer.h[0]
    assert found(naming, model, "transformer.h.0", "part") == "transformer.h.0.attn"
    del block.attn
    block.ffn = Mlp()
    assert found(naming, model, "transformer.h.0", "part") == "transformer.h.0.ffn"
    block.part = nn.Identity()
    assert found(naming, model, "transformer.h.0", "part") is None
    block.__delattr__("part")
    block.register_buffer("part", torch.zeros(1))
    assert found(naming, model, "transformer.h.0", "part") is None

    other = Model()
    del other.transformer.h
    assert found(naming, other, "", "layers") is None


def test_answers_keep_no_module_alive(model: Model) -> None:
    import gc
    import weakref

    naming = Naming({"transformer.h": "layers"})
    assert found(naming, model, "", "layers") == "transformer.h"
    gone = weakref.ref(model.transformer)
    model.transformer = Body()
    gc.collect()
    assert gone() is None


def test_names_of_a_module_from_all_above_it(model: Model) -> None:
    naming = Naming({"transformer.h": "layers", "h": "blocks", "*.mlp": "ff", Attention: "attention"})
    assert naming.names_of(model, "transformer.h") == ["layers", "blocks"]
    assert naming.names_of(model, "transformer.h.1.mlp") == ["ff"]
    assert naming.names_of(model, "transformer.h.1.attn") == ["attention"]
    assert naming.names_of(model, "transformer.h.1") == naming.names_of(model, "") == []


def test_names_of_is_aliases_seen_from_below(model: Model) -> None:
    naming = Naming(
        {"transformer": "model", "model.h": ["layers", "stack"], "layers.*.attn": "self_attn", Mlp: "ff", "ln": "n"}
    )
    below: dict[str, set[str]] = {path: set() for path, _ in model.named_modules()}
    for path, module in model.named_modules():
        for alias, relative in naming.aliases(model, path, module).items():
            below[f"{path}.{relative}" if path else relative].add(alias)
    assert below["transformer.h"] == {"layers", "stack"}
    assert {path: set(naming.names_of(model, path)) for path in below} == below


def test_no_rename_answers_nothing(model: Model) -> None:
    naming = Naming(None)
    naming.check(model)
    assert not naming and naming.resolve(model, "", model, "layers") is None and naming.names_of(model, "head") == []


def test_a_model_within_itself_can_be_checked() -> None:
    module = Mlp()
    module.itself = module
    Naming({"up": "first"}).check(module)


@pytest.mark.parametrize("copied", [copy.deepcopy, copy.copy, lambda naming: pickle.loads(pickle.dumps(naming))])
def test_a_copy_answers_the_same(model: Model, copied) -> None:
    naming = Naming({"transformer.h": "layers"}, reserved=frozenset({"output"}))
    assert found(naming, model, "", "layers") == "transformer.h"
    assert found(copied(naming), model, "", "layers") == "transformer.h"


def test_examples_run(model: Model) -> None:
    for test in doctest.DocTestFinder().find(Naming, "Naming", naming_file, globs={"Naming": Naming, "gpt2": model}):
        assert doctest.DocTestRunner().run(test).failed == 0
