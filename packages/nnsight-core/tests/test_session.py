"""Sessions: several traces in one block."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from core_toys import Hooked, Toy, rows, seeded

import nnsight
from nnsight import NNsight, NoTraceError, SaveOutsideTraceError


@pytest.fixture
def net() -> Toy:
    return seeded(Toy)


@pytest.fixture
def model(net: Toy) -> Any:
    return NNsight(net)


def test_a_value_of_one_trace_is_used_in_the_next(model: Any, net: Toy) -> None:
    with model.session():
        with model.trace(rows(seed=1)):
            h = model.layers[0].output
        with model.trace(rows(seed=2)):
            model.layers[1].output = h
            out = model.output
    first = Hooked(net, rows(seed=1))["layers.0"]
    assert torch.equal(out, Hooked(net, rows(seed=2), edits={"layers.1": lambda _: first}).result)


def test_python_between_the_traces(model: Any, net: Toy) -> None:
    with model.session() as session:
        total = nnsight.save(torch.zeros(2, 5))
        for seed in range(3):
            with model.trace(rows(seed=seed)):
                out = model.output
            if seed:
                total += out.detach()
    assert torch.equal(total, net(rows(seed=1)) + net(rows(seed=2)))
    assert session.model is model


def test_saving_in_a_session_and_not_after(model: Any) -> None:
    with model.session():
        kept = nnsight.save([1])
        assert [2].save() == [2]
    assert kept == [1]
    with pytest.raises(SaveOutsideTraceError):
        nnsight.save(kept)


def test_a_session_serves_no_values_of_its_own(model: Any) -> None:
    with pytest.raises(NoTraceError, match="model.head"), model.session():
        model.head.output


def test_invokes_edits_and_scans_in_a_session(model: Any, net: Toy) -> None:
    with model.session():
        with model.edit() as edited:
            model.layers[0].output[:] = 0
        with model.scan(rows()):
            size = model.layers[0].output.shape[-1]
        with edited.trace() as tracer:
            with tracer.invoke(rows(seed=1)):
                one = edited.output
            with tracer.invoke(rows(seed=2)):
                other = edited.output
    assert size == 8
    for seed, out in ((1, one), (2, other)):
        want = Hooked(net, rows(seed=seed), edits={"layers.0": torch.zeros_like}).result
        assert torch.allclose(out, want, atol=1e-6)


def test_an_error_leaves_the_session_and_nothing_stays_active(model: Any, net: Toy) -> None:
    with pytest.raises(ZeroDivisionError), model.session():
        with model.trace(rows()):
            model.layers[0].output
            1 / 0
    with pytest.raises(SaveOutsideTraceError):
        nnsight.save(1)
    assert torch.equal(model(rows()), net(rows()))


def test_a_conditional_on_a_value_of_a_trace(model: Any, net: Toy) -> None:
    outs = []
    with model.session():
        with model.trace(rows()):
            mean = model.layers[0].output.mean()
        if mean < 1e9:
            with model.trace(rows()):
                model.layers[0].output[:] = 0
                outs.append(model.output)
    assert torch.equal(outs[0], Hooked(net, rows(), edits={"layers.0": torch.zeros_like}).result)


def test_a_session_of_a_part(model: Any, net: Toy) -> None:
    with model.layers[0].session() as session, session.model.trace(torch.ones(1, 8)):
        out = model.layers[0].output
    assert torch.equal(out, net.layers[0](torch.ones(1, 8)))
