"""Values that the author of a library defines: `eproperty`, and the envoy classes that carry them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from core_toys import Block, Hooked, Toy, TupleModel, rows, seeded
from torch import nn

from nnsight import Envoy, NNsight, NNsightError, NoTraceError, eproperty
from nnsight.plugin import notes, provide


class HeadsEnvoy(Envoy):
    """Shows the output of a linear layer as heads."""

    @eproperty(description="[row, head, size]")
    def heads(self, output: torch.Tensor) -> torch.Tensor:
        """The output, head by head."""
        return output.unflatten(-1, (2, -1))

    @heads.setter
    def heads(self, output: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        return value.flatten(-2)

    @eproperty
    def total(self, output: torch.Tensor) -> torch.Tensor:
        return output.sum(-1)

    @eproperty
    def doubled(self, output: torch.Tensor) -> torch.Tensor:
        return output * 2

    @doubled.setter
    def doubled(self, output: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        return value / 2

    @eproperty(site="input")
    def first(self, inputs: Any) -> torch.Tensor:
        return inputs[0][0]

    @first.setter
    def first(self, inputs: Any, value: torch.Tensor) -> Any:
        return ((value, *inputs[0][1:]), inputs[1])


class OtherEnvoy(Envoy):
    pass


@pytest.fixture
def net() -> Toy:
    return seeded(Toy)


@pytest.fixture
def model(net: Toy) -> Any:
    return NNsight(net, envoys={nn.Linear: HeadsEnvoy})


def same_after(net: nn.Module, path: str, edit: Any) -> torch.Tensor:
    return Hooked(net, rows(), edits={path: edit}).result


# -- which class an envoy has ----------------------------------------------------------------------------------------


def test_one_class_for_all(net: Toy) -> None:
    model = NNsight(net, envoys=OtherEnvoy)
    assert all(isinstance(envoy, OtherEnvoy) for envoy in model.modules()[1:])
    assert isinstance(model, NNsight)


def test_a_class_by_module_type(model: Any) -> None:
    of = {type(envoy._module).__name__: type(envoy) for envoy in model.modules()[1:]}
    assert of["Linear"] is HeadsEnvoy and of["Block"] is Envoy and of["LayerNorm"] is Envoy


def test_the_nearest_type_wins(net: Toy) -> None:
    model = NNsight(net, envoys={nn.Module: OtherEnvoy, nn.Linear: HeadsEnvoy})
    assert type(model.head) is HeadsEnvoy and type(model.ln) is OtherEnvoy


@pytest.mark.parametrize("suffix", ["attn", "layers.*.attn", ".attn", "*.attn"])
def test_a_class_by_path_suffix(net: Toy, suffix: str) -> None:
    model = NNsight(net, envoys={suffix: HeadsEnvoy})
    paths = [path for path, envoy in model.named_modules() if isinstance(envoy, HeadsEnvoy)]
    assert paths == [f"model.layers.{i}.attn" for i in range(3)]


def test_a_suffix_is_made_of_whole_names_and_wins_over_a_type(net: Toy) -> None:
    model = NNsight(net, envoys={"1.attn": HeadsEnvoy, "n": OtherEnvoy, nn.Linear: OtherEnvoy})
    assert type(model.layers[1].attn) is HeadsEnvoy
    assert type(model.layers[0].attn) is OtherEnvoy and type(model.ln) is Envoy


# -- reading ---------------------------------------------------------------------------------------------------------


def test_the_read_map_shows_the_value_in_another_form(model: Any, net: Toy) -> None:
    with model.trace(rows()):
        heads = model.layers[1].attn.heads
        total = model.layers[1].attn.total
        plain = model.layers[1].attn.output
    want = Hooked(net, rows())["layers.1.attn"]
    assert torch.equal(heads, want.reshape(2, 2, 4)) and torch.equal(total, want.sum(-1)) and torch.equal(plain, want)


def test_a_value_of_the_input(model: Any, net: Toy) -> None:
    with model.trace(rows()):
        first = model.layers[1].attn.first
        model.layers[1].attn.first = torch.zeros_like(first)
        out = model.output
    hooked = Hooked(net, rows())
    assert torch.equal(first, hooked["layers.0"])
    bias = net.layers[1].attn.bias
    assert torch.equal(out, same_after(net, "layers.1.attn", lambda value: bias.expand_as(value)))


def test_outside_a_trace_it_is_the_usual_error(model: Any) -> None:
    with pytest.raises(NoTraceError):
        model.layers[1].attn.heads


def test_on_the_class_it_is_itself() -> None:
    assert isinstance(HeadsEnvoy.heads, eproperty) and HeadsEnvoy.heads.__doc__ == "The output, head by head."


# -- writing ---------------------------------------------------------------------------------------------------------


def test_assigning_goes_through_the_write_map(model: Any, net: Toy) -> None:
    with model.trace(rows()):
        model.layers[1].attn.heads = torch.ones(2, 2, 4)
        out = model.output
    assert torch.equal(out, same_after(net, "layers.1.attn", torch.ones_like))


def test_an_edit_in_place_of_a_view_takes_effect(model: Any, net: Toy) -> None:
    def edit(value: torch.Tensor) -> torch.Tensor:
        value[:, :4] = 0
        return value

    with model.trace(rows()):
        model.layers[1].attn.heads[:, 0] = 0
        out = model.output
    assert torch.equal(out, same_after(net, "layers.1.attn", edit))


def test_an_edit_in_place_of_a_copy_takes_effect_through_the_write_map(model: Any, net: Toy) -> None:
    with model.trace(rows()):
        model.layers[1].attn.doubled[:, 1] = 6
        out = model.output

    def edit(value: torch.Tensor) -> torch.Tensor:
        value[:, 1] = 3
        return value

    assert torch.equal(out, same_after(net, "layers.1.attn", edit))


def test_a_copy_that_was_only_read_changes_nothing(model: Any, net: Toy) -> None:
    calls = []
    plain = HeadsEnvoy.doubled.write
    try:
        HeadsEnvoy.doubled.write = lambda *args: calls.append(args) or plain(*args)
        with model.trace(rows()):
            model.layers[1].attn.doubled
            out = model.output
    finally:
        HeadsEnvoy.doubled.write = plain
    assert torch.equal(out, net(rows())) and not calls


def test_an_edit_in_place_of_a_copy_without_a_write_map_is_an_error(model: Any) -> None:
    with pytest.raises(NNsightError, match="model.layers.1.attn.total.*no setter"), model.trace(rows()):
        model.layers[1].attn.total[:] = 0


def test_assigning_without_a_write_map_is_an_error_at_that_line(model: Any) -> None:
    with pytest.raises(AttributeError, match="model.layers.1.attn.total.*read only"), model.trace(rows()):
        model.layers[1].attn.total = torch.zeros(2)


def test_assigning_after_an_edit_in_place_forgets_the_edit(model: Any, net: Toy) -> None:
    with model.trace(rows()):
        model.layers[1].attn.doubled[:] = 7
        model.layers[1].attn.doubled = torch.full((2, 8), 4.0)
        out = model.output
    assert torch.equal(out, same_after(net, "layers.1.attn", lambda value: torch.full_like(value, 2)))


def test_several_views_of_one_value_edit_it_together(model: Any, net: Toy) -> None:
    with model.trace(rows()):
        model.layers[1].attn.heads[:, 0] = 1
        model.layers[1].attn.output[:, 7] = 2
        again = model.layers[1].attn.heads.clone()
        out = model.output

    def edit(value: torch.Tensor) -> torch.Tensor:
        value[:, :4] = 1
        value[:, 7] = 2
        return value

    assert (again[:, 0] == 1).all() and (again[:, 1, 3] == 2).all()
    assert torch.equal(out, same_after(net, "layers.1.attn", edit))


def test_each_invoke_writes_its_own_rows(model: Any, net: Toy) -> None:
    with model.trace() as tracer:
        with tracer.invoke(rows()):
            model.layers[1].attn.heads[:, 0] = 0
            first = model.output
        with tracer.invoke(rows()):
            model.layers[1].attn.doubled[:] = 2
            second = model.output
        with tracer.invoke(rows()):
            model.layers[1].attn.heads = torch.ones(2, 2, 4)
            third = model.output
        with tracer.invoke(rows()):
            last = model.output

    def zero(value: torch.Tensor) -> torch.Tensor:
        value[:, :4] = 0
        return value

    one = same_after(net, "layers.1.attn", torch.ones_like)
    assert torch.allclose(first, same_after(net, "layers.1.attn", zero), atol=1e-6)
    assert torch.allclose(second, one, atol=1e-6) and torch.allclose(third, one, atol=1e-6)
    assert torch.allclose(last, net(rows()), atol=1e-6)


def test_a_read_map_may_choose_from_a_tuple() -> None:
    class LeftEnvoy(Envoy):
        @eproperty
        def one(self, output: Any) -> torch.Tensor:
            return output[0]

        @one.setter
        def one(self, output: Any, value: torch.Tensor) -> Any:
            return (value, *output[1:])

    net = seeded(TupleModel)
    model = NNsight(net, envoys={"pair": LeftEnvoy})
    with model.trace(rows()):
        model.pair.one = model.pair.one * 3
        out = model.output
    assert torch.equal(out, same_after(net, "pair", lambda value: (value[0] * 3, value[1])))
    with model.trace(rows()):
        model.pair.one[:] = 1
        out = model.output
    assert torch.equal(out, same_after(net, "pair", lambda value: (torch.ones_like(value[0]), value[1])))


# -- values from outside the modules ---------------------------------------------------------------------------------


class StageEnvoy(Envoy):
    stage = eproperty(provided=True, description="what the block made in between")

    @eproperty(provided=True)
    def shifted(self, value: torch.Tensor) -> torch.Tensor:
        return value + 1

    @shifted.setter
    def shifted(self, value: torch.Tensor, shown: torch.Tensor) -> torch.Tensor:
        return shown - 1


class Providing(nn.Module):
    """Offers a value of its forward by a name."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 4)
        self.envoy: Any = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for name in ("stage", "shifted"):
            x = torch.tanh(x)
            if self.envoy is not None:
                x = provide(self.envoy, name, x)
        return self.inner(x)


