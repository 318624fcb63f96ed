"""Nested containers of tensors, of every kind that models return."""

from __future__ import annotations

import collections
import dataclasses
import doctest
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

from nnsight._core import structures
from nnsight._core.structures import first, leaves, tree_map, zip_map


class Pair(NamedTuple):
    left: Any
    right: Any


class Strict(collections.namedtuple("Strict", "one two")):
    """A namedtuple that is not made from its items, and has an attribute."""

    def __new__(cls, total: Any) -> Strict:
        made = super().__new__(cls, total, total)
        made.note = "kept"
        return made


@dataclasses.dataclass
class Plain:
    value: Any
    name: str = "x"


@dataclasses.dataclass(frozen=True)
class Frozen:
    __slots__ = ("value",)
    value: Any


@dataclasses.dataclass
class Checked:
    value: Any
    made: int = dataclasses.field(default=0, init=False)

    def __post_init__(self) -> None:
        self.made += 1


class TwoFold(collections.OrderedDict):
    """What transformers' and diffusers' outputs are: an ordered dict whose items are attributes too."""

    def __post_init__(self) -> None:
        assert not getattr(self, "finished", False), "a rebuilt output was constructed again"
        for field in dataclasses.fields(self):
            if getattr(self, field.name) is not None:
                self[field.name] = getattr(self, field.name)
        self.finished = True

    def __setitem__(self, key: str, value: Any) -> None:
        super().__setitem__(key, value)
        super().__setattr__(key, value)

    def update(self, *args: Any, **kwargs: Any) -> None:
        raise TypeError("not here")


@dataclasses.dataclass
class Output(TwoFold):
    logits: Any = None
    loss: Any = None
    states: Any = None


class Attributes(dict):
    """A dict that is its own attributes."""

    def __init__(self, **items: Any) -> None:
        super().__init__(items)
        self.__dict__.update(items)


class Tagged(list):
    tag = "none"


class Needy(collections.OrderedDict):
    def __init__(self, needed: Any) -> None:
        super().__init__(needed=needed)


def t(*values: float) -> Tensor:
    return torch.tensor(values)


def double(x: Tensor) -> Tensor:
    return x * 2


def same(x: Tensor) -> Tensor:
    return x


def attributed() -> Tagged:
    tagged = Tagged([t(1.0)])
    tagged.tag = "mine"
    return tagged


CONTAINERS = {
    "tuple": lambda: (t(1.0), t(2.0)),
    "list": lambda: [t(1.0), None, 3],
    "dict": lambda: {"a": t(1.0), 2: "text"},
    "ordered": lambda: collections.OrderedDict(b=t(1.0), a=t(2.0)),
    "default": lambda: collections.defaultdict(list, a=t(1.0)),
    "user": lambda: collections.UserDict(a=t(1.0)),
    "namedtuple": lambda: Pair(t(1.0), (t(2.0),)),
    "strict namedtuple": lambda: Strict(t(1.0)),
    "return type": lambda: torch.max(torch.tensor([[1.0, 3.0], [5.0, 2.0]]), dim=1),
    "packed": lambda: pack_padded_sequence(torch.ones(2, 3, 1), torch.tensor([3, 2]), batch_first=True),
    "dataclass": lambda: Plain(t(1.0)),
    "frozen": lambda: Frozen([t(1.0)]),
    "checked": lambda: Checked(t(1.0)),
    "output": lambda: Output(logits=t(1.0), states=(t(2.0), t(3.0))),
    "attributes": lambda: Attributes(a=t(1.0)),
    "tagged": attributed,
    "needy": lambda: Needy(t(1.0)),
    "nested": lambda: ({"k": [Pair(t(1.0), None), Plain((t(2.0),))]}, {"n": 1, "x": Output(loss=t(4.0))}),
}


@pytest.fixture(params=CONTAINERS)
def value(request: pytest.FixtureRequest) -> Any:
    return CONTAINERS[request.param]()


def test_what_is_not_changed_keeps_its_identity(value: Any) -> None:
    assert tree_map(same, value) is value


def test_a_change_makes_a_new_container_of_the_same_type(value: Any) -> None:
    before = [x.clone() for x in leaves(value)]
    changed = tree_map(double, value)
    assert before and type(changed) is type(value) and changed is not value
    assert all(torch.equal(new, 2 * old) for new, old in zip(leaves(changed), before, strict=True))
    assert all(torch.equal(x, old) for x, old in zip(leaves(value), before, strict=True))
    attributes, kept = vars_of(changed), vars_of(value)
    assert list(attributes) == list(kept)
    assert all(attributes[name] is kept[name] for name in kept if not leaves(kept[name]) and name != "data")


