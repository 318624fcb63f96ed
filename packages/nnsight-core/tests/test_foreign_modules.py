"""Modules that are not plain Python: scripted ones, and modules that are copied or pickled while a run is on."""

from __future__ import annotations

import copy
import inspect
import pickle

import pytest
import torch

from nnsight import NNsight


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


@pytest.mark.parametrize("take", [copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net))], ids=["copied", "pickled"])
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
