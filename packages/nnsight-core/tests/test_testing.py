"""The suites that are shipped for authors of plugins: they pass on what is right, and fail on what is wrong."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from nnsight import NNsight
from nnsight.plugin import Envoy, HereBackend, LazyModel, PlainLayout, eproperty
from nnsight.testing import (
    MLP,
    BackendSuite,
    FamilySuite,
    Generating,
    GeneratingSuite,
    Hooked,
    LoadableSuite,
    Pair,
    Recurrent,
    Transformer,
    assert_alike,
    seeded,
    state_of,
)


def rows(*counts: int) -> list[torch.Tensor]:
    """Inputs of so many rows."""
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(count, 4, generator=generator) for count in counts]


class TestMLP(FamilySuite):
    def make_model(self) -> NNsight:
        return NNsight(seeded(MLP))

    def inputs(self) -> list[Any]:
        return rows(2, 1, 3)


class TestPair(FamilySuite):
    def make_model(self) -> NNsight:
        return NNsight(seeded(Pair))

    def inputs(self) -> list[Any]:
        return rows(1, 2)


class TestRecurrent(FamilySuite):
    def make_model(self) -> NNsight:
        return NNsight(seeded(Recurrent))

    def inputs(self) -> list[Any]:
        return rows(1, 2)


class TestGenerating(GeneratingSuite):
    options = {"steps": 4}

    def make_model(self) -> NNsight:
        return WithOptions(seeded(Generating))

    def inputs(self) -> list[Any]:
        return rows(2, 1)


class WithOptions(NNsight):
    """Tells options of the generation from inputs."""

    def _has_input(self, inputs: tuple[Any, ...], kwargs: Any) -> bool:
        return bool(inputs)


class Heads(Envoy):
    """A view and a copy of a projection's output."""

    @eproperty(description="[rows, positions, heads, size]")
    def heads(self, output: Any) -> Any:
        return output.unflatten(-1, (2, -1))

    @heads.setter
    def heads(self, output: Any, value: Any) -> Any:
        return value.flatten(-2)

    @eproperty
    def norms(self, output: Any) -> Any:
        return output.norm(dim=-1)


class PaddingTransformer(WithOptions):
    """Pads ids on the right; a causal model does not look there."""

    def _batch(self, prepared: Sequence[Any]) -> Any:
        ids = [args[0] for args, _, _ in prepared]
        longest = max(one.shape[1] for one in ids)
        padded = [torch.nn.functional.pad(one, (0, longest - one.shape[1])) for one in ids]
        return (torch.cat(padded),), dict(prepared[0][1])


class TestTransformer(FamilySuite):
    padding = "right"

    def make_model(self) -> NNsight:
        return PaddingTransformer(seeded(Transformer), envoys={"query": Heads})

    def inputs(self) -> list[Any]:
        return [torch.tensor([[3, 1, 4]]), torch.tensor([[1, 5, 9, 2, 6]]), torch.tensor([[5, 3], [5, 8]])]


class FromNowhere:
    """Builds and loads an MLP."""

    def build(self) -> torch.nn.Module:
        with torch.device("meta"):
            return MLP().eval()

    def load(self) -> torch.nn.Module:
        return seeded(MLP)


class TestLoadable(LoadableSuite):
    def make_source(self) -> FromNowhere:
        return FromNowhere()

    def inputs(self) -> list[Any]:
        return rows(2)


class TestHereBackend(BackendSuite):
    def make_backend(self) -> HereBackend:
        return HereBackend()


class TestHereByName(BackendSuite):
    def make_backend(self) -> Any:
        return "here"