def vars_of(value: Any) -> dict[str, Any]:
    return dict(getattr(value, "__dict__", {}))


def test_only_the_way_to_a_change_is_rebuilt() -> None:
    still, moved = [t(1.0)], [t(2.0)]
    value = {"still": still, "moved": (moved, still)}
    changed = tree_map(lambda x: x + 1 if x is moved[0] else x, value)
    assert changed["still"] is still and changed["moved"][1] is still
    assert torch.equal(changed["moved"][0][0], t(3.0)) and torch.equal(moved[0], t(2.0))


@pytest.mark.parametrize("leaf", [None, 3, "text", b"x", {1, 2}, torch.Size([2, 3]), object(), nn.Linear(1, 1), Plain])
def test_other_objects_are_left_alone(leaf: Any) -> None:
    def refuse(x: Tensor) -> Tensor:
        raise AssertionError(f"called with {x}")

    assert tree_map(refuse, leaf) is leaf and leaves(leaf) == []
    assert tree_map(double, (leaf, t(1.0)))[0] is leaf


def test_a_module_that_is_a_dataclass_is_a_leaf() -> None:
    @dataclasses.dataclass(eq=False)
    class Layer(nn.Module):
        width: int

        def __post_init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(self.width))

    layer = Layer(2)
    assert tree_map(double, [layer])[0] is layer and leaves(layer) == []


def test_a_tensor_is_its_own_structure() -> None:
    x = t(1.0)
    assert tree_map(same, x) is x and leaves(x) == [x] and torch.equal(tree_map(double, x), t(2.0))
    parameter = nn.Parameter(t(1.0))
    assert leaves((parameter, [parameter])) == [parameter, parameter]


def test_leaves_come_in_order() -> None:
    a, b, c, d = (t(float(i)) for i in range(4))
    found = leaves(({"x": a, "y": [b]}, Pair(c, 1), Plain(d)))
    assert [id(x) for x in found] == [id(x) for x in (a, b, c, d)]


def test_an_output_keeps_items_and_attributes_in_step() -> None:
    value = Output(logits=t(1.0), states=(t(2.0),))
    changed = tree_map(double, value)
    assert list(changed) == ["logits", "states"] and changed.loss is None and "loss" not in changed
    assert changed["logits"] is changed.logits and torch.equal(changed.logits, t(2.0))
    assert changed["states"] is changed.states and torch.equal(changed.states[0], t(4.0))
    assert torch.equal(value.logits, t(1.0)) and value["logits"] is value.logits


def test_attributes_of_a_dict_follow_its_items() -> None:
    changed = tree_map(double, Attributes(a=t(1.0)))
    assert changed.a is changed["a"] and torch.equal(changed.a, t(2.0))


def test_a_constructor_is_not_run_again() -> None:
    assert tree_map(double, Checked(t(1.0))).made == 1
    assert tree_map(double, Strict(t(1.0))).note == "kept"


def test_a_default_factory_is_kept() -> None:
    changed = tree_map(double, collections.defaultdict(list, a=t(1.0)))
    assert changed["missing"] == []


def test_an_output_of_transformers() -> None:
    outputs = pytest.importorskip("transformers.modeling_outputs")
    value = outputs.CausalLMOutputWithPast(logits=t(1.0), hidden_states=(t(2.0), t(3.0)))
    assert tree_map(same, value) is value
    changed = tree_map(double, value)
    assert type(changed) is type(value) and list(changed.keys()) == ["logits", "hidden_states"]
    assert changed.logits is changed["logits"] is changed[0] and torch.equal(changed.logits, t(2.0))
    assert changed.hidden_states is changed["hidden_states"] is changed.to_tuple()[1]
    assert torch.equal(changed.hidden_states[1], t(6.0)) and changed.loss is None
    changed.loss = t(9.0)
    assert changed["loss"] is changed.loss
    only = tree_map(double, outputs.BaseModelOutput(last_hidden_state=(t(1.0), t(2.0))))
    assert torch.equal(only.last_hidden_state[1], t(4.0)) and only[0] is only.last_hidden_state


def test_an_encoding_of_transformers() -> None:
    transformers = pytest.importorskip("transformers")
    value = transformers.BatchEncoding({"input_ids": torch.tensor([[1, 2]]), "attention_mask": torch.tensor([[1, 1]])})
    changed = tree_map(double, value)
    assert type(changed) is type(value) and changed.input_ids.tolist() == [[2, 4]]
    assert value["input_ids"].tolist() == [[1, 2]]


