"""Gradients: a backward pass as a context."""

from __future__ import annotations

import copy
import threading

import pytest
import torch
from hooked import Stack, by_hooks, untouched

from nnsight import BackwardError, MissedProviderError, NNsight, NNsightError, OutOfOrderError
from nnsight._core import backward as backward_module
from nnsight._core import patches


@pytest.fixture
def net():
    return Stack()


@pytest.fixture
def model(net):
    return NNsight(net)


@pytest.fixture(autouse=True)
def torch_is_as_it_was():
    yield
    assert "grad" not in torch.Tensor.__dict__


def rows(count, seed=0, width=4):
    return torch.rand(count, width, generator=torch.Generator().manual_seed(seed))


X = rows(3, 5)


def hooked_gradients(net, x, names, loss, changes=None):
    """Compute the gradients of outputs with tensor hooks alone; `changes` says what becomes of some of them."""
    grads, outputs = {}, {}

    def keep(name):
        def edit(out, _):
            if not out.requires_grad:
                out.requires_grad_()
            outputs[name] = out

            def hook(grad):
                grads[name] = grad.clone()
                change = (changes or {}).get(name)
                return None if change is None else change(grad.clone())

            out.register_hook(hook)

        return edit

    result = by_hooks(net, x, edits={name: keep(name) for name in names}).result
    loss(result).backward()
    return grads


def parameter_gradients(net):
    grads = {name: parameter.grad for name, parameter in net.named_parameters()}
    net.zero_grad(set_to_none=True)
    return grads


def same_gradients(one, other):
    assert one.keys() == other.keys()
    for name, grad in one.items():
        torch.testing.assert_close(grad, other[name])


def squared(out):
    return out.pow(2).sum()


# -- reading ---------------------------------------------------------------------------------------------------------


def test_gradients_are_read(net, model):
    with model.trace(X):
        hidden = [layer.output for layer in model.layers]
        loss = squared(model.output)
        with loss.backward():
            grads = [h.grad for h in reversed(hidden)]
    ours = parameter_gradients(net)
    want = hooked_gradients(net, X, ["layers.0", "layers.1", "layers.2"], squared)
    for name, grad in zip(("layers.2", "layers.1", "layers.0"), grads):
        torch.testing.assert_close(grad, want[name])
    same_gradients(ours, parameter_gradients(net))


def test_a_backward_block_that_asks_for_nothing(net, model):
    with model.trace(X):
        with squared(model.output).backward():
            pass
    ours = parameter_gradients(net)
    squared(net(X)).backward()
    same_gradients(ours, parameter_gradients(net))


def test_the_pass_goes_on_after_the_last_question(net, model):
    with model.trace(X):
        last = model.layers[2].output
        with squared(model.output).backward():
            last.grad
    ours = parameter_gradients(net)
    squared(net(X)).backward()
    same_gradients(ours, parameter_gradients(net))


def test_reading_twice_gives_the_same(model):
    with model.trace(X):
        hidden = model.layers[1].output
        with squared(model.output).backward():
            one = hidden.grad
            two = hidden.grad
    assert one is two


def test_a_gradient_outside_a_trace(net):
    x = rows(2).requires_grad_()
    hidden = torch.tanh(net.embed(x))
    loss = squared(net.head(hidden))
    with loss.backward():
        got = hidden.grad
    want = torch.autograd.grad(squared(net.head(torch.tanh(net.embed(x)))), x)[0]
    torch.testing.assert_close(x.grad, want)
    assert got.shape == hidden.shape


def test_a_backward_block_after_the_trace(net, model):
    with model.trace(X):
        hidden = model.layers[1].output
        out = model.output
    with squared(out).backward():
        grad = hidden.grad
    net.zero_grad(set_to_none=True)
    torch.testing.assert_close(grad, hooked_gradients(net, X, ["layers.1"], squared)["layers.1"])


def test_the_model_waits_while_a_backward_pass_runs_in_the_middle_of_its_forward(net, model):
    with model.trace(X):
        hidden = model.layers[0].output
        later = model.layers[1].output
        with squared(later).backward(retain_graph=True):
            grad = hidden.grad
        out = model.output
    torch.testing.assert_close(out, net(X))
    leaf = by_hooks(net, X, reads=["layers.0"])["layers.0"].detach().requires_grad_()
    stream = net.embed(X).detach() + torch.tanh(leaf)
    torch.testing.assert_close(grad, torch.autograd.grad(squared(net.layers[1](stream)), leaf)[0])