@pytest.fixture
def providing() -> Any:
    net = nn.Sequential(seeded(Providing), seeded(nn.Linear, 4, 4))
    model = NNsight(net, envoys={Providing: StageEnvoy})
    net[0].__dict__["envoy"] = model[0]
    return model


def test_a_provided_value_is_read_and_written(providing: Any) -> None:
    inner, last = providing._module[0].inner, providing._module[1]
    x = rows()
    once = torch.tanh(x)
    with providing.trace(x):
        stage = providing[0].stage
        providing[0].stage = stage * 2
        shifted = providing[0].shifted
        out = providing.output
    assert torch.equal(stage, once)
    assert torch.equal(shifted, torch.tanh(once * 2) + 1)
    assert torch.equal(out, last(inner(torch.tanh(once * 2))))
    with providing.trace(x):
        providing[0].shifted = torch.ones(2, 4)
        out = providing.output
    assert torch.equal(out, last(inner(torch.zeros(2, 4))))


def test_a_provided_value_comes_in_its_order(providing: Any) -> None:
    with pytest.raises(NNsightError, match="model.0.stage"), providing.trace(rows()):
        providing[0].inner.output
        providing[0].stage


def test_a_provided_value_has_rows(providing: Any) -> None:
    x, y = rows(seed=1), rows(seed=2)
    with providing.trace() as tracer:
        with tracer.invoke(x):
            a = providing[0].stage.clone()
        with tracer.invoke(y):
            b = providing[0].stage.clone()
            providing[0].stage = torch.zeros(2, 4)
            out = providing.output
    torch.testing.assert_close(a, torch.tanh(x))
    torch.testing.assert_close(b, torch.tanh(y))
    inner, last = providing._module[0].inner, providing._module[1]
    assert torch.allclose(out, last(inner(torch.zeros(2, 4))), atol=1e-6)