def test_zip_map_pairs_every_leaf(value: Any) -> None:
    other = tree_map(double, value)
    pairs: list[tuple[Any, Any]] = []

    def note(x: Any, y: Any) -> Any:
        pairs.append((x, y))
        return x + y if isinstance(x, Tensor) else x

    summed = zip_map(note, value, other)
    assert type(summed) is type(value)
    want = [3 * x for x in leaves(value)]
    assert all(torch.equal(x, y) for x, y in zip(leaves(summed), want, strict=True))
    assert all(x is y for x, y in pairs if not isinstance(x, Tensor))
    assert zip_map(lambda x, y: x, value, other) is value


def test_zip_map_lets_a_plain_container_stand_for_a_special_one() -> None:
    value = Output(logits=t(1.0), states=Pair(t(2.0), None))
    result = zip_map(lambda x, y: y, value, {"states": [t(20.0), 5], "logits": None})
    assert type(result) is Output and result.logits is None and result["logits"] is None
    assert result.states == Pair(t(20.0), 5)


@pytest.mark.parametrize(
    ("a", "b", "place"),
    [
        ((1, 2), (1, 2, 3), r"\[2\]: tuple of 2 against tuple of 3, and the first has no such item"),
        ((1, 2), (1,), r"\[1\]: tuple of 2 against tuple of 1, and the second has no such item"),
        ({"a": [0, {"b": 1}]}, {"a": [0, {"c": 1}]}, r"\['a'\]\[1\]\['b'\]: dict of 1 against dict of 1"),
        ((t(1.0),), t(1.0), "the outermost: tuple of 1 against Tensor"),
        ([t(1.0)], [[t(1.0)]], r"\[0\]: Tensor against list of 1"),
        ([1], {0: 1}, "the outermost: list of 1 against dict of 1"),
        (Plain((1, 2)), Plain((1, [2])), r"\.value\[1\]: int against list of 1"),
        (Plain(1), Frozen(1), "the outermost: Plain of 2 against Frozen of 1"),
    ],
)
def test_zip_map_names_the_first_place_that_differs(a: Any, b: Any, place: str) -> None:
    with pytest.raises(ValueError, match=place):
        zip_map(lambda x, y: x, a, b)


def test_first_is_the_first_argument() -> None:
    assert first((1, 2), {"a": 3}) == 1
    assert first((), {"b": 4, "a": 3}) == 4
    assert first((None,), {"a": 3}) is None
    assert first((), {}) is None


def build(draw_from: list[Any]) -> st.SearchStrategy[Any]:
    return st.recursive(
        st.sampled_from(draw_from),
        lambda inner: st.one_of(
            st.lists(inner, max_size=3),
            st.lists(inner, max_size=3).map(tuple),
            st.dictionaries(st.text(max_size=2), inner, max_size=3),
            st.builds(Pair, inner, inner),
            st.builds(Plain, inner),
            st.builds(lambda x, y: Output(logits=x, states=y), inner, inner),
        ),
        max_leaves=8,
    )


@given(build([t(1.0), t(2.0), None, 7, "text"]))
@settings(deadline=None)  # a machine that is busy takes its time
def test_any_structure_survives_a_change_and_its_undoing(value: Any) -> None:
    there = tree_map(lambda x: x + 1, value)
    back = tree_map(lambda x: x - 1, there)
    assert repr(back) == repr(value)
    assert (there is value) == (not leaves(value))
    assert len(leaves(there)) == len(leaves(value)) == repr(value).count("tensor(")
    moved = zip_map(lambda x, y: y - x if isinstance(x, Tensor) else y is x, value, there)
    assert all(torch.equal(x, t(1.0)) for x in leaves(moved))


def test_examples_run() -> None:
    globs = {"torch": torch, "tree_map": tree_map, "zip_map": zip_map}
    for function in (tree_map, zip_map):
        for test in doctest.DocTestFinder().find(function, function.__name__, structures, globs=dict(globs)):
            assert doctest.DocTestRunner().run(test).failed == 0


def test_what_a_class_refuses_to_compute_is_not_asked_for() -> None:
    class Refusing(Plain):
        def __getattribute__(self, name: str) -> Any:
            if name == "value":
                raise ValueError("not to be read")
            return super().__getattribute__(name)

    value = Refusing(torch.ones(2))
    assert [tuple(leaf.shape) for leaf in leaves(value)] == [(2,)]
