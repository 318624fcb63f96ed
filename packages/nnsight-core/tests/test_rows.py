"""Rows: what an invoke among several sees of a value, and what it may write."""

from __future__ import annotations

import pytest
import torch
from hooked import Stack, by_hooks, untouched

from nnsight import Envoy, NNsight, NNsightError, RowsError, eproperty
from nnsight.plugin import PlainLayout


@pytest.fixture
def net():
    return Stack()


@pytest.fixture
def model(net):
    return NNsight(net)


def rows(count, seed=0, width=4):
    return torch.rand(count, width, generator=torch.Generator().manual_seed(seed))


def at_rows(start, count, change):
    """Make a hook's edit that changes some rows of a copy."""

    def edit(out, _):
        out = out.clone()
        out[start : start + count] = change(out[start : start + count])
        return out

    return edit


# -- writing one's own rows ------------------------------------------------------------------------------------------


def in_place(model, value):
    model.layers[1].output[:] = value


def by_replacement(model, value):
    model.layers[1].output = value


def in_place_twice(model, value):
    model.layers[1].output.mul_(0)
    model.layers[1].output.add_(value)


def replaced_then_in_place(model, value):
    model.layers[1].output = value + 1
    model.layers[1].output -= 1


@pytest.mark.parametrize("write", [in_place, by_replacement, in_place_twice, replaced_then_in_place])
@pytest.mark.parametrize("which", [0, 1, 2])
def test_a_write_touches_the_rows_of_its_invoke_only(net, model, write, which):
    inputs = [rows(1, 1), rows(2, 2), rows(3, 3)]
    starts = [0, 1, 3]
    value = torch.full((which + 1, 4), 0.25)
    outs, hidden = [], []
    with model.trace() as tracer:
        for number, x in enumerate(inputs):
            with tracer.invoke(x):
                if number == which:
                    write(model, value)
                hidden.append(model.layers[1].output)
                outs.append(model.output)
    want = by_hooks(net, torch.cat(inputs), edits={"layers.1": at_rows(starts[which], which + 1, lambda _: value)})
    torch.testing.assert_close(torch.cat(outs), want.result)
    torch.testing.assert_close(torch.cat(hidden), want["layers.1"])


def test_all_invokes_write_at_one_site(net, model):
    inputs = [rows(2, seed) for seed in range(4)]
    outs = []
    with model.trace() as tracer:
        for number, x in enumerate(inputs):
            with tracer.invoke(x):
                if number % 2:
                    model.layers[0].output = model.layers[0].output * number
                else:
                    model.layers[0].output *= number
                outs.append(model.output)

    def edit(out, _):
        return torch.cat([out[2 * n : 2 * n + 2] * n for n in range(4)])

    torch.testing.assert_close(torch.cat(outs), by_hooks(net, torch.cat(inputs), edits={"layers.0": edit}).result)


def test_inputs_are_written_by_rows(net, model):
    a, b = rows(1, 1), rows(2, 2)
    with model.trace() as tracer:
        with tracer.invoke(a):
            one = model.output
        with tracer.invoke(b):
            model.layers[1].input = torch.ones(2, 4)
            two = model.layers[1].output
            args, kwargs = model.layers[2].inputs
            model.layers[2].inputs = (args[0] * 2,), kwargs
            three = model.layers[2].output
    torch.testing.assert_close(one, net(a))
    torch.testing.assert_close(two, net.layers[1](torch.ones(2, 4)))
    h = by_hooks(net, b, reads=["layers.0"])
    stream = net.embed(b)
    stream = stream + torch.tanh(net.layers[0](stream))
    stream = stream + torch.tanh(net.layers[1](torch.ones(2, 4)))
    assert h
    torch.testing.assert_close(three, net.layers[2](stream * 2))