def test_without_a_run_a_provided_value_passes(providing: Any) -> None:
    x = rows()
    bare = providing._module
    with_envoy = bare(x)
    bare[0].envoy = None
    assert torch.equal(with_envoy, bare(x))


def test_providing_under_an_unknown_name_is_an_error(providing: Any) -> None:
    class Wrong(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return provide(self.envoy, "nothing", x)

    net = Wrong()
    model = NNsight(nn.Sequential(net, nn.Identity()))
    net.envoy = model[0]  # type: ignore[assignment]
    with pytest.raises(AttributeError, match="called 'nothing'"), model.trace(rows()):
        model[1].output


# -- the rest --------------------------------------------------------------------------------------------------------


def test_the_description_is_in_the_repr(model: Any, providing: Any) -> None:
    assert repr(model.head).count("(heads): [row, head, size]") == 1
    assert repr(model).count("(heads): [row, head, size]") >= 3
    assert "(stage): what the block made in between" in repr(providing)


def test_a_site_is_the_output_or_the_input() -> None:
    with pytest.raises(ValueError, match="'output'"):
        eproperty(site="somewhere")


def test_a_subclass_inherits_its_properties(net: Toy) -> None:
    class Sub(HeadsEnvoy):
        pass

    model = NNsight(net, envoys={"attn": Sub})
    with model.trace(rows()):
        heads = model.layers[0].attn.heads
    assert heads.shape == (2, 2, 4) and "[row, head, size]" in repr(model.layers[0].attn)


def test_properties_of_a_block_are_cached_by_nobody(net: Toy) -> None:
    class Counting(Envoy):
        reads = 0

        @eproperty
        def seen(self, output: torch.Tensor) -> torch.Tensor:
            Counting.reads += 1
            return output.detach()

    model = NNsight(net, envoys={Block: Counting})
    with model.trace(rows()):
        model.layers[0].output
    assert Counting.reads == 0
    with model.trace(rows()):
        model.layers[0].seen
    assert Counting.reads == 1


def test_what_a_family_attaches_is_called_from_anywhere() -> None:
    # The first run of a model shows which of its modules are called from elsewhere than inside their holder; what a
    # family attaches may not be called in that run at all.
    class Passing(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = torch.nn.Identity()

        def forward(self, value):
            return value

    class Family(NNsight):
        def __init__(self, module):
            super().__init__(module)
            self._attach("extra", Passing())

        def _target(self, method):
            if method != "through":
                return super()._target(method)
            return lambda x: self.__dict__["_extras"]["extra"].inner(self._module(x))

    model = Family(torch.nn.Sequential(torch.nn.Linear(4, 4)))
    x = torch.rand(1, 4)
    with model.trace(x):
        plain = model[0].output
    with model.trace(x, fn="through"):
        first = model[0].output
        inner = model.extra.inner.output
    assert torch.equal(inner, plain) and torch.equal(first, plain)


# -- notes -----------------------------------------------------------------------------------------------------------


class NotingEnvoy(Envoy):
    @property
    def noted(self) -> dict[Any, Any]:
        return notes(self)


def test_notes_are_one_bodys_and_end_with_its_run(net: Toy) -> None:
    model: Any = NNsight(net, envoys=NotingEnvoy)
    with model.trace() as tracer:
        with tracer.invoke(rows()):
            model.layers[0].noted["mine"] = 1
            model.layers[0].output
            first = dict(model.layers[2].noted)
        with tracer.invoke(rows()):
            second = dict(model.layers[2].noted)
    assert first == {"mine": 1} and second == {}
    with model.trace(rows()):
        assert model.layers[0].noted == {}
    with pytest.raises(NoTraceError, match="outside any trace"):
        model.layers[0].noted  # noqa: B018


def test_notes_are_those_of_a_step(net: Toy) -> None:
    model: Any = NNsight(net, envoys=NotingEnvoy)
    with model.trace(rows()) as tracer:
        model.layers[0].noted["at"] = "before"
        with tracer.iter[0]:
            model.layers[0].output
            inside = dict(model.layers[0].noted)
    assert inside == {}