def test_leaves_are_read_and_keep_what_they_accumulate(net, model):
    x = X.clone().requires_grad_()
    weight = net.head.weight
    with model.trace(x):
        with squared(model.output).backward():
            of_head = weight.grad
            of_input = x.grad
    want = copy.deepcopy(net)
    y = X.clone().requires_grad_()
    squared(want(y)).backward()
    torch.testing.assert_close(of_input, y.grad)
    torch.testing.assert_close(x.grad, y.grad)
    torch.testing.assert_close(weight.grad, want.head.weight.grad)
    assert of_head.shape == weight.shape


def test_accumulated_gradients_are_visible_after_the_block(net, model):
    for count in (1, 2):
        with model.trace(X):
            with squared(model.output).backward():
                pass
        accumulated = net.head.weight.grad.clone()
        if count == 1:
            once = accumulated
    torch.testing.assert_close(accumulated, once * 2)


def test_gradient_arguments_are_passed_on(net, model):
    given = torch.rand(3, 5)
    with model.trace(X):
        hidden = model.layers[1].output
        with model.output.backward(gradient=given):
            grad = hidden.grad
    net.zero_grad(set_to_none=True)
    want = hooked_gradients(net, X, ["layers.1"], lambda out: (out * given).sum())
    torch.testing.assert_close(grad, want["layers.1"])


def test_inputs_argument_is_passed_on(net, model):
    x = X.clone().requires_grad_()
    with model.trace(x):
        hidden = model.layers[1].output
        with squared(model.output).backward(inputs=[x]):
            grad = hidden.grad
    assert all(parameter.grad is None for parameter in net.parameters())
    torch.testing.assert_close(x.grad, torch.autograd.grad(squared(net(x)), x)[0])
    assert grad.shape == hidden.shape


# -- changing --------------------------------------------------------------------------------------------------------


def set_in_place(hidden):
    hidden.grad[:] = 0.5


def set_by_replacement(hidden):
    hidden.grad = torch.full_like(hidden, 0.5)


def set_by_augmented(hidden):
    hidden.grad *= 0
    hidden.grad += 0.5


@pytest.mark.parametrize("change", [set_in_place, set_by_replacement, set_by_augmented])
def test_a_changed_gradient_flows_on(net, model, change):
    with model.trace(X):
        early, hidden = model.layers[0].output, model.layers[1].output
        with squared(model.output).backward():
            change(hidden)
            seen = hidden.grad.clone()
            upstream = early.grad
    ours = parameter_gradients(net)
    want = hooked_gradients(
        net, X, ["layers.0", "layers.1"], squared, {"layers.1": lambda grad: torch.full_like(grad, 0.5)}
    )
    assert torch.equal(seen, torch.full_like(seen, 0.5))
    torch.testing.assert_close(upstream, want["layers.0"])
    same_gradients(ours, parameter_gradients(net))


def test_scaling_a_gradient(net, model):
    with model.trace(X):
        hidden = model.layers[1].output
        with squared(model.output).backward():
            hidden.grad = hidden.grad * 3
    ours = parameter_gradients(net)
    hooked_gradients(net, X, ["layers.1"], squared, {"layers.1": lambda grad: grad * 3})
    same_gradients(ours, parameter_gradients(net))


