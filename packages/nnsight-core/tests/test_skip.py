"""Skipping modules: what does not run, and what is there in its place."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from core_toys import Hooked, Recurrent, Toy, TupleModel, rows, seeded
from torch import nn

from nnsight import MissedProviderError, NNsight, NNsightError, OutOfOrderError, RowsError


@pytest.fixture
def net() -> Toy:
    return seeded(Toy)


@pytest.fixture
def model(net: Toy) -> Any:
    return NNsight(net)


@pytest.fixture
def ran(net: Toy) -> list[str]:
    seen: list[str] = []
    for path, module in net.named_modules():
        module.register_forward_hook(lambda *_, path=path: seen.append(path))
    return seen


def test_a_skipped_module_does_not_run(model: Any, net: Toy) -> None:
    calls = []
    inner = net.layers[1].mlp[0]
    inner.register_forward_hook(lambda *_: calls.append(1))
    with model.trace(rows()):
        model.layers[1].skip(torch.ones(2, 8))
        out = model.output
    assert not calls
    assert torch.equal(out, Hooked(net, rows(), edits={"layers.1": torch.ones_like}).result)


def test_the_value_is_the_output_of_the_module(model: Any, net: Toy) -> None:
    with model.trace(rows()):
        model.layers[1].skip(model.layers[0].output)
        skipped = model.layers[1].output
        model.layers[1].output = skipped * 2
        out = model.output
    first = Hooked(net, rows())["layers.0"]
    assert torch.equal(skipped, first)
    assert torch.equal(out, Hooked(net, rows(), edits={"layers.1": lambda _: first * 2}).result)


def test_the_value_may_be_made_from_the_input(model: Any, net: Toy) -> None:
    with model.trace(rows()):
        for layer in model.layers:
            layer.skip(layer.input)
        out = model.output
    assert torch.equal(out, net.head(net.ln(net.embed(rows()))))


def test_the_next_run_is_whole_again(model: Any, net: Toy, ran: list[str]) -> None:
    with model.trace(rows()):
        model.layers[1].skip(torch.ones(2, 8))
    ran.clear()
    with model.trace(rows()):
        out = model.output
    assert "layers.1.mlp.0" in ran and torch.equal(out, net(rows()))


def test_what_lies_inside_is_not_reached(model: Any) -> None:
    with pytest.raises(MissedProviderError, match=r"model\.layers\.1\.mlp\.output"), model.trace(rows()):
        model.layers[1].skip(torch.ones(2, 8))
        model.layers[1].mlp.output


def test_a_module_that_has_begun_cannot_be_skipped(model: Any) -> None:
    with pytest.raises(OutOfOrderError, match=r"model\.layers\.1"), model.trace(rows()):
        model.layers[1].attn.output
        model.layers[1].skip(torch.ones(2, 8))
    with pytest.raises(OutOfOrderError, match=r"model\.layers\.0"), model.trace(rows()):
        model.layers[1].output
        model.layers[0].skip(torch.ones(2, 8))


def test_skipping_in_a_condition(model: Any, net: Toy) -> None:
    for bound in (-1e9, 1e9):
        with model.trace(rows()):
            if model.layers[1].input.sum() > bound:
                model.layers[1].skip(torch.zeros(2, 8))
            out = model.output
        edits = {"layers.1": torch.zeros_like} if bound < 0 else {}
        assert torch.equal(out, Hooked(net, rows(), edits=edits).result)


def test_the_whole_model_can_be_skipped(model: Any, ran: list[str]) -> None:
    with model.trace(rows()) as tracer:
        model.skip(torch.ones(1))
        result = tracer.result
    assert torch.equal(result, torch.ones(1)) and set(ran) <= {""}


def test_a_tuple_can_stand_in() -> None:
    net = seeded(TupleModel)
    model = NNsight(net)
    pair = (torch.ones(2, 4), torch.zeros(2, 4))
    with model.trace(rows()):
        model.pair.skip(pair)
        value = model.pair.output
        out = model.output
    assert value is pair and torch.equal(out, net.last(torch.ones(2, 4)))


def test_the_last_value_given_counts(model: Any) -> None:
    with model.trace(rows()):
        model.layers[1].skip(torch.ones(2, 8))
        model.layers[1].skip(torch.zeros(2, 8))
        value = model.layers[1].output
    assert not value.any()


def test_one_visit_of_several() -> None:
    net = seeded(Recurrent)
    model = NNsight(net)
    with model.trace(rows()) as tracer:
        for visit in tracer.iter[:4]:
            if visit == 2:
                model.cell.skip(torch.ones(2, 4))
            else:
                model.cell.output
        out = model.output
    x = torch.tanh(torch.ones(2, 4))
    assert torch.equal(out, torch.tanh(net.cell(x)))


def test_a_skip_is_a_step_of_the_gradient(model: Any, net: Toy) -> None:
    with model.trace(rows()):
        h = model.layers[0].output
        model.layers[1].skip(h)
        loss = model.output.sum()
    loss.backward()
    assert net.layers[1].attn.weight.grad is None and net.layers[0].attn.weight.grad is not None


# -- among several invokes -------------------------------------------------------------------------------------------


def test_one_invoke_skips_and_the_other_does_not(model: Any, net: Toy) -> None:
    x, y = rows(seed=1), rows(seed=2)
    with model.trace() as tracer:
        with tracer.invoke(x):
            model.layers[1].skip(torch.ones(2, 8))
            one = model.output
        with tracer.invoke(y):
            inside = model.layers[1].mlp.output
            other = model.output
    assert torch.allclose(one, Hooked(net, x, edits={"layers.1": torch.ones_like}).result, atol=1e-6)
    hooked = Hooked(net, y)
    assert torch.allclose(other, hooked.result, atol=1e-6)
    assert torch.allclose(inside, hooked["layers.1.mlp"], atol=1e-6)


def test_all_invokes_skip(model: Any, net: Toy) -> None:
    x, y = rows(seed=1), rows(3, seed=2)
    with model.trace() as tracer:
        with tracer.invoke(x):
            model.layers[1].skip(torch.ones(2, 8))
            one = model.output
        with tracer.invoke(y):
            model.layers[1].skip(torch.zeros(3, 8))
            other = model.output
    assert torch.allclose(one, Hooked(net, x, edits={"layers.1": torch.ones_like}).result, atol=1e-6)
    assert torch.allclose(other, Hooked(net, y, edits={"layers.1": torch.zeros_like}).result, atol=1e-6)


def test_an_invoke_over_the_whole_batch_skips_for_all(model: Any, net: Toy) -> None:
    calls = []
    net.layers[1].mlp.register_forward_hook(lambda *_: calls.append(1))
    with model.trace() as tracer:
        with tracer.invoke(rows(seed=1)):
            one = model.output
        with tracer.invoke(rows(seed=2)):
            other = model.output
        with tracer.invoke():
            model.layers[1].skip(torch.ones(4, 8))
    assert not calls
    for seed, out in ((1, one), (2, other)):
        want = Hooked(net, rows(seed=seed), edits={"layers.1": torch.ones_like}).result
        assert torch.allclose(out, want, atol=1e-6)


def test_a_value_with_other_rows_is_refused(model: Any) -> None:
    with pytest.raises(RowsError, match=r"model\.layers\.1\.output"), model.trace() as tracer:
        with tracer.invoke(rows()):
            model.layers[1].skip(torch.ones(3, 8))
        with tracer.invoke(rows()):
            model.output


# -- in edits --------------------------------------------------------------------------------------------------------


def test_an_edit_skips(model: Any, net: Toy) -> None:
    with model.edit() as edited:
        model.layers[1].skip(model.layers[1].input)
    with edited.trace(rows()):
        out = edited.output
    hooked = Hooked(net, rows())
    assert torch.equal(out, Hooked(net, rows(), edits={"layers.1": lambda _: hooked["layers.0"]}).result)
    assert torch.equal(edited(rows()), out)


def test_an_edit_that_never_met_its_module_says_so() -> None:
    net = seeded(Toy)
    net.add_module("unused", nn.Linear(2, 2))
    model = NNsight(net)
    with model.edit(inplace=True):
        model.unused.skip(torch.ones(1))
    with pytest.warns(UserWarning, match=r"model\.unused"):
        model.trace(rows(), trace=False)
    model.clear_edits()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.trace(rows(), trace=False)


def test_a_skip_after_a_failure_leaves_nothing(model: Any, net: Toy) -> None:
    with pytest.raises((NNsightError, RuntimeError)), model.trace(rows()):
        model.layers[1].skip(torch.ones(2, 3))
        model.output
    assert torch.equal(model(rows()), net(rows()))
