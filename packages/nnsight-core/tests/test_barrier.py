"""Barriers: invokes that wait for one another."""

from __future__ import annotations

import pytest
import torch
from hooked import Generator, Stack, by_hooks, untouched

from nnsight import BarrierError, InvokeError, NNsight


@pytest.fixture
def net():
    return Stack()


@pytest.fixture
def model(net):
    return NNsight(net)


def rows(count, seed=0, width=4):
    return torch.rand(count, width, generator=torch.Generator().manual_seed(seed))


A, B, C = rows(1, 1), rows(1, 2), rows(1, 3)


def test_a_value_is_used_at_the_site_where_it_was_taken(net, model):
    with model.trace() as tracer:
        barrier = tracer.barrier(2)
        with tracer.invoke(A):
            hidden = model.layers[1].output
            barrier()
            one = model.output
        with tracer.invoke(B):
            barrier()
            model.layers[1].output = hidden
            two = model.output

    want = by_hooks(net, torch.cat([A, B]), edits={"layers.1": lambda out, _: torch.cat([out[:1]] * 2)}).result
    torch.testing.assert_close(torch.cat([one, two]), want)


def test_values_are_swapped_at_one_site(net, model):
    with model.trace() as tracer:
        barrier = tracer.barrier(2)
        with tracer.invoke(A):
            mine = model.layers[1].output.clone()
            barrier()
            model.layers[1].output = theirs  # noqa: F821 - bound below
            one = model.output
        with tracer.invoke(B):
            theirs = model.layers[1].output.clone()
            barrier()
            model.layers[1].output = mine
            two = model.output
    want = by_hooks(net, torch.cat([A, B]), edits={"layers.1": lambda out, _: out.flip(0)}).result
    torch.testing.assert_close(torch.cat([one, two]), want)


def test_three_invokes_meet(net, model):
    order = []
    with model.trace() as tracer:
        meet = tracer.barrier(3)
        with tracer.invoke(A):
            model.layers[0].output
            order.append("a")
            meet()
            order.append("A")
        with tracer.invoke(B):
            model.layers[2].output
            order.append("b")
            meet()
            order.append("B")
        with tracer.invoke(C):
            model.layers[1].output
            order.append("c")
            meet()
            order.append("C")
    assert order[:3] == ["a", "c", "b"]
    assert sorted(order[3:]) == ["A", "B", "C"]


def test_all_go_on_where_the_last_one_came_from(net, model):
    with model.trace() as tracer:
        barrier = tracer.barrier(2)
        with tracer.invoke(A):
            barrier()
            first = model.layers[1].output
        with tracer.invoke(B):
            second = model.layers[1].output
            barrier()
    want = by_hooks(net, torch.cat([A, B]), reads=["layers.1"])["layers.1"]
    torch.testing.assert_close(torch.cat([first, second]), want)


def test_a_barrier_is_used_again(net, model):
    with model.trace() as tracer:
        barrier = tracer.barrier(2)
        with tracer.invoke(A):
            for layer in model.layers:
                hidden = layer.output
                barrier()
                barrier()
            one = model.output
        with tracer.invoke(B):
            for layer in model.layers:
                barrier()
                layer.output = hidden
                barrier()
            two = model.output

    def copied(out, _):
        return torch.cat([out[:1]] * 2)

    want = by_hooks(net, torch.cat([A, B]), edits={f"layers.{n}": copied for n in range(3)}).result
    torch.testing.assert_close(torch.cat([one, two]), want)


def test_a_barrier_of_one_lets_pass(net, model):
    with model.trace() as tracer:
        barrier = tracer.barrier(1)
        with tracer.invoke(A):
            barrier()
            out = model.output
    assert torch.equal(out, net(A))


def test_two_barriers_do_not_mix(model):
    order = []
    with model.trace() as tracer:
        early, late = tracer.barrier(2), tracer.barrier(2)
        with tracer.invoke(A):
            early()
            order.append("a early")
            late()
        with tracer.invoke(B):
            early()
            model.layers[2].output
            order.append("b late")
            late()
    assert order == ["a early", "b late"]


def test_a_barrier_in_the_steps_of_a_generation():
    net = Generator()
    model = NNsight(net)

    with model.trace(fn="generate") as tracer:
        barrier = tracer.barrier(2)
        with tracer.invoke(A, n=3):
            for _ in tracer.iter[:3]:
                hidden = model.first.output
                barrier()
            one = tracer.result
        with tracer.invoke(B, n=3):
            for _ in tracer.iter[:3]:
                barrier()
                model.first.output = hidden
            two = tracer.result
    want = by_hooks(
        net, torch.cat([A, B]), 3, call="generate", edits={"first": lambda out, _: torch.cat([out[:1]] * 2)}
    ).result
    torch.testing.assert_close(torch.cat([one, two]), want)


def test_a_barrier_that_not_everybody_reaches_is_an_error(net, model):
    with pytest.raises(BarrierError) as caught:
        with model.trace() as tracer:
            barrier = tracer.barrier(3)
            with tracer.invoke(A):
                barrier()
            with tracer.invoke(B):
                model.layers[1].output
                barrier()
    message = str(caught.value)
    assert "3 invokes" in message and "2 only" in message and "invoke 0" in message and "invoke 1" in message
    assert isinstance(caught.value, RuntimeError)
    assert untouched(net)
    with model.trace(A):
        out = model.output
    assert torch.equal(out, net(A))


def test_a_barrier_outside_the_invokes_is_refused(net, model):
    with pytest.raises(InvokeError, match="inside an invoke"):
        with model.trace(A) as tracer:
            tracer.barrier(2)()
    with pytest.raises(InvokeError, match="inside an invoke"):
        with model.trace() as tracer:
            barrier = tracer.barrier(1)
            with tracer.invoke(A):
                pass
            barrier()
    assert untouched(net)


@pytest.mark.parametrize("parties", [0, -1, "two", 1.5])
def test_a_barrier_is_for_a_number_of_invokes(model, parties):
    with model.trace() as tracer:
        with pytest.raises(ValueError, match="at least one"):
            tracer.barrier(parties)
        with tracer.invoke(A):
            pass
