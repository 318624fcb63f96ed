"""Scans: the block on fake tensors, with nothing computed, loaded or left behind."""

from __future__ import annotations

import functools
from typing import Any
from unittest import mock

import pytest
import torch
from core_toys import Hooked, Toy, TupleModel, rows, seeded
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor

from nnsight import NNsight, OutOfOrderError, ScanError


@pytest.fixture
def net() -> Toy:
    return seeded(Toy)


@pytest.fixture
def model(net: Toy) -> Any:
    return NNsight(net)


class Normed(nn.Module):
    """Keeps statistics, and a tensor of its last forward."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Linear(4, 6), nn.BatchNorm1d(6)
        self.last_seen: Any = None
        self.calls = torch.zeros(())
        self.scale = nn.Parameter(torch.full((1,), 2.0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.last_seen = self.norm(self.first(x))
        self.memory = self.last_seen * 2
        self.calls += 1
        self.scale.data.clamp_(max=1)
        return self.last_seen


def test_shapes_and_types_are_those_of_a_real_run(model: Any, net: Toy) -> None:
    shapes = {}
    with model.scan(rows(3)):
        for i, layer in enumerate(model.layers):
            value = layer.output
            shapes[f"layers.{i}"] = (value.shape, value.dtype, value.device)
        logits = model.output
    hooked = Hooked(net, rows(3))
    for path, known in shapes.items():
        assert known == (hooked[path].shape, hooked[path].dtype, hooked[path].device)
    assert isinstance(logits, FakeTensor) and logits.shape == (3, 5)


def test_values_are_fake_and_so_are_inputs(model: Any) -> None:
    x = rows()
    with model.scan(x):
        given = model.input
    assert isinstance(given, FakeTensor) and given.shape == x.shape and not isinstance(x, FakeTensor)


def test_interventions_are_tried(model: Any) -> None:
    with model.scan(rows()):
        model.layers[0].output[:, 3] = 0
        model.layers[1].output = torch.cat([model.layers[1].output] * 2)
        model.layers[2].skip(model.layers[2].input * 2)
        size = model.output.shape
    assert size == (4, 5)


def test_an_index_out_of_range_is_found(model: Any, net: Toy) -> None:
    with pytest.raises(IndexError), model.scan(rows()):
        model.layers[0].output[:, 100] = 0
    assert torch.equal(net(rows()), model(rows()))


def test_shapes_that_do_not_fit_are_found(model: Any) -> None:
    with pytest.raises(RuntimeError), model.scan(rows()):
        model.layers[0].output = torch.ones(2, 3)
        model.output


def test_the_order_holds_as_in_a_trace(model: Any) -> None:
    with pytest.raises(OutOfOrderError), model.scan(rows()):
        model.layers[1].output
        model.layers[0].output


def test_stop_invokes_and_tuples() -> None:
    net = seeded(TupleModel)
    model = NNsight(net)
    with model.scan(rows()) as tracer:
        left, right = model.pair.output
        tracer.stop()
    assert left.shape == right.shape == (2, 4)
    with model.scan() as tracer:
        with tracer.invoke(rows(2)):
            one = model.pair.output[0].shape
        with tracer.invoke(rows(3)):
            other = model.last.output.shape
    assert one == (2, 4) and other == (3, 4)


def test_another_method(model: Any) -> None:
    with model.scan(rows(), fn="twice") as tracer:
        shape = tracer.result.shape
    assert shape == (2, 5)


# -- what is left behind ---------------------------------------------------------------------------------------------


def test_buffers_and_attributes_are_as_before() -> None:
    net = seeded(Normed).train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    marks = {name: id(value) for name, value in net.norm._buffers.items()}
    model = NNsight(net)
    with model.scan(rows()):
        model.norm.output
    assert net.last_seen is None and "memory" not in net.__dict__
    assert {name: id(value) for name, value in net.norm._buffers.items()} == marks
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert net.calls == 0
    net(rows())
    assert int(net.norm.num_batches_tracked) == 1 and net.calls == 1 and net.scale == 1


def test_what_an_object_in_a_module_keeps_is_as_before() -> None:
    class Table:
        @functools.cached_property
        def rows(self) -> torch.Tensor:
            return torch.arange(4.0)

    class Looking(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = Table()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + self.table.rows

    net = Looking()
    with NNsight(net).scan(torch.ones(4)):
        pass
    assert net(torch.ones(4)).tolist() == [1, 2, 3, 4]


def test_attributes_are_as_before_when_a_scan_fails() -> None:
    net = seeded(Normed).train()
    model = NNsight(net)
    with pytest.raises(ZeroDivisionError), model.scan(rows()):
        model.norm.output
        1 / 0
    assert net.last_seen is None and "memory" not in net.__dict__ and int(net.norm.num_batches_tracked) == 0


def test_a_scan_runs_no_real_forward(model: Any, net: Toy) -> None:
    real = []
    net.head.register_forward_hook(lambda module, args, output: real.append(isinstance(output, FakeTensor)))
    with model.scan(rows()):
        pass
    assert all(real)


def test_fake_mode_is_over_after_a_scan(model: Any) -> None:
    with model.scan(rows()):
        model.output
    assert type(torch.ones(1)) is torch.Tensor
    with pytest.raises(ZeroDivisionError), model.scan(rows()):
        1 / 0
    assert type(torch.ones(1)) is torch.Tensor


def test_a_trace_after_a_scan_is_real(model: Any, net: Toy) -> None:
    with model.scan(rows()):
        model.output
    with model.trace(rows()):
        out = model.output
    assert type(out) is torch.Tensor and torch.equal(out, net(rows()))


def test_weights_that_were_never_loaded_stay_so() -> None:
    with torch.device("meta"):
        net = Toy()
    weights = dict(net.named_parameters())
    model = NNsight(net)
    with model.scan(rows()):
        shape = model.layers[1].mlp[0].output.shape
        device = model.output.device
    assert shape == (2, 16) and device == torch.device("cpu")
    assert all(parameter is weights[name] and parameter.is_meta for name, parameter in net.named_parameters())


def test_buffers_that_were_never_loaded_stay_so() -> None:
    with torch.device("meta"):
        net = Normed()
    model = NNsight(net)
    with model.scan(rows()):
        shape = model.norm.output.shape
    assert shape == (2, 6) and all(buffer.is_meta for buffer in net.buffers())


def test_tied_weights_that_were_never_loaded() -> None:
    with torch.device("meta"):
        net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
        net[1].weight = net[0].weight
    model = NNsight(net)
    with model.scan(rows()):
        same = net[0].weight is net[1].weight
    assert same and net[1].weight is net[0].weight and net[0].weight.is_meta


# -- a trace that is scanned first -----------------------------------------------------------------------------------


def test_scan_first_refuses_an_input_that_does_not_fit(model: Any, net: Toy) -> None:
    real = []
    net.embed.register_forward_hook(lambda module, args, output: real.append(1))
    with pytest.raises(RuntimeError), model.trace(torch.ones(2, 77), scan=True):
        model.output
    assert not real


def test_scan_first_and_then_a_real_run(model: Any, net: Toy) -> None:
    with model.trace(rows(), scan=True):
        out = model.output
    assert torch.equal(out, net(rows()))


def test_validate_tries_the_block_before_any_work(model: Any, net: Toy) -> None:
    real = []
    net.head.register_forward_hook(lambda module, args, output: real.append(type(output) is torch.Tensor))
    with pytest.raises(IndexError), model.trace(rows(), scan=True, validate=True):
        model.layers[0].output[:, 100] = 0
        model.output
    assert not any(real)


def test_validate_and_then_a_real_run(model: Any, net: Toy) -> None:
    seen: list[Any] = []
    factor = 2
    with model.trace(rows(), scan=True, validate=True) as tracer:
        seen.append(model.layers[0].output)
        model.layers[1].output = model.layers[1].output * factor
        out = tracer.result
    assert torch.equal(out, Hooked(net, rows(), edits={"layers.1": lambda value: value * 2}).result)
    assert len(seen) == 1 and type(seen[0]) is torch.Tensor


def test_validate_needs_scan(model: Any) -> None:
    with pytest.raises(ValueError, match="scan=True"):
        model.trace(rows(), validate=True)


class Picky(nn.Module):
    """Gives as many numbers as are positive."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.layer(x)
        return hidden[hidden > 0]


def test_a_forward_that_asks_for_numbers_says_so() -> None:
    model = NNsight(seeded(Picky))
    with pytest.raises(ScanError, match=r"`model` cannot be scanned.*Trace a small input instead"):
        with model.scan(rows(2)):
            model.layer.output
            shape = model.output.shape
    with model.scan(rows(2)) as tracer:
        shape = model.layer.output.shape
        tracer.stop()
    assert tuple(shape) == (2, 4)


def test_a_family_prepares_its_model_for_a_scan_and_undoes_it() -> None:
    class Family(NNsight):
        def _on_fakes(self) -> Any:
            return mock.patch.object(self._module, "selects", False)

    class Selecting(Picky):
        selects = True

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) if self.selects else self.layer(x)

    model = Family(seeded(Selecting))
    with model.scan(rows(2)):
        shape = model.output.shape
    assert tuple(shape) == (2, 4) and model._module.selects
    with pytest.raises(ZeroDivisionError):
        with model.scan(rows(2)):
            1 / 0
    assert model._module.selects
