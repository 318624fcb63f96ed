"""Wrapping: the tree that mirrors a module, and the module that wrapping leaves alone."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from core_toys import Block, Colliding, Hooked, Pair, Toy, TupleModel, rows, seeded
from torch import nn

import nnsight
from nnsight import Envoy, NNsight


@pytest.fixture
def net() -> Toy:
    return seeded(Toy)


@pytest.fixture
def model(net: Toy) -> Any:
    return NNsight(net)


# -- the tree --------------------------------------------------------------------------------------------------------


def test_attributes_are_envoys_of_the_submodules(model: Any, net: Toy) -> None:
    assert isinstance(model.layers, Envoy)
    assert model.layers._module is net.layers
    assert model.layers[1].mlp[0]._module is net.layers[1].mlp[0]
    assert model.layers[1] is model.layers[1]


def test_indices_and_slices_are_those_of_the_container(model: Any, net: Toy) -> None:
    assert model.layers[-1]._module is net.layers[2]
    assert [envoy._module for envoy in model.layers[1:]] == list(net.layers)[1:]
    assert [envoy._module for envoy in model.layers[::-1]] == list(net.layers)[::-1]
    assert model.layers[-1] is model.layers[2] is model.layers[1:][-1]
    with pytest.raises(IndexError, match=r"`model\.layers` has 3"):
        model.layers[3]


def test_a_key_indexes_a_dict_of_modules() -> None:
    parts = nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.ReLU()})
    model = NNsight(parts)
    assert model["b"]._module is parts["b"]
    assert list(model) == ["a", "b"]
    with pytest.raises(KeyError, match="it has a, b"):
        model["c"]


def test_iteration_and_length_are_those_of_the_container(model: Any, net: Toy) -> None:
    assert [envoy._module for envoy in model.layers] == list(net.layers)
    assert len(model.layers) == 3
    assert len(model.layers[0].mlp) == 3


def test_what_is_no_container_is_neither_indexed_nor_iterated_over_nor_measured(model: Any) -> None:
    with pytest.raises(TypeError, match="cannot be indexed"):
        model.ln[0]
    with pytest.raises(TypeError, match="cannot be iterated"):
        iter(model.ln)
    with pytest.raises(TypeError):
        len(model.ln)


def test_an_empty_container_is_still_something() -> None:
    assert NNsight(nn.ModuleList())


def test_modules_and_named_modules_are_torchs(model: Any, net: Toy) -> None:
    assert [envoy._module for envoy in model.modules()] == list(net.modules())
    theirs = [("model" + ("." + path if path else ""), module) for path, module in net.named_modules()]
    assert [(path, envoy._module) for path, envoy in model.named_modules()] == theirs
    below = [envoy.path for envoy in model.layers[1].modules()]
    assert below[0] == "model.layers.1" and all(path.startswith("model.layers.1") for path in below)


def test_modules_can_be_chosen(model: Any, net: Toy) -> None:
    linear = model.modules(include=lambda envoy: isinstance(envoy._module, nn.Linear))
    assert [envoy._module for envoy in linear] == [m for m in net.modules() if isinstance(m, nn.Linear)]
    named = model.named_modules(include=lambda envoy: envoy.path.endswith("mlp"))
    assert [path for path, _ in named] == [f"model.layers.{i}.mlp" for i in range(3)]


def test_get_follows_a_dotted_path(model: Any, net: Toy) -> None:
    assert model.get("layers.0.mlp.2") is model.layers[0].mlp[2]
    assert model.layers.get("1.attn") is model.layers[1].attn
    assert model.get("") is model
    assert model.get("head.weight") is net.head.weight
    with pytest.raises(AttributeError):
        model.get("layers.0.nothing")


def test_path_parent_and_root(model: Any) -> None:
    attn = model.layers[2].attn
    assert attn.path == "model.layers.2.attn"
    assert attn.parent is model.layers[2] and attn.parent.parent is model.layers
    assert attn.root is model and model.root is model
    assert model.parent is None and model.path == "model"


def test_device_and_devices(model: Any) -> None:
    assert model.device == torch.device("cpu") and model.devices == {torch.device("cpu")}
    model.layers[1].to("meta")
    assert model.devices == {torch.device("cpu"), torch.device("meta")}
    assert model.layers[1].device == torch.device("meta")
    assert model.layers[0].mlp[1].device is None and model.layers[0].mlp[1].devices == set()


def test_asking_for_the_device_does_not_walk_the_whole_model() -> None:
    class Wide(torch.nn.Linear):
        def named_buffers(self, *_args: Any, **_kwargs: Any) -> Any:
            raise AssertionError("a parameter has answered already")

    assert NNsight(Wide(2, 2)).device == torch.device("cpu")


def test_to_casts_and_returns_the_envoy(model: Any, net: Toy) -> None:
    assert model.to(torch.float64) is model
    assert net.head.weight.dtype is torch.float64
    assert model.layers.cpu() is model.layers
    with model.trace(rows().double()):
        dtype = model.layers[0].output.dtype
    assert dtype is torch.float64


def test_the_repr_is_torchs(model: Any, net: Toy) -> None:
    assert repr(model) == repr(net)
    assert repr(model.layers[0].mlp) == repr(net.layers[0].mlp)


def test_the_repr_shows_aliases(net: Toy) -> None:
    model = NNsight(net, rename={"layers": "h", "mlp": "ff"})
    text = repr(model)
    assert "(layers/h): ModuleList(" in text and "(0-2): 3 x Block(" in text and "(mlp/ff): Sequential(" in text
    assert "(mlp/ff): Sequential(" in repr(model.h[0])


def test_dir_lists_submodules_and_aliases(net: Toy) -> None:
    model = NNsight(net, rename={"layers": "h"})
    assert {"layers", "h", "head", "trace", "twice"} <= set(dir(model))


def test_only_a_module_can_be_wrapped(model: Any) -> None:
    with pytest.raises(TypeError, match="not int"):
        NNsight(3)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="_module"):
        NNsight(model)


# -- attributes of the module ----------------------------------------------------------------------------------------


def test_attributes_of_the_module_are_reachable_and_assignable(model: Any, net: Toy) -> None:
    assert model.head.weight is net.head.weight
    assert model.ln.eps == net.ln.eps
    assert model.training is False
    model.ln.eps = 0.5
    assert net.ln.eps == 0.5
    new = nn.Parameter(torch.zeros(5))
    model.head.bias = new
    assert net.head.bias is new
    with model.trace(rows()):
        out = model.output
    assert torch.equal(out, net(rows()))


def test_a_new_name_stays_on_the_envoy(model: Any, net: Toy) -> None:
    model.note = "mine"
    assert model.note == "mine" and not hasattr(net, "note")
    del model.note
    with pytest.raises(AttributeError):
        model.note


def test_methods_of_the_module_are_plain_calls(model: Any, net: Toy) -> None:
    assert torch.equal(model.twice(rows()), net.twice(rows()))
    assert model.train() is net and net.training
    assert [name for name, _ in model.named_parameters()] == [name for name, _ in net.named_parameters()]


def test_an_unknown_attribute_is_torchs_error(model: Any) -> None:
    with pytest.raises(AttributeError, match="Block.*no attribute 'nothing'"):
        model.layers[0].nothing


def test_a_property_that_gives_a_submodule_gives_its_envoy() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Sequential(nn.Linear(2, 2))

        @property
        def backbone(self) -> nn.Module:
            return self.inner[0]

    model = NNsight(Named())
    assert model.backbone is model.inner[0]


# -- collisions ------------------------------------------------------------------------------------------------------


def in_a_box() -> nn.Module:
    box = nn.Module()
    box.add_module("inner", seeded(Colliding))
    box.forward = lambda x: box.inner(x)  # type: ignore[assignment]
    return box


@pytest.mark.parametrize("at_root", [True, False])
@pytest.mark.parametrize("name", Colliding.names)
def test_a_submodule_keeps_a_name_of_ours(name: str, at_root: bool) -> None:
    net = seeded(Colliding) if at_root else in_a_box()
    model = NNsight(net)
    envoy = model if at_root else model.inner
    part = getattr(envoy, name)
    assert isinstance(part, Envoy) and part._module is envoy._module._modules[name]
    x = rows()
    hooked = Hooked(net, x)
    with NNsight.trace(model, x):
        value = part.nns_output
    assert torch.equal(value, hooked[part._path.partition(".")[2]])


def test_ours_is_reachable_with_the_prefix_on_a_root_that_collides() -> None:
    net = seeded(Colliding)
    model = NNsight(net)
    x = rows()
    with model.nns_trace(x) as tracer:
        given = model.nns_input
        args, kwargs = model.nns_inputs
        first = model.output.output
        model.trace.skip(first * 2)
        out = model.nns_output
        result = tracer.result
    doubled = Hooked(net, x, edits={"trace": lambda value: first * 2})
    assert given is x and args[0] is x and kwargs == {}
    assert torch.equal(out, doubled.result) and torch.equal(result, doubled.result)
    assert model.nns_path == "model" and model.nns_get("output") is model.output
    with model.nns_trace(x):
        model.nns_skip(torch.zeros(2, 4))
        out = model.nns_output
    assert not out.any()


def test_every_other_envoy_keeps_our_names_where_one_collides() -> None:
    model = NNsight(in_a_box())
    x = rows()
    with model.trace(x):
        inside = model.inner.nns_output
        outside = model.output
    assert inside is outside
    assert NNsight(Pair()).path == "model"


@pytest.mark.parametrize("name", ["edits", "edit", "scan", "session", "iter", "all", "root", "parent", "device"])
def test_further_names_of_ours_do_not_break_ours(name: str) -> None:
    net = nn.Sequential()
    net.add_module(name, seeded(nn.Linear, 4, 4))
    net.add_module("last", seeded(nn.Linear, 4, 4))
    model: Any = NNsight(net)
    x = rows()
    with model.trace(x):
        value = getattr(model, name).output
    assert torch.equal(value, net[0](x))
    with Envoy.edit(model, inplace=True):
        model.last.output = model.last.output * 3
    with model.trace(x):
        out = model.output
    torch.testing.assert_close(out, net(x) * 3)
    model.clear_edits()
    with model.trace(x):
        out = model.output
    assert torch.equal(out, net(x))
    repr(model)


def test_a_collision_can_be_replaced_by_a_new_submodule() -> None:
    net = seeded(Colliding)
    model = NNsight(net)
    new = nn.Linear(4, 4)
    model.output = new
    assert net.output is new and model.output._module is new


# -- shared modules, several wrappers, instance-level forwards -------------------------------------------------------


def test_a_shared_module_has_one_place() -> None:
    shared = seeded(nn.Linear, 4, 4)
    net = nn.Sequential(shared, nn.Tanh(), shared)
    model = NNsight(net)
    x = rows()
    first, second = shared(x), shared(torch.tanh(shared(x)))
    seen = []
    with model.trace(x) as tracer:
        for _ in tracer.iter[:2]:
            seen.append(model[2].output)
    assert torch.equal(seen[0], first) and torch.equal(seen[1], second)
    with model.trace(x):
        one, other = model[0].output, model[2].output
    assert one is other
    assert [path for path, _ in model.named_modules()] == ["model", "model.0", "model.1"]


def test_several_wrappers_of_one_module_do_not_disturb_each_other(net: Toy) -> None:
    one, other = NNsight(net), NNsight(net, rename={"layers": "h"})
    x = rows()
    with one.trace(x):
        one.layers[0].output[:] = 0
        changed = one.output
    with other.trace(x):
        plain = other.output
    assert torch.equal(plain, net(x)) and not torch.equal(changed, plain)
    assert not hasattr(one, "h")


def test_a_wrapper_of_a_part_sees_the_part_only(net: Toy) -> None:
    whole, part = NNsight(net), NNsight(net.layers[1])
    x = rows()
    with part.trace(torch.ones(2, 8)):
        inside = part.mlp.output
    assert torch.equal(inside, Hooked(net.layers[1], torch.ones(2, 8))["mlp"])
    with whole.trace(x):
        via_part = part.mlp.output  # the same module, so the same place
    assert torch.equal(via_part, Hooked(net, x)["layers.1.mlp"])


def test_an_instance_level_forward_is_honoured_and_kept(net: Toy) -> None:
    plain = net.layers[1].forward
    mine = lambda x, scale=1.0: plain(x, scale=scale) + 1  # noqa: E731
    net.layers[1].forward = mine  # type: ignore[method-assign]
    model = NNsight(net)
    with model.trace(rows()):
        value = model.layers[1].output
        out = model.output
    hooked = Hooked(net, rows())
    assert torch.equal(value, hooked["layers.1"]) and torch.equal(out, hooked.result)
    assert net.layers[1].__dict__["forward"] is mine


def test_hooks_of_the_user_run_as_ever(net: Toy) -> None:
    seen = []
    handle = net.layers[0].register_forward_hook(lambda module, args, output: output * 2)
    net.head.register_forward_hook(lambda module, args, output: seen.append(output))
    want = net(rows())
    model = NNsight(net)
    with model.trace(rows()):
        out = model.output
    assert torch.equal(out, want) and len(seen) == 2
    handle.remove()


# -- modules that change ---------------------------------------------------------------------------------------------


def test_a_submodule_replaced_through_the_envoy_is_traced(model: Any, net: Toy) -> None:
    x = rows()
    with model.trace(x):
        model.output
    held = model.layers[1]
    model.layers[1].mlp = nn.Sequential(nn.Identity())
    with model.trace(x):
        value = held.mlp[0].output
        out = model.output
    hooked = Hooked(net, x)
    assert torch.equal(value, hooked["layers.1.mlp.0"]) and torch.equal(out, hooked.result)
    assert "forward" not in net.layers[1].mlp[0].__dict__


def test_a_submodule_replaced_on_the_torch_module_is_followed(model: Any, net: Toy) -> None:
    x = rows()
    held = model.layers[1]
    with model.trace(x):
        held.mlp.output
    net.layers[1] = seeded(Block)
    assert model.layers[1]._module is net.layers[1] and model.layers[1] is held
    with model.trace(x):
        value = held.mlp.output
        out = model.output
    hooked = Hooked(net, x)
    assert torch.equal(value, hooked["layers.1.mlp"]) and torch.equal(out, hooked.result)


def test_a_replaced_submodule_with_other_parts_and_names_is_followed(model: Any, net: Toy) -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.output = nn.Linear(8, 8)

        def forward(self, x: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
            return self.output(x)

    held = model.layers[1]
    held.mlp  # made before
    net.layers[1] = Odd()
    assert model.layers[1] is held and isinstance(held.output, Envoy)
    x = rows()
    with model.trace(x):
        inner, outer = held.output.output, held.nns_output
    assert inner is outer and torch.equal(inner, Hooked(net, x)["layers.1"])
    net.layers[1] = seeded(Block)
    model.layers[1]
    with model.trace(x):
        value = held.output
    assert torch.equal(value, Hooked(net, x)["layers.1"])


def test_a_submodule_that_is_new_is_traced(model: Any, net: Toy) -> None:
    x = rows()
    with model.trace(x):
        model.output
    net.add_module("adapter", nn.Linear(5, 5))
    plain = type(net).forward
    net.forward = lambda x: net.adapter(plain(net, x))  # type: ignore[method-assign]
    with model.trace(x):
        value = model.adapter.output
    assert torch.equal(value, net(x))
    model.probe = nn.Linear(5, 2)
    assert net.probe is model.probe._module
    with model.trace(x):
        logits = model.probe(model.output)
    assert torch.equal(logits, net.probe(net(x)))


def test_an_envoy_can_be_assigned_as_a_submodule(model: Any, net: Toy) -> None:
    model.layers[0].mlp = model.layers[1].mlp
    assert net.layers[0].mlp is net.layers[1].mlp
    x = rows()
    with model.trace(x):
        out = model.output
    assert torch.equal(out, net(x))


def test_a_deleted_submodule_is_gone(model: Any, net: Toy) -> None:
    model.head
    del model.head
    assert "head" not in net._modules and not hasattr(model, "head")


# -- the module is left as it was ------------------------------------------------------------------------------------


def state_of(net: nn.Module) -> list[dict[str, Any]]:
    return [{name: id(value) for name, value in module.__dict__.items()} for module in net.modules()]


def parts_of(net: nn.Module) -> list[dict[str, Any]]:
    return [
        {
            name: [(key, id(part)) for key, part in value.items()]
            for name, value in vars(module).items()
            if type(value) is dict
        }
        for module in net.modules()
    ]


def wrap_only(net: nn.Module) -> None:
    NNsight(net)


def trace_all(net: nn.Module) -> None:
    model = NNsight(net)
    with model.trace(rows()) as tracer:
        cache = tracer.cache()
        model.layers[0].input
        model.layers[0].output = model.layers[0].output * 2
        model.layers[1].skip(model.layers[0].output)
    assert len(cache)


def fail_in_the_body(net: nn.Module) -> None:
    model = NNsight(net)
    with pytest.raises(ZeroDivisionError), model.trace(rows()):
        model.layers[1].output
        1 / 0


def fail_in_the_model(net: nn.Module) -> None:
    model = NNsight(net)
    with pytest.raises(RuntimeError), model.trace(rows()):
        model.layers[1].output = torch.ones(3, 77)
        model.output


def stop_early(net: nn.Module) -> None:
    model = NNsight(net)
    with model.trace(rows()) as tracer:
        model.layers[1].output
        tracer.stop()


def run_invokes(net: nn.Module) -> None:
    model = NNsight(net)
    with model.trace() as tracer:
        with tracer.invoke(rows()):
            model.layers[1].output[:] = 0
        with tracer.invoke(rows()):
            out = model.output


def edit_and_scan(net: nn.Module) -> None:
    model = NNsight(net)
    with model.edit() as edited:
        model.layers[1].output[:] = 0
    with edited.trace(rows()):
        edited.output
    with model.scan(rows()):
        model.layers[1].output


def read_source(net: nn.Module) -> None:
    model = NNsight(net)
    str(model.layers[0].source)
    with model.trace(rows()):
        model.layers[0].source.self_attn_0.output


USES = [wrap_only, trace_all, fail_in_the_body, fail_in_the_model, stop_early, run_invokes, edit_and_scan, read_source]


@pytest.mark.parametrize("use", USES, ids=lambda use: use.__name__)
def test_the_module_is_exactly_what_it_was(net: Toy, use: Callable[[nn.Module], None]) -> None:
    before, parts, weights = state_of(net), parts_of(net), copy.deepcopy(net.state_dict())
    own_forward, want = type(net).forward, net(rows())
    use(net)
    assert state_of(net) == before and parts_of(net) == parts
    assert type(net).forward is own_forward
    assert all(torch.equal(value, weights[name]) for name, value in net.state_dict().items())
    assert torch.equal(net(rows()), want)


def test_a_wrapped_module_can_be_pickled_and_copied(net: Toy) -> None:
    model = NNsight(net)
    with model.trace(rows()):
        model.layers[0].output
    for twin in (pickle.loads(pickle.dumps(net)), copy.deepcopy(net)):
        assert torch.equal(twin(rows()), net(rows()))
        assert twin.layers[0] is not net.layers[0]


def test_the_weights_can_be_read_in_the_middle_of_a_run(model: Any, net: Toy) -> None:
    with model.trace(rows()):
        model.layers[0].output
        during = net.state_dict()
    after = net.state_dict()
    assert list(during) == list(after) and all(torch.equal(during[name], after[name]) for name in after)


def test_a_wrapper_and_its_module_are_freed() -> None:
    net = seeded(Toy)
    model = NNsight(net)
    with model.trace(rows()):
        model.layers[0].output
    gone = weakref.ref(net), weakref.ref(model), weakref.ref(net.layers[0])
    del net, model
    gc.collect()
    assert [ref() for ref in gone] == [None, None, None]


# -- copies of the wrapper -------------------------------------------------------------------------------------------


def through_pickle(value: Any) -> Any:
    return pickle.loads(pickle.dumps(value))


@pytest.mark.parametrize("copied", [through_pickle, copy.deepcopy], ids=["pickle", "deepcopy"])
@pytest.mark.parametrize("used", [False, True])
def test_a_wrapper_can_be_copied_with_its_module(net: Toy, used: bool, copied: Callable[[Any], Any]) -> None:
    model = NNsight(net, rename={"layers": "h"})
    if used:
        with model.trace(rows()):
            model.h[0].output
    twin = copied(model)
    assert twin._module is not net and twin.root is twin and type(twin) is NNsight
    with twin.trace(rows()):
        twin.h[0].output[:] = 0
        out = twin.output
    hooked = Hooked(net, rows(), edits={"layers.0": torch.zeros_like})
    assert torch.equal(out, hooked.result)


@pytest.mark.parametrize("copied", [through_pickle, copy.deepcopy], ids=["pickle", "deepcopy"])
def test_a_child_is_copied_with_its_tree(model: Any, copied: Callable[[Any], Any]) -> None:
    twin = copied(model.layers[1])
    assert twin.path == "model.layers.1" and twin.root.layers[1] is twin and twin.root is not model


@pytest.mark.parametrize("copied", [through_pickle, copy.deepcopy], ids=["pickle", "deepcopy"])
def test_what_the_user_hung_on_a_wrapper_is_copied_too(model: Any, copied: Callable[[Any], Any]) -> None:
    model.favourite = model.layers[2]
    model.note = "kept"
    twin = copied(model)
    assert twin.note == "kept" and twin.favourite is twin.layers[2]


@pytest.mark.parametrize("copied", [through_pickle, copy.deepcopy], ids=["pickle", "deepcopy"])
def test_a_root_that_collides_can_be_copied_again_and_again(copied: Callable[[Any], Any]) -> None:
    model = NNsight(seeded(Colliding))
    twin = copied(copied(model))
    assert isinstance(twin.output, Envoy)
    with twin.nns_trace(rows()):
        out = twin.nns_output
    assert torch.equal(out, model._module(rows()))


def test_a_shallow_copy_shares_the_module_and_not_the_edits(model: Any, net: Toy) -> None:
    twin = copy.copy(model)
    assert twin._module is net and twin.root is twin
    with twin.edit(inplace=True):
        twin.layers[0].output[:] = 0
    with model.trace(rows()):
        out = model.output
    assert torch.equal(out, net(rows())) and not model.edits and len(twin.edits) == 1


def test_a_deep_copy_is_edited_as_the_model_was(net: Toy) -> None:
    model = NNsight(net)
    factor = 3.0
    with model.edit(inplace=True):
        model.layers[0].output = model.layers[0].output * factor
    twin = copy.deepcopy(model)
    model.clear_edits()
    with twin.trace(rows()):
        out = twin.output
    assert torch.equal(out, Hooked(net, rows(), edits={"layers.0": lambda value: value * 3}).result)


def test_a_module_with_its_own_copying_does_not_answer_for_its_envoy() -> None:
    graph = torch.fx.symbolic_trace(nn.Sequential(nn.Linear(4, 4)))
    assert hasattr(graph, "__deepcopy__")
    assert isinstance(copy.deepcopy(NNsight(graph)), NNsight)


# -- calls by hand ---------------------------------------------------------------------------------------------------


def test_a_wrapper_and_its_envoys_can_be_called(model: Any, net: Toy) -> None:
    assert torch.equal(model(rows()), net(rows()))
    assert torch.equal(model.layers[0](torch.ones(1, 8), scale=2.0), net.layers[0](torch.ones(1, 8), scale=2.0))


def test_a_tuple_model_can_be_wrapped_twice_over() -> None:
    net = seeded(TupleModel)
    assert torch.equal(nnsight.NNsight(net)(rows()), net(rows()))