def test_an_output_of_several_tensors_is_written_by_rows():
    class Pair(torch.nn.Module):
        def forward(self, x):
            return x + 1, {"twice": x * 2, "note": "text", "none": None}

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.pair = Pair()

        def forward(self, x):
            more, rest = self.pair(x)
            return more * rest["twice"]

    net = Net()
    model = NNsight(net)
    a, b = rows(1, 1), rows(2, 2)
    with model.trace() as tracer:
        with tracer.invoke(a):
            seen = model.pair.output
            one = model.output
        with tracer.invoke(b):
            more, rest = model.pair.output
            model.pair.output = (more * 0 + 3, {**rest, "twice": rest["twice"] + 1})
            two = model.output
        with tracer.invoke():
            whole = model.pair.output
    assert torch.equal(seen[0], a + 1) and seen[1]["note"] == "text" and seen[1]["none"] is None
    torch.testing.assert_close(one, net(a))
    torch.testing.assert_close(two, 3 * (b * 2 + 1))
    # The reader of the whole batch comes last at this site, so it sees what was written.
    torch.testing.assert_close(whole[0], torch.cat([a + 1, torch.full((2, 4), 3.0)]))


def test_one_tensor_of_an_output_edited_in_place(net):
    class Pair(torch.nn.Module):
        def forward(self, x):
            return x + 1, x * 2

    pair = Pair()
    model = NNsight(pair)
    a, b = rows(1, 1), rows(2, 2)
    with model.trace() as tracer:
        with tracer.invoke(a):
            one = model.output
        with tracer.invoke(b):
            model.output[0][:] = 7
            two = model.output
        with tracer.invoke():
            whole = tracer.result
    assert torch.equal(one[0], a + 1) and torch.equal(one[1], a * 2)
    assert torch.equal(two[0], torch.full((2, 4), 7.0)) and torch.equal(two[1], b * 2)
    assert torch.equal(whole[0], torch.cat([a + 1, torch.full((2, 4), 7.0)]))


def test_the_result_is_replaced_by_rows(net, model):
    a, b = rows(1, 1), rows(2, 2)
    with model.trace() as tracer:
        with tracer.invoke(a):
            tracer.result = torch.zeros(1, 5)
        with tracer.invoke(b):
            two = tracer.result
        with tracer.invoke():
            whole = tracer.result
    torch.testing.assert_close(two, net(b))
    torch.testing.assert_close(whole, torch.cat([torch.zeros(1, 5), net(b)]))


def test_a_reader_of_the_whole_batch_sees_each_way_of_writing(net, model):
    a, b, c = rows(1, 1), rows(1, 2), rows(1, 3)
    with model.trace() as tracer:
        with tracer.invoke(a):
            model.layers[1].output = torch.zeros(1, 4)
        with tracer.invoke(b):
            model.layers[1].output[:] = 1
        with tracer.invoke(c):
            pass
        with tracer.invoke():
            whole = model.layers[1].output.clone()
            model.layers[1].output[:2] += 1
            result = model.output
    plain = by_hooks(net, torch.cat([a, b, c]), reads=["layers.1"])["layers.1"]
    torch.testing.assert_close(whole, torch.cat([torch.zeros(1, 4), torch.ones(1, 4), plain[2:]]))
    want = by_hooks(
        net,
        torch.cat([a, b, c]),
        edits={"layers.1": lambda out, _: torch.cat([torch.ones(1, 4), torch.full((1, 4), 2.0), out[2:]])},
    )
    torch.testing.assert_close(result, want.result)


def test_a_writer_of_the_whole_batch_before_one_of_rows(net, model):
    a, b = rows(1, 1), rows(1, 2)
    with model.trace() as tracer:
        with tracer.invoke():
            model.layers[1].output = torch.ones(2, 4)
        with tracer.invoke(a):
            first = model.layers[1].output.clone()
            model.layers[1].output = model.layers[1].output * 3
            one = model.output
        with tracer.invoke(b):
            two = model.output
    assert torch.equal(first, torch.ones(1, 4))
    want = by_hooks(net, torch.cat([a, b]), edits={"layers.1": lambda out, _: torch.tensor([[3.0] * 4, [1.0] * 4])})
    torch.testing.assert_close(torch.cat([one, two]), want.result)