class Residual(torch.nn.Module):
    """Adds what its parts give, so that autograd hands one and the same tensor to both sides of each sum."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(4)
        self.a = torch.nn.Linear(4, 4)
        self.b = torch.nn.Linear(4, 4)

    def forward(self, x):
        first = self.a(x)
        second = self.b(x)
        return first + second


def test_an_edit_in_place_stays_on_its_branch_of_a_residual_stream():
    net = Residual()
    model = NNsight(net)
    with model.trace(X):
        a, b = model.a.output, model.b.output
        with squared(model.output).backward():
            b.grad[:] = 0
            of_a = a.grad.clone()
    ours = parameter_gradients(net)
    want = hooked_gradients(net, X, ["a", "b"], squared, {"b": lambda grad: grad * 0})
    torch.testing.assert_close(of_a, want["a"])
    assert torch.any(of_a != 0)
    same_gradients(ours, parameter_gradients(net))
    assert torch.all(ours["b.weight"] == 0)


@pytest.mark.parametrize("value", [torch.zeros(3, 3), torch.zeros(1, 4), 0.0, None])
def test_a_gradient_of_another_shape_is_refused(net, model, value):
    with pytest.raises(BackwardError, match=r"shape \(3, 4\)"):
        with model.trace(X):
            hidden = model.layers[1].output
            with squared(model.output).backward():
                hidden.grad = value
    assert untouched(net)


# -- several passes --------------------------------------------------------------------------------------------------


def test_several_passes_over_one_graph(net, model):
    with model.trace(X):
        hidden = model.layers[1].output
        out = model.output
        with out[:, 0].sum().backward(retain_graph=True):
            first = hidden.grad.clone()
        with out[:, 1].sum().backward(retain_graph=True):
            second = hidden.grad.clone()
        with squared(out).backward():
            third = hidden.grad.clone()
    net.zero_grad(set_to_none=True)
    for got, loss in ((first, lambda o: o[:, 0].sum()), (second, lambda o: o[:, 1].sum()), (third, squared)):
        torch.testing.assert_close(got, hooked_gradients(net, X, ["layers.1"], loss)["layers.1"])


def test_a_second_pass_over_a_freed_graph_is_torchs_error(net, model):
    with pytest.raises(RuntimeError, match="second time"):
        with model.trace(X):
            hidden = model.layers[1].output
            loss = squared(model.output)
            with loss.backward():
                hidden.grad
            with loss.backward():
                hidden.grad
    assert untouched(net)


def test_one_pass_after_another_leaves_no_hook(net, model):
    changed = []
    with model.trace(X):
        hidden = model.layers[1].output
        loss = squared(model.output)
        with loss.backward(retain_graph=True):
            hidden.grad[:] = 0
            changed.append(hidden.grad.clone())
        net.zero_grad(set_to_none=True)
        loss.backward()
    ours = parameter_gradients(net)
    squared(net(X)).backward()
    same_gradients(ours, parameter_gradients(net))


def test_gradients_of_gradients(net, model):
    with model.trace(X):
        hidden = model.layers[1].output
        with squared(model.output).backward(create_graph=True):
            grad = hidden.grad
        (second,) = torch.autograd.grad(squared(grad), hidden)
    leaf_run = by_hooks(net, X, reads=["layers.1"])
    other = leaf_run["layers.1"]
    (first_by_hand,) = torch.autograd.grad(squared(leaf_run.result), other, create_graph=True)
    (second_by_hand,) = torch.autograd.grad(squared(first_by_hand), other)
    torch.testing.assert_close(grad, first_by_hand)
    torch.testing.assert_close(second, second_by_hand)


# -- invokes ---------------------------------------------------------------------------------------------------------


def test_each_invoke_has_a_pass_of_its_own(net, model):
    a, b = rows(1, 1), rows(2, 2)
    with model.trace() as tracer:
        with tracer.invoke(a):
            one = model.layers[1].output
            with squared(model.output).backward(retain_graph=True):
                of_one = one.grad
        with tracer.invoke(b):
            two = model.layers[1].output
            with model.output.sum().backward():
                of_two = two.grad
    net.zero_grad(set_to_none=True)
    torch.testing.assert_close(of_one, hooked_gradients(net, a, ["layers.1"], squared)["layers.1"])
    torch.testing.assert_close(of_two, hooked_gradients(net, b, ["layers.1"], torch.sum)["layers.1"])


def test_an_invoke_changes_the_gradient_of_its_rows(net, model):
    a, b = rows(1, 1), rows(2, 2)
    with model.trace() as tracer:
        with tracer.invoke(a):
            early, hidden = model.layers[0].output, model.layers[1].output
            with squared(model.output).backward(retain_graph=True):
                hidden.grad[:] = 0.25
                upstream = early.grad
        with tracer.invoke(b):
            pass
    net.zero_grad(set_to_none=True)
    want = hooked_gradients(
        net, a, ["layers.0", "layers.1"], squared, {"layers.1": lambda grad: torch.full_like(grad, 0.25)}
    )
    torch.testing.assert_close(upstream, want["layers.0"])


def test_the_gradient_of_replaced_rows(net, model):
    a, b = rows(1, 1), rows(2, 2)
    with model.trace() as tracer:
        with tracer.invoke(a):
            mine = model.layers[1].output * 2
            model.layers[1].output = mine
            with squared(model.output).backward(retain_graph=True):
                grad = mine.grad
        with tracer.invoke(b):
            pass
    net.zero_grad(set_to_none=True)

    kept = {}

    def double(out, _):
        kept["mine"] = out * 2
        kept["mine"].retain_grad()
        return kept["mine"]

    squared(by_hooks(net, a, edits={"layers.1": double}).result).backward()
    torch.testing.assert_close(grad, kept["mine"].grad)


def test_a_pass_for_the_whole_batch(net, model):
    a, b = rows(1, 1), rows(2, 2)
    with model.trace() as tracer:
        with tracer.invoke(a):
            pass
        with tracer.invoke(b):
            pass
        with tracer.invoke():
            hidden = model.layers[1].output
            with squared(model.output).backward():
                grad = hidden.grad
    net.zero_grad(set_to_none=True)
    torch.testing.assert_close(grad, hooked_gradients(net, torch.cat([a, b]), ["layers.1"], squared)["layers.1"])


# -- what requires no gradient ---------------------------------------------------------------------------------------


def test_a_frozen_model_gives_gradients_of_what_was_made_to_require_one(net, model):
    for parameter in net.parameters():
        parameter.requires_grad_(False)
    with model.trace(X):
        hidden = model.layers[1].output
        hidden.requires_grad_()
        with squared(model.output).backward():
            grad = hidden.grad
    torch.testing.assert_close(grad, hooked_gradients(net, X, ["layers.1"], squared)["layers.1"])
    assert all(parameter.grad is None for parameter in net.parameters())


class Quiet(torch.nn.Module):
    """Runs its parts without gradients, as generation does."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        with torch.no_grad():
            return self.net(x)


