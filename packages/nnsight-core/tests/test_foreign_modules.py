"""Modules that are not plain Python: scripted ones, and modules that are copied or pickled while a run is on."""

from __future__ import annotations

import copy
import inspect
import pickle

import pytest
import torch

from nnsight import NNsight, OutOfOrderError


class Mixed(torch.nn.Module):
    """A plain module with a scripted one inside."""

    def __init__(self) -> None:
        super().__init__()
        self.plain = torch.nn.Linear(3, 3)
        self.scripted = torch.jit.script(torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.ReLU()))

    def forward(self, x: torch.Tensor, *, scale: float = 1.0) -> torch.Tensor:
        return self.scripted(self.plain(x) * scale)


@pytest.fixture()
def x() -> torch.Tensor:
    return torch.rand(2, 3)


def test_a_scripted_module_is_a_leaf_with_sites_of_its_own(x: torch.Tensor) -> None:
    net = Mixed()
    model = NNsight(net)
    with model.trace(x):
        before = model.plain.output
        after = model.scripted.output
    assert torch.equal(after, net.scripted(net.plain(x))) and torch.equal(before, net.plain(x))
    assert [path for path, _ in model.named_modules()] == ["model", "model.plain", "model.scripted"]
    assert "Linear" in repr(model)


def test_a_forward_can_be_asked_for_its_parameters_while_it_runs(x: torch.Tensor) -> None:
    net = Mixed()
    plain = inspect.signature(net.forward)
    with NNsight(net).trace(x) as tracer:
        tracer.model.plain.output
        assert inspect.signature(net.forward) == plain


@pytest.mark.parametrize(
    "take", [copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net))], ids=["copied", "pickled"]
)
def test_a_module_that_is_copied_during_a_run_is_on_its_own(take, x: torch.Tensor) -> None:  # type: ignore[no-untyped-def]
    net = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Linear(3, 3))
    model = NNsight(net)
    with model.trace(x):
        model[0].output
        other = take(net)
    assert torch.equal(other(x), net(x))
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    assert not other(x).any()
    assert net(x).any()


def test_a_forward_on_the_instance_is_copied_with_it(x: torch.Tensor) -> None:
    net = torch.nn.Sequential(torch.nn.Linear(3, 3))
    net[0].forward = lambda value: value + 1.0  # type: ignore[method-assign]
    with NNsight(net).trace(x) as tracer:
        tracer.model[0].output
        other = copy.deepcopy(net)
    assert torch.equal(other(x), x + 1.0)


class Hoisting(torch.nn.Module):
    """Calls a part of a block from outside that block, before the block itself, on demand."""

    def __init__(self) -> None:
        super().__init__()
        self.block = torch.nn.Sequential(torch.nn.Sequential(torch.nn.Linear(3, 3)), torch.nn.Linear(3, 3))
        self.last = torch.nn.Linear(3, 3)
        self.early = False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.early:
            x = self.block[0][0](x)
        return self.last(self.block(x))


def test_a_module_called_from_outside_its_holder_is_counted_from_the_start(x: torch.Tensor) -> None:
    net = Hoisting()
    net.early = True
    model = NNsight(net)
    with model.trace(x):
        pass
    for _ in range(3):  # the first run learns, the others know
        with model.trace(x):
            first = model.block[0][0].output
        assert torch.equal(first, net.block[0][0](x))


def test_a_visit_that_went_by_uncounted_is_never_taken_for_another(x: torch.Tensor) -> None:
    net = Hoisting()
    model = NNsight(net)
    with model.trace(x):  # learns that everything is called from inside
        model.last.output
    net.early = True
    with pytest.raises(OutOfOrderError, match="learned this now"):
        with model.trace(x):
            model.block[0][0].output
    for _ in range(2):
        with model.trace(x):
            first = model.block[0][0].output
        assert torch.equal(first, net.block[0][0](x))


def test_the_first_run_of_another_method_learns_too(x: torch.Tensor) -> None:
    class TwoWays(Hoisting):
        def write(self, x: torch.Tensor) -> torch.Tensor:
            return self(self.block[0][0](x))

    net = TwoWays()
    model = NNsight(net)
    with model.trace(x):
        model.last.output
    for _ in range(2):
        with model.trace(x, fn="write"):
            first = model.block[0][0].output
        assert torch.equal(first, net.block[0][0](x))


def test_only_the_way_to_what_is_asked_for_is_tapped(x: torch.Tensor) -> None:
    net = torch.nn.Sequential(*(torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.ReLU()) for _ in range(4)))
    model = NNsight(net)

    def tapped() -> list[str]:
        return [name for name, module in net.named_modules() if "forward" in module.__dict__]

    with model.trace(x):
        model[1].output
        assert len(tapped()) == 13  # the first run is tapped completely
    with model.trace(x):
        model[1].output
        assert tapped() == ["", "0", "1", "2", "3"]
        inner = model[2][0].output
        assert tapped() == ["", "0", "1", "2", "2.0", "2.1", "3"]
    assert torch.equal(inner, net[2][0](net[1](net[0](x))))
    assert tapped() == []