def test_batched_equals_alone_for_every_invoke(net, model):
    inputs = [rows(n + 1, n) for n in range(4)]
    batched, alone = [], []

    def study(x, kept):
        model.layers[0].output[:, 1] = 0
        model.layers[1].output = torch.relu(model.layers[1].output)
        kept.append(model.output)

    with model.trace() as tracer:
        for x in inputs:
            with tracer.invoke(x):
                study(x, batched)
    for x in inputs:
        with model.trace(x):
            study(x, alone)
    for one, other in zip(batched, alone):
        torch.testing.assert_close(one, other)


# -- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(1, 4), (3, 4), (2, 3), (2,), (2, 1, 4)])
def test_another_shape_than_that_of_the_rows_is_refused(net, model, shape):
    with pytest.raises(RowsError) as caught:
        with model.trace() as tracer:
            with tracer.invoke(rows(1)):
                model.output
            with tracer.invoke(rows(2)):
                model.layers[1].output = torch.zeros(shape)
    message = str(caught.value)
    assert "model.layers.1.output" in message and "(2, 4)" in message and str(tuple(shape)) in message
    assert untouched(net)


def test_the_whole_batch_written_by_one_invoke_is_refused(model):
    with pytest.raises(RowsError, match="its own rows"):
        with model.trace() as tracer:
            with tracer.invoke(rows(1)):
                whole = model.layers[0].output.repeat(3, 1)
                model.layers[0].output = whole
            with tracer.invoke(rows(2)):
                pass


def test_something_else_than_a_tensor_is_refused(model):
    with pytest.raises(RowsError, match="holds a tensor, and a float"):
        with model.trace() as tracer:
            with tracer.invoke(rows(1)):
                model.layers[0].output = 1.5
            with tracer.invoke(rows(2)):
                pass


def test_another_structure_is_refused(model):
    with pytest.raises(RowsError, match="built differently"):
        with model.trace() as tracer:
            with tracer.invoke(rows(1)):
                model.layers[0].output = (torch.zeros(1, 4),)
            with tracer.invoke(rows(2)):
                pass