# -- what is wrong is found ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def failed(tmp_path_factory: pytest.TempPathFactory) -> set[tuple[str, str]]:
    """Run the suites of what is wrong, and return (suite, check) of the checks that fail."""
    found: set[tuple[str, str]] = set()

    class Recorder:
        def pytest_runtest_logreport(self, report: Any) -> None:
            if report.failed:
                _, suite, check = report.nodeid.split("::")
                found.add((suite.removeprefix("Test"), check))

    folder = tmp_path_factory.mktemp("wrong")
    names = [suite.__name__ for suite in WRONG]
    classes = "".join(f"\nclass Test{name}(test_testing.{name}):\n    __test__ = True\n" for name in names)
    (folder / "test_wrong.py").write_text(f"import test_testing\n{classes}")
    quiet = [argument for plugin in ("terminal", "cacheprovider", "timeout") for argument in ("-p", f"no:{plugin}")]
    checks = " or ".join(set().union(*WRONG.values()))
    pytest.main(
        [*quiet, "-c", os.devnull, f"--rootdir={folder}", "-k", checks, str(folder / "test_wrong.py")], [Recorder()]
    )
    return found


class Blended(FamilySuite):
    """A family that states its rows wrongly: each invoke is given the first row."""

    __test__ = False

    class Model(NNsight):
        def _layout(self, total: int, args: Any, kwargs: Any, method: Any) -> PlainLayout:
            class FirstRow(PlainLayout):
                def take(self, value: torch.Tensor, rows: Any, path: str) -> torch.Tensor | None:
                    return super().take(value, (0, rows[1]), path)

            return FirstRow(total)

    def make_model(self) -> NNsight:
        return self.Model(seeded(MLP))

    def inputs(self) -> list[Any]:
        return rows(1, 1)


class Unmasked(TestTransformer):
    """A family that pads on the side where a causal model looks, and masks nothing."""

    __test__ = False
    padding = "left"

    class Model(PaddingTransformer):
        def _batch(self, prepared: Sequence[Any]) -> Any:
            ids = [args[0] for args, _, _ in prepared]
            longest = max(one.shape[1] for one in ids)
            return (torch.cat([torch.nn.functional.pad(one, (longest - one.shape[1], 0)) for one in ids]),), {}

    def make_model(self) -> NNsight:
        return self.Model(seeded(Transformer))


class Leaving(TestMLP):
    """A family that leaves something on its module."""

    __test__ = False

    class Model(NNsight):
        def _prepare_input(self, *inputs: Any, **kwargs: Any) -> Any:
            self._module.register_forward_hook(lambda *_: None)
            return super()._prepare_input(*inputs, **kwargs)

    def make_model(self) -> NNsight:
        return self.Model(seeded(MLP))


class Careless(BackendSuite):
    """A backend that brings back everything, and makes one error of all."""

    __test__ = False

    class Backend:
        def run(self, request: Any) -> dict[str, Any]:
            try:
                request.replay()
            except Exception as error:
                raise ValueError("it failed over there") from error
            return dict(request.names)

    def make_backend(self) -> Any:
        return self.Backend()


class Forgetful(TestLoadable):
    """A source whose tree without weights is another one."""

    __test__ = False

    class Source(FromNowhere):
        def build(self) -> torch.nn.Module:
            with torch.device("meta"):
                return MLP(depth=2).eval()

    def make_source(self) -> FromNowhere:
        return self.Source()

    def make_model(self) -> LazyModel:
        return LazyModel(self.make_source())


WRONG = {
    Blended: {
        "test_each_input_of_a_batch_gets_what_it_gets_alone",
        "test_an_edit_in_one_invoke_leaves_the_others_alone",
    },
    Unmasked: {"test_each_input_of_a_batch_gets_what_it_gets_alone"},
    Leaving: {"test_the_module_is_left_as_it_was"},
    Careless: {"test_only_what_was_saved_comes_back", "test_an_error_of_the_block_keeps_its_type"},
    Forgetful: {"test_built_without_weights_it_is_named_as_with_them"},
}


def test_what_is_wrong_is_found(failed: set[tuple[str, str]]) -> None:
    wanted = {(suite.__name__, check) for suite, checks in WRONG.items() for check in checks}
    assert wanted - failed == set()