def test_a_model_that_runs_without_gradients_leaves_the_body_its_own(net):
    model = NNsight(Quiet(net))
    with model.trace(X):
        hidden = model.net.layers[1].output
        assert torch.is_grad_enabled()
        assert not hidden.requires_grad
        leaf = hidden.clone().requires_grad_()
        with squared(leaf * 2).backward():
            grad = leaf.grad
        out = model.output
    torch.testing.assert_close(grad, leaf.detach() * 8)
    assert not out.requires_grad
    torch.testing.assert_close(out, net(X).detach())


def test_the_gradient_of_what_requires_none_says_what_to_do(net, model):
    for parameter in net.parameters():
        parameter.requires_grad_(False)
    with pytest.raises(BackwardError, match="requires_grad_"):
        with model.trace(X):
            early = model.layers[0].output
            hidden = model.layers[1].output
            hidden.requires_grad_()
            with squared(model.output).backward():
                early.grad
    assert untouched(net)


def test_a_loss_that_requires_no_gradient_is_torchs_error(net, model):
    with pytest.raises(RuntimeError, match="does not require grad"):
        with model.trace(X):
            hidden = model.layers[1].output
            with torch.zeros(()).backward():
                hidden.grad
    assert untouched(net)


# -- what is refused -------------------------------------------------------------------------------------------------


def test_out_of_order_gradients_are_refused(net, model):
    with pytest.raises(OutOfOrderError, match="reverse order"):
        with model.trace(X):
            early, late = model.layers[0].output, model.layers[2].output
            with squared(model.output).backward():
                early.grad
                late.grad
    assert untouched(net)


def test_a_gradient_that_never_comes(net, model):
    unused = rows(1).requires_grad_() * 2
    with pytest.raises(MissedProviderError, match="gradient"):
        with model.trace(X):
            with squared(model.output).backward():
                unused.grad
    assert untouched(net)


def test_a_module_asked_for_in_a_backward_block_is_refused(net, model):
    with pytest.raises(BackwardError, match=r"model\.layers\.1.*only gradients"):
        with model.trace(X):
            out = model.layers[0].output
            with squared(out).backward():
                model.layers[1].output
    assert untouched(net)


def test_an_error_in_a_backward_block(net, model):
    mine = KeyError("mine")
    with pytest.raises(KeyError) as caught:
        with model.trace(X):
            hidden = model.layers[1].output
            with squared(model.output).backward():
                hidden.grad
                raise mine
    assert caught.value is mine
    assert untouched(net)
    with model.trace(X):
        hidden = model.layers[1].output
        with squared(model.output).backward():
            grad = hidden.grad
    assert grad.shape == hidden.shape