def test_one_invoke_alone_may_change_the_shape(net):
    class Head(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = torch.nn.Linear(4, 4)

        def forward(self, x):
            return self.linear(x) * 2

    model = NNsight(Head())
    with model.trace() as tracer:
        with tracer.invoke(rows(2)):
            model.linear.output = torch.ones(7, 4)
            out = model.output
    assert torch.equal(out, torch.full((7, 4), 2.0))


# -- values without rows ---------------------------------------------------------------------------------------------


class Shared(torch.nn.Module):
    """Has a part whose output belongs to no row."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(2)
        self.linear = torch.nn.Linear(4, 4)
        self.mask = Mask()
        self.sizes = Sizes()

    def forward(self, x):
        return self.linear(x) * self.mask(x.shape[1]) + self.sizes(x)[1]


class Mask(torch.nn.Module):
    def forward(self, size):
        return torch.arange(1.0, size + 1)


class Sizes(torch.nn.Module):
    def forward(self, x):
        return "sizes", torch.tensor(x.shape[1] * 1.0)


def test_a_value_without_rows_is_read_by_every_invoke():
    net = Shared()
    model = NNsight(net)
    seen = []
    with model.trace() as tracer:
        for count in (1, 2):
            with tracer.invoke(rows(count)):
                seen.append((model.mask.output, model.sizes.output))
    for mask, (text, size) in seen:
        assert torch.equal(mask, torch.arange(1.0, 5.0))
        assert text == "sizes" and float(size) == 4.0


@pytest.mark.parametrize("where", ["mask", "sizes"])
def test_a_value_without_rows_cannot_be_written_by_one_invoke(where):
    net = Shared()
    model = NNsight(net)
    with pytest.raises(RowsError, match="all invokes share it"):
        with model.trace() as tracer:
            with tracer.invoke(rows(1)):
                if where == "mask":
                    model.mask.output = torch.zeros(4)
                else:
                    model.sizes.output = ("sizes", torch.tensor(0.0))
            with tracer.invoke(rows(2)):
                model.output
    assert untouched(net)


def test_a_value_without_rows_edited_in_place_by_one_invoke_is_an_error():
    net = Shared()
    model = NNsight(net)
    with pytest.raises(RowsError, match="all invokes share it"):
        with model.trace() as tracer:
            with tracer.invoke(rows(1)):
                model.mask.output[:] = 0
            with tracer.invoke(rows(2)):
                model.output


def test_a_value_without_rows_is_written_by_who_sees_the_whole_batch():
    net = Shared()
    model = NNsight(net)
    a, b = rows(1, 1), rows(2, 2)
    with model.trace() as tracer:
        with tracer.invoke(a):
            one = model.output
        with tracer.invoke(b):
            two = model.output
        with tracer.invoke():
            model.mask.output = torch.ones(4)
    torch.testing.assert_close(torch.cat([one, two]), net.linear(torch.cat([a, b])) + 4)


def test_a_value_without_rows_beside_one_with_rows_may_be_handed_on(net):
    class Mixed(torch.nn.Module):
        def forward(self, x):
            return x + 1, torch.arange(3.0), 5

    model = NNsight(Mixed())
    with model.trace() as tracer:
        with tracer.invoke(rows(1, 1)):
            x, shared, five = model.output
            model.output = (x * 0, shared, five)
        with tracer.invoke(rows(2, 2)):
            other = model.output
        with tracer.invoke():
            whole = tracer.result
    assert torch.equal(whole[0], torch.cat([torch.zeros(1, 4), rows(2, 2) + 1]))
    assert torch.equal(whole[1], torch.arange(3.0)) and whole[2] == 5
    assert torch.equal(other[0], rows(2, 2) + 1)


def test_parameters_carry_no_rows_even_if_the_size_fits():
    class Table(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.rand(3, 4))

        def forward(self, x):
            return self.weight

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.table = Table()

        def forward(self, x):
            return x @ self.table(x).T

    net = Net()
    model = NNsight(net)
    with model.trace() as tracer:
        with tracer.invoke(rows(1)):
            one = model.table.output
        with tracer.invoke(rows(2)):
            two = model.table.output
    assert one is two is net.table.weight


# -- edits that come too late ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("whole", ["read", "replaced"])
@pytest.mark.parametrize("mode", [torch.enable_grad, torch.inference_mode])
def test_an_edit_of_rows_that_were_put_together_since_is_an_error(net, model, whole, mode):
    with pytest.raises(RowsError, match=r"model\.layers\.1\.output.*Read it again"):
        with mode(), model.trace() as tracer:
            barrier = tracer.barrier(2)
            with tracer.invoke(rows(1, 1)):
                held = model.layers[1].output
                barrier()
                held[:] = 0
            with tracer.invoke(rows(1, 2)):
                model.layers[1].output = torch.ones(1, 4)
            with tracer.invoke():
                if whole == "read":
                    model.layers[1].output
                else:
                    model.layers[1].output = torch.ones(2, 4)
                barrier()
    assert untouched(net)


def test_rows_that_are_read_again_after_waiting_are_edited(net, model):
    a, b = rows(1, 1), rows(1, 2)
    with model.trace() as tracer:
        barrier = tracer.barrier(2)
        with tracer.invoke(a):
            model.layers[1].output
            barrier()
            model.layers[1].output[:] = 0
            one = model.output
        with tracer.invoke(b):
            model.layers[1].output = torch.ones(1, 4)
            two = model.output
        with tracer.invoke():
            model.layers[1].output += 2
            barrier()
    want = by_hooks(
        net,
        torch.cat([a, b]),
        edits={"layers.1": lambda *_: torch.cat([torch.zeros(1, 4), torch.full((1, 4), 3.0)])},
    )
    torch.testing.assert_close(torch.cat([one, two]), want.result)


def test_an_edit_of_rows_while_others_replace_theirs_takes_effect(net, model):
    a, b = rows(1, 1), rows(1, 2)
    with model.trace() as tracer:
        barrier = tracer.barrier(2)
        with tracer.invoke(a):
            held = model.layers[1].output
            barrier()
            held[:] = 0
            one = model.output
        with tracer.invoke(b):
            model.layers[1].output = torch.ones(1, 4)
            barrier()
            two = model.output
    want = by_hooks(
        net, torch.cat([a, b]), edits={"layers.1": lambda *_: torch.cat([torch.zeros(1, 4), torch.ones(1, 4)])}
    )
    torch.testing.assert_close(torch.cat([one, two]), want.result)


# -- types and views -------------------------------------------------------------------------------------------------


def test_a_write_is_cast_to_the_type_of_the_value(net, model):
    a, b = rows(1, 1), rows(2, 2)
    with model.trace() as tracer:
        with tracer.invoke(a):
            model.layers[1].output = torch.ones(1, 4, dtype=torch.float64)
            one = model.output
        with tracer.invoke(b):
            model.layers[1].output = torch.ones(2, 4, dtype=torch.int64)
            two = model.output
    want = by_hooks(net, torch.cat([a, b]), edits={"layers.1": lambda out, _: torch.ones_like(out)}).result
    assert one.dtype is two.dtype is torch.float32
    torch.testing.assert_close(torch.cat([one, two]), want)


def test_rows_are_views_of_the_batch(model):
    with model.trace() as tracer:
        with tracer.invoke(rows(1)):
            one = model.layers[0].output
        with tracer.invoke(rows(2)):
            two = model.layers[0].output
        with tracer.invoke():
            whole = model.layers[0].output
    assert one.data_ptr() == whole.data_ptr()
    assert two.data_ptr() == whole[1:].data_ptr()


def test_one_site_gives_one_view(model):
    with model.trace() as tracer:
        with tracer.invoke(rows(1)):
            same = model.layers[0].output is model.layers[0].output
        with tracer.invoke(rows(2)):
            pass
    assert same


def test_rows_under_no_grad_and_inference_mode(net, model):
    a, b = rows(1, 1), rows(2, 2)
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            with model.trace() as tracer:
                with tracer.invoke(a):
                    model.layers[1].output[:] = 0
                    one = model.output
                with tracer.invoke(b):
                    model.layers[1].output = torch.ones(2, 4)
                    two = model.output
        want = by_hooks(
            net,
            torch.cat([a, b]),
            edits={"layers.1": lambda out, _: torch.cat([torch.zeros(1, 4), torch.ones(2, 4)])},
        ).result
        torch.testing.assert_close(torch.cat([one, two]).clone(), want.detach())


def test_gradients_flow_through_rows(net, model):
    a, b = rows(1, 1), rows(2, 2)
    with model.trace() as tracer:
        with tracer.invoke(a):
            model.layers[1].output = model.layers[1].output * 2
            one = model.output
        with tracer.invoke(b):
            model.layers[1].output[:, 0] = 0
            two = model.output
    (one.sum() + two.pow(2).sum()).backward()
    grads = {name: p.grad.clone() for name, p in net.named_parameters()}
    net.zero_grad()

    def edit(out, _):
        second = out[1:].clone()
        second[:, 0] = 0
        return torch.cat([out[:1] * 2, second])

    want = by_hooks(net, torch.cat([a, b]), edits={"layers.1": edit}).result
    (want[:1].sum() + want[1:].pow(2).sum()).backward()
    for name, parameter in net.named_parameters():
        torch.testing.assert_close(grads[name], parameter.grad)


def test_a_view_that_was_made_to_require_a_gradient_stays_in_the_graph(net, model):
    for parameter in net.parameters():
        parameter.requires_grad_(False)
    a, b = rows(1, 1), rows(2, 2)
    with model.trace() as tracer:
        with tracer.invoke(a):
            hidden = model.layers[0].output
            hidden.requires_grad_()
            one = model.output
        with tracer.invoke(b):
            two = model.output
    (grad,) = torch.autograd.grad(one.sum(), hidden)
    leaf = by_hooks(net, a, reads=["layers.0"])["layers.0"].clone().requires_grad_()
    out = by_hooks(net, a, edits={"layers.0": lambda *_: leaf}).result
    torch.testing.assert_close(grad, torch.autograd.grad(out.sum(), leaf)[0])
    torch.testing.assert_close(two, net(b))


# -- what writes cost ------------------------------------------------------------------------------------------------


class Counting(torch.utils._python_dispatch.TorchDispatchMode):
    """Counts how many elements every operation of the model and of ours makes, by name."""

    def __init__(self):
        super().__init__()
        self.made: dict[str, int] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if isinstance(out, torch.Tensor):
            self.made[name] = self.made.get(name, 0) + out.numel()
        return out


@pytest.mark.parametrize("count", [2, 64])
def test_writes_of_all_invokes_copy_the_batch_once(model, count):
    values = [torch.full((1, 4), float(n)) for n in range(count)]
    inputs = [rows(1, n) for n in range(count)]
    with torch.no_grad(), Counting() as counting:
        with model.trace() as tracer:
            for x, value in zip(inputs, values):
                with tracer.invoke(x):
                    model.layers[1].output = value
            with tracer.invoke():
                whole = model.layers[1].output
    assert torch.equal(whole, torch.cat(values))
    # One `cat` puts the inputs together, the other the written rows; nothing else copies.
    assert counting.made["cat"] == 2 * count * 4
    assert not {"clone", "copy_", "_to_copy", "index_put_", "stack"} & set(counting.made)


def test_edits_in_place_copy_nothing(model):
    inputs = [rows(1, n) for n in range(16)]
    with torch.no_grad(), Counting() as counting:
        with model.trace() as tracer:
            for x in inputs:
                with tracer.invoke(x):
                    model.layers[1].output.mul_(2)
    assert counting.made["cat"] == 16 * 4  # the inputs
    assert not {"clone", "copy_", "_to_copy", "index_put_", "stack"} & set(counting.made)


# -- skipping --------------------------------------------------------------------------------------------------------


def test_some_invokes_skip_a_module(net, model):
    a, b, c = rows(1, 1), rows(2, 2), rows(1, 3)
    with model.trace() as tracer:
        with tracer.invoke(a):
            one = model.output
        with tracer.invoke(b):
            model.layers[1].skip(torch.full((2, 4), 0.5))
            hidden = model.layers[1].output
            two = model.output
        with tracer.invoke(c):
            three = model.output
    want = by_hooks(net, torch.cat([a, b, c]), edits={"layers.1": at_rows(1, 2, lambda _: torch.full((2, 4), 0.5))})
    assert torch.equal(hidden, torch.full((2, 4), 0.5))
    torch.testing.assert_close(torch.cat([one, two, three]), want.result)


def test_every_invoke_skips_a_module(net, model):
    calls = []
    net.layers[1].register_forward_pre_hook(lambda *_: None)
    a, b = rows(1, 1), rows(2, 2)
    with model.trace() as tracer:
        with tracer.invoke(a):
            model.layers[1].skip(torch.zeros(1, 4))
            one = model.output
        with tracer.invoke(b):
            model.layers[1].skip(torch.ones(2, 4))
            two = model.output
    want = by_hooks(
        net, torch.cat([a, b]), edits={"layers.1": lambda *_: torch.cat([torch.zeros(1, 4), torch.ones(2, 4)])}
    )
    torch.testing.assert_close(torch.cat([one, two]), want.result)
    assert calls == []


def test_the_whole_batch_skips_a_module(net, model):
    entered = []
    forward = net.layers[1].forward
    net.layers[1].forward = lambda x: entered.append(1) or forward(x)
    a, b = rows(1, 1), rows(2, 2)
    with model.trace() as tracer:
        with tracer.invoke(a):
            one = model.output
        with tracer.invoke(b):
            two = model.output
        with tracer.invoke():
            model.layers[1].skip(torch.ones(3, 4))
    assert entered == []
    want = by_hooks(net, torch.cat([a, b]), edits={"layers.1": lambda *_: torch.ones(3, 4)}).result
    torch.testing.assert_close(torch.cat([one, two]), want)


def test_a_skip_with_another_shape_is_refused(net, model):
    with pytest.raises(RowsError, match=r"\(2, 4\)"):
        with model.trace() as tracer:
            with tracer.invoke(rows(1)):
                model.output
            with tracer.invoke(rows(2)):
                model.layers[1].skip(torch.zeros(1, 4))
    assert untouched(net)


# -- values shown in another form ------------------------------------------------------------------------------------


class Halves(Envoy):
    @eproperty
    def halves(self, output):
        return output.clone().unflatten(-1, (2, 2))

    @halves.setter
    def halves(self, output, value):
        return value.flatten(-2)

    @eproperty
    def copied(self, output):
        return output.clone()


@pytest.fixture
def halved(net):
    return NNsight(net, envoys={torch.nn.Linear: Halves})


def zero_half(out, _):
    return torch.cat([torch.zeros_like(out[:, :2]), out[:, 2:]], dim=1)


def test_an_edit_of_a_copy_is_carried_back(net, halved):
    x = rows(2)
    with halved.trace(x):
        halved.layers[1].halves[:, 0] = 0
        out = halved.output
    torch.testing.assert_close(out, by_hooks(net, x, edits={"layers.1": zero_half}).result)


def test_edits_of_two_copies_are_both_carried_back(net, halved):
    x = rows(2)
    with halved.trace(x):
        halved.layers[1].halves[:, 0] = 0
        halved.layers[1].halves[:, 1] = 1
        out = halved.output
    want = by_hooks(net, x, edits={"layers.1": lambda out, _: torch.cat([torch.zeros(2, 2), torch.ones(2, 2)], dim=1)})
    torch.testing.assert_close(out, want.result)


def test_an_edit_of_a_copy_is_seen_at_the_site_at_once(net, halved):
    x = rows(2)
    with halved.trace(x):
        halved.layers[1].halves[:, 0] = 0
        seen = halved.layers[1].output.clone()
    plain = by_hooks(net, x, reads=["layers.1"])["layers.1"]
    torch.testing.assert_close(seen, zero_half(plain, 0))


def test_an_edit_of_a_copy_is_carried_back_in_inference_mode(net, halved):
    x = rows(2)
    with torch.inference_mode():
        with halved.trace(x):
            halved.layers[1].halves[:, 0] = 0
            halved.layers[1].halves[:, 1] += 1
            out = halved.output
    want = by_hooks(net, x, edits={"layers.1": lambda out, _: torch.cat([torch.zeros(2, 2), out[:, 2:] + 1], dim=1)})
    torch.testing.assert_close(out.clone(), want.result.detach())


def test_a_copy_that_was_only_read_changes_nothing(net, halved):
    x = rows(2)
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            with halved.trace(x):
                halved.layers[1].copied
                halved.layers[1].halves
                out = halved.output
        torch.testing.assert_close(out.clone(), net(x).detach())


def test_an_edit_of_a_copy_without_a_way_back_is_an_error(halved):
    with pytest.raises(NNsightError, match="no setter to carry the edit back"):
        with halved.trace(rows(2)):
            halved.layers[1].copied[:] = 0
            halved.output


def test_copies_are_carried_back_by_rows(net, halved):
    a, b = rows(1, 1), rows(2, 2)
    with halved.trace() as tracer:
        with tracer.invoke(a):
            halved.layers[1].halves = torch.ones(1, 2, 2)
            one = halved.output
        with tracer.invoke(b):
            halved.layers[1].halves[:, 0] = 0
            two = halved.output
        with tracer.invoke():
            whole = halved.layers[1].output
    plain = by_hooks(net, torch.cat([a, b]), reads=["layers.1"])["layers.1"]
    want = torch.cat([torch.ones(1, 4), zero_half(plain[1:], 0)])
    torch.testing.assert_close(whole, want)
    out = by_hooks(net, torch.cat([a, b]), edits={"layers.1": lambda *_: want}).result
    torch.testing.assert_close(torch.cat([one, two]), out)


def test_a_layout_looks_at_a_whole_value_before_its_tensors_are_taken(net):
    seen = []

    class Looking(PlainLayout):
        def look(self, value, path):
            seen.append((path, sorted(value)))

        def take(self, value, rows, path):
            assert seen, "it has not looked yet"
            return super().take(value, rows, path)

    class Named(torch.nn.Module):
        def forward(self, x):
            return {"a": x, "b": x + 1}

    class Family(NNsight):
        def _layout(self, total, args, kwargs, method):
            return Looking(total)

    model = Family(torch.nn.Sequential(Named()))
    with model.trace() as tracer:
        with tracer.invoke(rows(1)):
            model[0].output
        with tracer.invoke(rows(2)):
            pass
    assert seen == [("model.0", ["a", "b"])]
