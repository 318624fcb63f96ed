"""Caches: what they keep, of which modules, and how it is found in them."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
import torch
from core_toys import Colliding, Hooked, Recurrent, Toy, TupleModel, rows, seeded
from torch import nn

import nnsight
from nnsight import NNsight


@pytest.fixture
def net() -> Toy:
    return seeded(Toy)


@pytest.fixture
def model(net: Toy) -> Any:
    return NNsight(net)


def test_all_modules_are_kept(model: Any, net: Toy) -> None:
    with model.trace(rows()) as tracer:
        cache = tracer.cache()
    hooked = Hooked(net, rows())
    want = {"model" + ("." + path if path else "") for path in hooked.outputs}
    assert set(cache) == want and len(cache) == len(want)
    for path in hooked.outputs:
        assert torch.equal(cache["model." + path if path else "model"].output, hooked[path])


def test_containers_that_never_run_are_not_in_it(model: Any) -> None:
    with model.trace(rows()) as tracer:
        cache = tracer.cache()
    assert "model.layers" not in cache
    with pytest.raises(KeyError, match=r"model\.layers"):
        cache["model.layers"]


@pytest.mark.parametrize("how", ["envoys", "paths", "short paths"])
def test_chosen_modules(model: Any, net: Toy, how: str) -> None:
    chosen: list[Any] = [model.layers[0], model.layers[2].mlp]
    if how == "paths":
        chosen = [envoy.path for envoy in chosen]
    elif how == "short paths":
        chosen = ["layers.0", "layers.2.mlp"]
    with model.trace(rows()) as tracer:
        cache = tracer.cache(modules=chosen)
    hooked = Hooked(net, rows())
    assert list(cache) == ["model.layers.0", "model.layers.2.mlp"]
    assert torch.equal(cache["model.layers.2.mlp"].output, hooked["layers.2.mlp"])


def test_paths_of_a_model_that_holds_a_model_may_begin_at_the_root_or_below_it() -> None:
    holder = nn.Module()
    holder.model = nn.Sequential(nn.Linear(3, 3), nn.Tanh())
    holder.forward = lambda x: holder.model(x)  # type: ignore[assignment,method-assign]
    model = NNsight(holder)
    for path in ("model.0", "model.model.0"):
        with model.trace(torch.ones(1, 3)) as tracer:
            cache = tracer.cache(modules=[path])
        torch.testing.assert_close(cache["model.model.0"].output, holder.model[0](torch.ones(1, 3)))


def test_modules_that_are_not_there_are_an_error(model: Any) -> None:
    with pytest.raises(KeyError, match="nothing"), model.trace(rows()) as tracer:
        tracer.cache(modules=["layers.0.nothing"])
    with pytest.raises(TypeError, match=r"modules=\['head'\]"), model.trace(rows()) as tracer:
        tracer.cache(modules="head")
    with pytest.raises(TypeError, match="int"), model.trace(rows()) as tracer:
        tracer.cache(modules=[3])
    with pytest.raises(ValueError, match="empty"), model.trace(rows()) as tracer:
        tracer.cache(include_output=False)


def test_inputs_too(model: Any, net: Toy) -> None:
    with model.trace(rows(), scale=0.5) as tracer:
        cache = tracer.cache(include_inputs=True)
    hooked = Hooked(net, rows(), scale=0.5)
    args, kwargs = cache["model.layers.1"].inputs
    want_args, want_kwargs = hooked.inputs["layers.1"][0]
    assert torch.equal(args[0], want_args[0]) and kwargs == want_kwargs == {"scale": 0.5}
    assert torch.equal(cache["model.layers.1"].input, want_args[0])
    assert torch.equal(cache["model.layers.1"].output, hooked["layers.1"])


def test_inputs_alone(model: Any) -> None:
    with model.trace(rows()) as tracer:
        cache = tracer.cache(include_inputs=True, include_output=False)
    assert cache["model.head"].output is None and cache["model.head"].input.shape == (2, 8)


def test_without_inputs_there_are_none(model: Any) -> None:
    with model.trace(rows()) as tracer:
        cache = tracer.cache()
    assert cache["model.head"].inputs is None and cache["model.head"].input is None


def test_values_after_interventions(model: Any, net: Toy) -> None:
    with model.trace(rows()) as tracer:
        cache = tracer.cache(include_inputs=True)
        model.layers[0].output[:] = 0
        model.layers[1].output = torch.ones(2, 8)
        model.layers[2].input = torch.full((2, 8), 2.0)
    assert not cache["model.layers.0"].output.any()
    assert (cache["model.layers.1"].output == 1).all()
    assert (cache["model.layers.2"].input == 2).all()
    assert torch.equal(cache["model.layers.2"].output, net.layers[2](torch.full((2, 8), 2.0)))


def test_a_cache_begins_where_it_is_made(model: Any) -> None:
    with model.trace(rows()) as tracer:
        model.layers[1].output
        cache = tracer.cache()
    assert "model.layers.0" not in cache and "model.layers.2" in cache and "model.head" in cache


def test_values_are_detached_unless_asked(model: Any) -> None:
    with model.trace(rows()) as tracer:
        cache = tracer.cache()
        attached = tracer.cache(detach=False)
    assert not cache["model.head"].output.requires_grad
    assert attached["model.head"].output.requires_grad


def test_device_and_type(model: Any, net: Toy) -> None:
    with model.trace(rows()) as tracer:
        cast = tracer.cache(dtype=torch.float64)
        moved = tracer.cache(device="meta")
    want = Hooked(net, rows())["layers.0"]
    value = cast["model.layers.0"].output
    assert value.dtype is torch.float64 and torch.equal(value, want.double())
    assert moved["model.layers.0"].output.device == torch.device("meta")


def test_whole_numbers_keep_their_type() -> None:
    net = torch.nn.Embedding(5, 4)
    model = NNsight(net)
    ids = torch.tensor([[1, 2]])
    with model.trace(ids) as tracer:
        cache = tracer.cache(dtype=torch.float16, include_inputs=True)
    assert cache["model"].output.dtype is torch.float16
    assert cache["model"].input.dtype is torch.int64 and torch.equal(cache["model"].input, ids)


def test_a_copy_moved_elsewhere_is_not_changed_by_later_edits(model: Any, net: Toy) -> None:
    with model.trace(rows()) as tracer:
        cache = tracer.cache(modules=["embed"], dtype=torch.float64)
        h = model.embed.output
        model.layers[1].input
        h.data.zero_()
    assert torch.equal(cache["model.embed"].output, net.embed(rows()).double())


class InPlace(torch.nn.Module):
    """Goes on with what `first` gave, and gives `second` what it then changes."""

    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.Linear(4, 4)
        self.second = torch.nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.first(x)
        given = hidden * 1
        more = self.second(given)
        given.zero_()
        hidden += more
        return hidden


@pytest.fixture
def adding() -> Any:
    return NNsight(seeded(InPlace))


def test_what_the_model_changes_in_place_is_refused_and_the_rest_is_kept(adding: Any) -> None:
    x = torch.rand(2, 4)
    with torch.no_grad(), adding.trace(x) as tracer:
        cache = tracer.cache(include_inputs=True)
        adding.second.output
        cache.model.first.output  # as long as it is what passed
        adding.output
        with pytest.raises(nnsight.ChangedValueError, match="output of `model.first`"):
            cache.model.first.output
    for _ in range(2):
        with pytest.raises(nnsight.ChangedValueError, match="output of `model.first`.*copy=True"):
            cache.model.first.output
        with pytest.raises(nnsight.ChangedValueError, match="input of `model.second`"):
            cache["model.second"].input
    assert torch.equal(cache.model.second.output, adding._module.second(adding._module.first(x)))
    assert cache.model.first.input is x


@pytest.mark.parametrize("options", [{}, {"device": "cpu"}, {"dtype": torch.float32}])
def test_copies_are_what_passed(adding: Any, options: dict[str, Any]) -> None:
    x = torch.rand(2, 4)
    with torch.no_grad(), adding.trace(x) as tracer:
        cache = tracer.cache(copy=True, include_inputs=True, **options)
    first = adding._module.first(x)
    assert torch.equal(cache.model.first.output, first)
    assert torch.equal(cache.model.second.input, first)


def test_what_a_later_line_changes_in_place_is_refused(adding: Any) -> None:
    with torch.no_grad(), adding.trace(torch.rand(2, 4)) as tracer:
        cache = tracer.cache(modules=[adding.second])
        kept = adding.second.output
        adding.output
        kept[:] = 0
    with pytest.raises(nnsight.ChangedValueError):
        cache.model.second.output


@pytest.mark.parametrize("copy", [False, True])
@pytest.mark.parametrize("end", ["well", "stopped", "with an error"])
def test_after_the_run_a_cached_value_is_the_users(adding: Any, end: str, copy: bool) -> None:
    with contextlib.suppress(LookupError), torch.no_grad(), adding.trace(torch.rand(2, 4)) as tracer:
        cache = tracer.cache(modules=[adding.second], copy=copy)
        adding.output
        if end == "stopped":
            tracer.stop()
        if end == "with an error":
            raise LookupError
    cache.model.second.output[:] = 3
    assert cache.model.second.output.eq(3).all()


def test_inference_mode_counts_no_changes(adding: Any) -> None:
    x = torch.rand(2, 4)
    with torch.inference_mode(), adding.trace(x) as tracer:
        cache = tracer.cache()
    assert cache.model.second.output.shape == (2, 4)


# -- how entries are found -------------------------------------------------------------------------------------------


def test_by_path_and_by_attributes(model: Any) -> None:
    with model.trace(rows()) as tracer:
        cache = tracer.cache(include_inputs=True)
    entry = cache["model.layers.1.mlp.0"]
    assert cache["layers.1.mlp.0"] is entry
    assert cache.model.layers[1].mlp[0].output is entry.output
    assert cache.layers[1].mlp[0].output is entry.output
    assert cache.model.layers[-2].mlp[0].input is entry.input
    assert cache.model.layers[1].mlp[0].inputs is entry.inputs
    assert cache.model.output is cache["model"].output
    for i, branch in enumerate(cache.model.layers):
        assert branch.output is cache[f"model.layers.{i}"].output
    assert [b.output.shape for b in cache.model.layers[1:]] == [(2, 8), (2, 8)]


def test_by_alias(net: Toy) -> None:
    model = NNsight(net, rename={"layers": "h", "mlp": "ff"})
    with model.trace(rows()) as tracer:
        cache = tracer.cache()
    value = cache["model.layers.1.mlp"].output
    assert cache.model.h[1].ff.output is value
    assert cache["model.h.1.ff"].output is value and "model.h.1.ff" in cache


def test_what_is_not_there_says_what_is(model: Any) -> None:
    with model.trace(rows()) as tracer:
        cache = tracer.cache(modules=["head"])
    with pytest.raises(KeyError, match=r"'model\.ln'.*holds model\.head"):
        cache["model.ln"]
    with pytest.raises((KeyError, AttributeError), match=r"holds model\.head|Cache\(model\.head\)"):
        cache.model.ln.output
    with pytest.raises(AttributeError, match="nothing"):
        cache.model.nothing
    assert "model.ln" not in cache and repr(cache) == "Cache(model.head)"


def test_it_is_a_mapping(model: Any) -> None:
    with model.trace(rows()) as tracer:
        cache = tracer.cache(modules=["ln", "head"])
    assert list(cache.keys()) == ["model.ln", "model.head"]
    assert {path: entry.output.shape for path, entry in cache.items()} == {"model.ln": (2, 8), "model.head": (2, 5)}
    assert cache.get("model.embed") is None and isinstance(cache, nnsight.Cache)


def test_names_of_ours_are_reached_where_a_submodule_has_them() -> None:
    net = seeded(Colliding)
    model = NNsight(net)
    with model.nns_trace(rows()) as tracer:
        cache = tracer.cache()
    hooked = Hooked(net, rows())
    assert torch.equal(cache.model.output.output, hooked["output"])
    assert torch.equal(cache.model.nns_output, hooked.result)


def test_outputs_that_are_tuples() -> None:
    net = seeded(TupleModel)
    model = NNsight(net)
    with model.trace(rows()) as tracer:
        cache = tracer.cache()
    left, right = cache["model.pair"].output
    want = Hooked(net, rows())["pair"]
    assert torch.equal(left, want[0]) and torch.equal(right, want[1]) and not left.requires_grad


# -- several visits, several invokes ---------------------------------------------------------------------------------


def test_each_visit_has_its_entry() -> None:
    net = seeded(Recurrent)
    model = NNsight(net)
    with model.trace(rows()) as tracer:
        cache = tracer.cache(include_inputs=True)
    hooked = Hooked(net, rows())
    visits = cache["model.cell"]
    assert len(visits) == 4
    for visit, value, (args, _) in zip(visits, hooked.outputs["cell"], hooked.inputs["cell"]):
        assert torch.equal(visit.output, value) and torch.equal(visit.input, args[0])
    assert torch.equal(visits.output, hooked["cell"])
    assert torch.equal(cache.model.cell[2].output, hooked.outputs["cell"][2])


def test_each_invoke_keeps_its_rows(model: Any, net: Toy) -> None:
    x, y = rows(2, seed=1), rows(3, seed=2)
    with model.trace() as tracer:
        with tracer.invoke(x):
            one = tracer.cache(include_inputs=True)
        with tracer.invoke(y):
            other = tracer.cache(modules=[model.head])
        with tracer.invoke():
            whole = tracer.cache(modules=[model.head])
    for cache, value in ((one, x), (other, y), (whole, torch.cat([x, y]))):
        assert torch.allclose(cache["model.head"].output, Hooked(net, value)["head"], atol=1e-6)
    assert torch.allclose(one["model.layers.1"].input, Hooked(net, x)["layers.0"], atol=1e-6)
    assert list(other) == ["model.head"]


def test_a_cache_of_the_trace_sees_the_whole_batch(model: Any, net: Toy) -> None:
    x, y = rows(2, seed=1), rows(3, seed=2)
    with model.trace() as tracer:
        cache = tracer.cache()
        with tracer.invoke(x):
            model.layers[0].output[:] = 0
        with tracer.invoke(y):
            model.output
    first = cache["model.layers.0"].output
    assert first.shape == (5, 8) and not first[:2].any()
    assert torch.allclose(first[2:], Hooked(net, y)["layers.0"], atol=1e-6)


def test_a_cache_of_a_part_that_is_traced_alone(model: Any, net: Toy) -> None:
    h = torch.ones(2, 8)
    with model.layers[1].trace(h) as tracer:
        cache = tracer.cache()
    assert torch.equal(cache["model.layers.1.mlp"].output, Hooked(net.layers[1], h)["mlp"])
    assert "model.head" not in cache


def test_a_cache_is_there_after_stopping(model: Any, net: Toy) -> None:
    with model.trace(rows()) as tracer:
        cache = tracer.cache()
        model.layers[1].output
        tracer.stop()
    assert torch.equal(cache["model.layers.0"].output, Hooked(net, rows())["layers.0"]) and "model.head" not in cache


def test_a_cache_that_sees_nothing_says_so(model: Any) -> None:
    with pytest.warns(nnsight.UnmetSiteWarning, match=r"model\.layers\.0`.* is empty"):
        with model.trace(rows()) as tracer:
            model.layers[1].output
            late = tracer.cache(modules=[model.layers[0]])
    assert not late
    with pytest.warns(nnsight.UnmetSiteWarning, match=r"model\.head`.* is empty"):
        with model.layers[1].trace(torch.ones(2, 8)) as tracer:
            outside = tracer.cache(modules=[model.head])
    assert not outside
    with pytest.warns(nnsight.UnmetSiteWarning, match="is empty"):
        with model.trace(rows()) as tracer:
            tracer.result
            after = tracer.cache()
    assert not after


class Ahead(nn.Module):
    """Calls a part of a module before the module itself, and in it again."""

    def __init__(self) -> None:
        super().__init__()
        self.outer = nn.ModuleDict()
        self.block = nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.Linear(4, 4), nn.ReLU()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.block(self.block[1][0](x))


def test_a_part_that_is_called_ahead_of_its_module_is_cached_in_every_run() -> None:
    net = seeded(Ahead)
    model = NNsight(net)
    x = rows(2)
    for _ in range(3):
        with model.trace(x) as tracer:
            cache = tracer.cache()
        first, second = cache["model.block.1.0"]
        torch.testing.assert_close(first.output, net.block[1][0](x))
        torch.testing.assert_close(second.output, net.block[1][0](net.block[0](first.output)))