def test_torch_errors_in_a_backward_block_are_exceptions(net, model):
    for _ in range(50):
        with pytest.raises(RuntimeError):
            with model.trace(X):
                hidden = model.layers[1].output
                with squared(model.output).backward():
                    hidden.grad @ torch.zeros(9, 9)
        net.zero_grad(set_to_none=True)
    assert untouched(net)


class Failing(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * 2

    @staticmethod
    def backward(ctx, grad):
        raise ValueError("the pass failed")


def test_an_error_of_the_pass_comes_out_where_it_was_waited_for():
    x = rows(1).requires_grad_()
    before = x * 3
    loss = squared(Failing.apply(before))
    with pytest.raises(ValueError, match="the pass failed"):
        with loss.backward():
            before.grad
    loss = squared(Failing.apply(x * 3))
    with pytest.raises(ValueError, match="the pass failed"):
        with loss.backward():
            pass


# -- the plain backward ----------------------------------------------------------------------------------------------


def test_a_plain_backward_is_torchs_own(monkeypatch, net):
    calls = []
    plain = patches.plain_backward

    def counting(*args, **kwargs):
        calls.append((args, kwargs))
        return plain(*args, **kwargs)

    made = []
    monkeypatch.setattr(patches, "plain_backward", counting)
    monkeypatch.setattr(patches, "Backward", lambda *args: made.append(args))
    loss = squared(net(X))
    assert loss.backward(retain_graph=True) is None
    assert calls == [((loss, None, True, False, None), {})]
    assert made == []


def test_a_plain_backward_in_a_trace(net, model):
    with model.trace(X):
        hidden = model.layers[1].output
        hidden.retain_grad()
        loss = squared(model.output)
        loss.backward()
        grad = hidden.grad
    net.zero_grad(set_to_none=True)
    torch.testing.assert_close(grad, hooked_gradients(net, X, ["layers.1"], squared)["layers.1"])


def test_a_plain_backward_does_next_to_nothing_more(net):
    """Calls of Python functions, counted: one look at the caller's next instruction, and torch's own."""
    import sys

    def calls_of(backward, loss):
        count = 0

        def profile(frame, event, _):
            nonlocal count
            count += event == "call"

        sys.setprofile(profile)
        try:
            backward(loss)
        finally:
            sys.setprofile(None)
        return count

    loss = squared(net(X))
    plain = calls_of(lambda loss: patches.plain_backward(loss, retain_graph=True), loss)
    ours = calls_of(lambda loss: loss.backward(retain_graph=True), loss)
    assert ours - plain <= 4


def test_torchs_grad_is_replaced_only_while_a_block_is_open(net):
    assert "grad" not in torch.Tensor.__dict__
    hidden = net.embed(X)
    with squared(hidden).backward(retain_graph=True):
        assert "grad" in torch.Tensor.__dict__
        with squared(hidden).backward(retain_graph=True):
            pass
        assert "grad" in torch.Tensor.__dict__
    assert "grad" not in torch.Tensor.__dict__


def test_another_threads_gradients_are_its_own_while_a_block_is_open(net):
    seen = {}

    def elsewhere():
        x = rows(1).requires_grad_()
        squared(x).backward()
        seen["grad"] = x.grad
        x.grad = None
        seen["cleared"] = x.grad

    hidden = net.embed(X)
    with squared(hidden).backward():
        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
        grad = hidden.grad
    torch.testing.assert_close(seen["grad"], rows(1) * 2)
    assert seen["cleared"] is None
    torch.testing.assert_close(grad, hidden.detach() * 2)


def test_a_backward_block_inside_another(net):
    hidden = net.embed(X)
    other = rows(2).requires_grad_() * 1
    with squared(hidden).backward(retain_graph=True):
        with squared(other).backward():
            inner = other.grad
        outer = hidden.grad
    torch.testing.assert_close(inner, other.detach() * 2)
    torch.testing.assert_close(outer, hidden.detach() * 2)


def test_errors_of_backward_share_the_root():
    assert issubclass(BackwardError, NNsightError) and issubclass(BackwardError, RuntimeError)
    assert backward_module.plain_backward is patches.plain_backward