def test_an_error_in_a_suite_points_to_the_suite() -> None:
    # The suites lie in the package whose frames are folded away; they are users of it nevertheless.
    with pytest.raises(RuntimeError) as caught:
        TestHereBackend().test_steps(backend=Failing())
    assert any(frame.path.name == "backend.py" and "testing" in frame.path.parts for frame in caught.traceback)


class Failing:
    def run(self, request: Any) -> dict[str, Any]:
        raise RuntimeError("over there")


# -- the reference itself --------------------------------------------------------------------------------------------


def test_hooks_see_outputs_inputs_and_their_order() -> None:
    net, (x,) = seeded(MLP), rows(2)
    plain = Hooked(net, lambda: net(x))
    assert plain.order == ["embed", "layers.0", "layers.1", "layers.2", "head", ""]
    assert torch.equal(plain["embed"], net.embed(x)) and torch.equal(plain.result, net(x))
    assert plain.inputs["embed"] == [((x,), {})]
    assert not any(part._forward_hooks for part in net.modules())


def test_hooks_change_a_visit() -> None:
    net, (x,) = seeded(Recurrent), rows(1)
    plain = Hooked(net, lambda: net(x), {"cell": lambda output, visit: output * 0 if visit == 2 else None})
    h = x
    for visit in range(4):
        h = torch.tanh(net.cell(h) * (0 if visit == 2 else 1))
    assert torch.equal(plain.result, net.head(h)) and len(plain.outputs["cell"]) == 4
    with pytest.raises(AssertionError, match="never visits: nowhere"):
        Hooked(net, lambda: net(x), {"nowhere": lambda output, visit: None})


def test_hooks_keep_gradients() -> None:
    net, (x,) = seeded(MLP), rows(1)
    plain = Hooked(net, lambda: net(x), grad=True)
    plain.result.sum().backward()
    want = torch.autograd.grad(net.head(h := plain["layers.2"].detach().requires_grad_()).sum(), h)[0]
    # The last layer's output passes through a tanh on its way to the residual stream.
    assert plain["layers.2"].grad.shape == want.shape and torch.equal(plain["head"].grad, torch.ones(1, 5))


@pytest.mark.parametrize(
    ("got", "want"),
    [
        (torch.ones(2), torch.ones(3)),
        (torch.ones(2), torch.tensor([1.0, 1.1])),
        ([torch.ones(1)], [torch.ones(1)] * 2),
        ({"a": torch.ones(1)}, {"b": torch.ones(1)}),
        ((torch.ones(1), 3), (torch.ones(1), 4)),
        (3, torch.ones(1)),
    ],
)
def test_what_differs_is_not_alike(got: Any, want: Any) -> None:
    with pytest.raises(AssertionError):
        assert_alike(got, want)


def test_what_is_alike() -> None:
    assert_alike({"a": (torch.ones(2), None)}, {"a": [torch.ones(2), None]})
    assert_alike(torch.ones(1), torch.ones(1) + 1e-6, rounding=1e-5)


@pytest.mark.parametrize("touch", ["hook", "attribute", "weight", "forward"])
def test_a_state_shows_what_was_put_on_a_module(touch: str) -> None:
    net = seeded(MLP)
    before = state_of(net)
    assert state_of(net) == before
    if touch == "hook":
        net.head.register_forward_pre_hook(lambda *_: None)
    elif touch == "attribute":
        net.head.note = 1
    elif touch == "weight":
        net.head.weight.data.mul_(2)
        with torch.no_grad():
            net.head.weight.mul_(2)
    else:
        net.head.forward = net.head.forward
    assert state_of(net) != before


def test_seeded_models_are_equal_and_leave_torchs_own_state() -> None:
    torch.manual_seed(5)
    want = torch.rand(1)
    torch.manual_seed(5)
    one, other = seeded(MLP), seeded(MLP)
    assert torch.equal(torch.rand(1), want)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters()))
