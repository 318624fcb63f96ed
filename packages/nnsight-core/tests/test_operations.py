"""Operations: the calls inside a forward, as sites of their own. How a forward is rewritten is tested elsewhere."""

from __future__ import annotations

import functools
import inspect
import types

import pytest
import torch
from hooked import by_hooks

from nnsight import MissedProviderError, NNsight, NNsightError, NoTraceError, OutOfOrderError, RowsError, SourceError
from nnsight.plugin import operations_of


def scale(x, factor):
    y = torch.mul(x, factor)
    return shift(y)


def shift_only(x, factor):
    return shift(x)


multiply = functools.partial(torch.Tensor.mul)


def shift(x):
    moved = torch.add(x, 1.0)
    return moved


class Block(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.linear = torch.nn.Linear(4, 4)

    def forward(self, x):
        a = torch.relu(x)
        b = self.linear(a)
        c = torch.relu(b)
        return scale(c, factor=2.0)


class Two(torch.nn.Module):
    """Two blocks of one class, so that they share one forward function."""

    def __init__(self):
        super().__init__()
        self.first = Block()
        self.second = Block()

    def forward(self, x):
        return self.second(self.first(x) - 1.0)

    def generate(self, x, n):
        for _ in range(n):
            x = self(x)
        return x


def by_hand(net, x, a=None, c=None, end=None):
    """The block's forward, step by step, with changes of ours in between."""
    same = lambda value: value  # noqa: E731
    first = (a or same)(torch.relu(x))
    second = (c or same)(torch.relu(net.linear(first)))
    return (end or same)(second * 2.0 + 1.0)


@pytest.fixture
def net():
    return Block()


@pytest.fixture
def model(net):
    return NNsight(net)


def rows(count, seed=0, width=4):
    return torch.rand(count, width, generator=torch.Generator().manual_seed(seed)) - 0.5


X = rows(2, 5)


def clean(module):
    return all("forward" not in part.__dict__ for part in module.modules())


# -- listing ---------------------------------------------------------------------------------------------------------


def test_operations_are_listed_iterated_and_indexed(model):
    names = ["torch_relu_0", "self_linear_0", "torch_relu_1", "scale_0"]
    source = model.source
    assert [operation.name for operation in source] == names
    assert len(source) == 4
    assert "torch_relu_1" in source and "torch_relu_2" not in source
    assert source["scale_0"].name == source.scale_0.name == "scale_0"
    assert set(names) <= set(dir(source))
    text = str(source)
    assert all(name in text for name in names) and "self.linear(a)" in text
    assert "return scale(c, factor=2.0)" in str(source.scale_0)
    assert source.torch_relu_0.path == "model.source.torch_relu_0"


def test_listing_outside_a_trace_changes_nothing(net, model):
    str(model.source)
    assert clean(net)
    assert torch.equal(net(X), by_hand(net, X))


# -- reading ---------------------------------------------------------------------------------------------------------


def test_values_of_operations_are_read(net, model):
    with model.trace(X):
        first = model.source.torch_relu_0.output
        given = model.source.self_linear_0.input
        linear = model.source.self_linear_0.output
        args, kwargs = model.source.scale_0.inputs
        end = model.source.scale_0.output
        out = model.output
    assert torch.equal(first, torch.relu(X))
    assert torch.equal(given, first)
    assert torch.equal(linear, net.linear(torch.relu(X)))
    assert torch.equal(args[0], torch.relu(linear)) and kwargs == {"factor": 2.0}
    assert torch.equal(end, out) and torch.equal(out, by_hand(net, X))
    assert clean(net)


def test_an_operation_and_the_module_it_calls_are_both_sites(net, model):
    with model.trace(X):
        a = model.source.self_linear_0.input
        b = model.linear.input
        c = model.linear.output
        d = model.source.self_linear_0.output
    assert a is b and c is d


def test_order_counts_between_operations(net, model):
    with pytest.raises(OutOfOrderError) as caught:
        with model.trace(X):
            model.source.torch_relu_1.output
            model.source.torch_relu_0.output
    assert "model.source.torch_relu_0.output" in str(caught.value)
    assert clean(net)


def test_an_operation_that_is_not_reached(net):
    class Branching(torch.nn.Module):
        def forward(self, x, way):
            if way:
                return torch.sin(x)
            return torch.cos(x)

    model = NNsight(Branching())
    with pytest.raises(MissedProviderError, match="torch_sin_0"):
        with model.trace(X, False):
            model.source.torch_sin_0.output
    with model.trace(X, True):
        out = model.source.torch_sin_0.output
    assert torch.equal(out, torch.sin(X))


def test_values_of_operations_outside_a_trace(model):
    with pytest.raises(NoTraceError, match="torch_relu_0"):
        model.source.torch_relu_0.output


# -- changing --------------------------------------------------------------------------------------------------------


def test_outputs_are_replaced_and_edited(net, model):
    with model.trace(X):
        model.source.torch_relu_0.output = model.source.torch_relu_0.output + 1
        model.source.torch_relu_1.output[:, 0] = 5
        out = model.output

    def column(value):
        value = value.clone()
        value[:, 0] = 5
        return value

    torch.testing.assert_close(out, by_hand(net, X, a=lambda a: a + 1, c=column))
    torch.testing.assert_close(net(X), by_hand(net, X))


def test_inputs_are_replaced(net, model):
    with model.trace(X):
        model.source.torch_relu_1.input = torch.ones(2, 4)
        args, kwargs = model.source.scale_0.inputs
        model.source.scale_0.inputs = args, {"factor": 10.0}
        out = model.output
    assert torch.equal(out, torch.full((2, 4), 11.0))


def test_an_operation_is_skipped(net, model):
    with model.trace(X):
        model.source.self_linear_0.skip(torch.ones(2, 4))
        with pytest.raises(OutOfOrderError):
            model.source.torch_relu_0.output
        out = model.output
    assert torch.equal(out, torch.full((2, 4), 3.0))


def test_a_skipped_operation_does_not_run(net, model):
    calls = []
    net.linear.register_forward_pre_hook(lambda *_: calls.append(1))
    with model.trace(X):
        model.source.self_linear_0.skip(torch.zeros(2, 4))
    assert calls == []


def test_gradients_of_operations(net, model):
    with model.trace(X):
        hidden = model.source.torch_relu_1.output
        with model.output.sum().backward():
            grad = hidden.grad
    torch.testing.assert_close(grad, torch.full((2, 4), 2.0))


# -- descending ------------------------------------------------------------------------------------------------------


def test_descending_into_functions(net, model):
    with model.trace(X):
        product = model.source.scale_0.source.torch_mul_0.output
        moved = model.source.scale_0.source.shift_0.source.torch_add_0.output
    inner = torch.relu(net.linear(torch.relu(X)))
    torch.testing.assert_close(product, inner * 2)
    torch.testing.assert_close(moved, inner * 2 + 1)


def test_changing_deep_down(net, model):
    with model.trace(X):
        model.source.scale_0.source.shift_0.source.torch_add_0.output = torch.zeros(2, 4)
        out = model.output
    assert torch.equal(out, torch.zeros(2, 4))
    torch.testing.assert_close(net(X), by_hand(net, X))
    torch.testing.assert_close(scale(X, 1.0), X + 1)


def test_inner_operations_are_listed(model):
    inner = model.source.scale_0.source
    assert [operation.name for operation in inner] == ["torch_mul_0", "shift_0"]
    assert "return shift(y)" in str(inner)


class Chosen(torch.nn.Module):
    """Calls a function that is decided when it runs."""

    def __init__(self):
        super().__init__()
        self.table = {"scale": scale, "shift": shift_only, "lambda": lambda x, factor: x + factor, "mul": multiply}
        self.kind = "scale"

    def forward(self, x):
        function = self.table[self.kind]
        return function(x, 3.0)


def test_descending_into_a_function_that_the_run_chooses():
    net = Chosen()
    model = NNsight(net)
    with model.trace(X):
        product = model.source.function_0.source.torch_mul_0.output
    torch.testing.assert_close(product, X * 3)
    with pytest.raises(SourceError, match="decided when it is called"):
        str(model.source.function_0.source)


def test_another_function_is_chosen_in_a_later_run():
    net = Chosen()
    model = NNsight(net)
    with model.trace(X):
        product = model.source.function_0.source.torch_mul_0.output
    net.kind = "shift"
    with model.trace(X):
        out = model.source.function_0.output
    torch.testing.assert_close(out, X + 1)
    torch.testing.assert_close(product, X * 3)
    with pytest.raises(SourceError, match="torch_mul_0"):
        with model.trace(X):
            model.source.function_0.source.torch_mul_0.output
    net.kind = "scale"
    with model.trace(X):
        again = model.source.function_0.source.torch_mul_0.output
    torch.testing.assert_close(again, X * 3)


def test_a_wrong_name_inside_a_function_that_the_run_chooses():
    net = Chosen()
    model = NNsight(net)
    for _ in range(2):
        with pytest.raises(SourceError) as caught:
            with model.trace(X):
                model.source.function_0.source.torch_div_0.output
        assert "torch_div_0" in str(caught.value) and "torch_mul_0" in str(caught.value)
    assert clean(net)
    with model.trace(X):
        product = model.source.function_0.source.torch_mul_0.output
        out = model.output
    torch.testing.assert_close(product, X * 3)
    torch.testing.assert_close(out, scale(X, 3.0))


@pytest.mark.parametrize(("kind", "want"), [("lambda", X + 3), ("mul", X * 3)])
def test_a_function_that_cannot_be_opened_is_chosen_in_a_later_run(kind, want):
    net = Chosen()
    model = NNsight(net)
    with model.trace(X):
        model.source.function_0.source.torch_mul_0.output
    net.kind = kind
    with model.trace(X):
        out = model.source.function_0.output
    torch.testing.assert_close(out, want)
    with pytest.raises(SourceError):
        with model.trace(X):
            model.source.function_0.source.torch_mul_0.output
    assert clean(net)


def test_a_forward_that_cannot_be_opened_is_put_on_the_instance_later():
    net = Two()
    model = NNsight(net)
    with model.trace(X):
        model.first.source.torch_relu_0.output
    net.first.forward = lambda x: x * 0
    with model.trace(X):
        first = model.first.output
    assert torch.equal(first, X * 0)
    with pytest.raises(SourceError):
        with model.trace(X):
            model.first.source.torch_relu_0.output
    del net.first.forward
    with model.trace(X):
        inner = model.first.source.torch_relu_0.output
    assert torch.equal(inner, torch.relu(X))


def test_methods_and_closures_are_descended_into():
    class Net(torch.nn.Module):
        def step(self, x):
            return torch.sin(x)

        def forward(self, x):
            offset = torch.ones_like(x)

            def inner(value):
                return torch.add(value, offset)

            return inner(self.step(x))

    model = NNsight(Net())
    with model.trace(X):
        sine = model.source.self_step_0.source.torch_sin_0.output
        added = model.source.torch_add_0.output  # of the function that is defined inside
    torch.testing.assert_close(sine, torch.sin(X))
    torch.testing.assert_close(added, torch.sin(X) + 1)


def test_a_submodules_operations_are_asked_for_at_its_own_envoy(net, model):
    with pytest.raises(SourceError, match="envoy of its own"):
        model.source.self_linear_0.source
    with model.trace(X):
        product = model.linear.source.F_linear_0.output
    torch.testing.assert_close(product, net.linear(torch.relu(X)))


def test_builtins_have_no_operations_inside(model):
    with pytest.raises(SourceError):
        with model.trace(X):
            model.source.torch_relu_0.source.anything_0.output


def test_an_unknown_operation_lists_the_known_ones(model):
    with pytest.raises(AttributeError) as caught:
        model.source.torch_tanh_0
    message = str(caught.value)
    assert "torch_tanh_0" in message and "torch_relu_0" in message and "scale_0" in message
    assert not hasattr(model.source, "torch_tanh_0")


def test_a_forward_without_source_says_so():
    scope = {"torch": torch}
    exec("def forward(self, x):\n    return torch.sin(x)\n", scope)
    kind = type("Made", (torch.nn.Module,), {"forward": scope["forward"]})
    model = NNsight(kind())
    with pytest.raises(SourceError):
        model.source
    with model.trace(X):
        out = model.output
    assert torch.equal(out, torch.sin(X))


# -- too late --------------------------------------------------------------------------------------------------------


def test_operations_of_what_is_running_already_are_asked_for_too_late():
    model = NNsight(Two())
    with pytest.raises(SourceError) as caught:
        with model.trace(X):
            model.first.linear.output
            model.first.source.torch_relu_1.output
    message = str(caught.value)
    assert "`model.first`" in message and "running already" in message and "before the trace" in message
    assert clean(model._module)


def test_operations_asked_for_in_time_or_before_the_trace():
    net = Two()
    model = NNsight(net)
    with model.trace(X):
        model.first.linear.output
        later = model.second.source.torch_relu_0.output
    torch.testing.assert_close(later, torch.relu(net.first(X) - 1.0))
    model.first.source
    with model.trace(X):
        model.first.linear.output
        now = model.first.source.torch_relu_1.output
    torch.testing.assert_close(now, torch.relu(net.first.linear(torch.relu(X))))


def test_operations_asked_for_where_the_module_has_its_input_are_in_time():
    net = Two()
    model = NNsight(net)
    with model.trace(X):
        model.first.input = X * 2
        now = model.first.source.torch_relu_1.output
    torch.testing.assert_close(now, torch.relu(net.first.linear(torch.relu(X * 2))))
    assert clean(model._module)


def test_the_operations_of_a_function_that_is_running_are_asked_for_too_late(model):
    with pytest.raises(SourceError, match="running already"):
        with model.trace(X):
            model.source.scale_0.input
            model.source.scale_0.source.torch_mul_0.output


# -- steps, rows and several wrappers --------------------------------------------------------------------------------


def test_operations_in_steps():
    net = Two()
    model = NNsight(net)
    seen = []
    with model.generate(X, 3) as tracer:
        for step in tracer.iter[:]:
            seen.append(model.first.source.torch_relu_1.output)
            model.second.source.scale_0.output = model.second.source.scale_0.output * step
        out = tracer.result
    want = by_hooks(
        net, X, 3, call="generate", reads=["first.linear"], edits={"second": lambda out, visit: out * visit}
    )
    assert len(seen) == 3
    for one, linear in zip(seen, want.outputs["first.linear"]):
        torch.testing.assert_close(one, torch.relu(linear))
    torch.testing.assert_close(out, want.result)


def test_an_operation_in_a_loop_of_the_forward():
    class Looping(torch.nn.Module):
        def forward(self, x):
            for _ in range(4):
                x = torch.sin(x)
            return x

    net = Looping()
    model = NNsight(net)
    with model.trace(X) as tracer:
        seen = [model.source.torch_sin_0.output for _ in tracer.iter[:]]
    assert len(seen) == 4
    x = X
    for one in seen:
        x = torch.sin(x)
        assert torch.equal(one, x)
    with model.trace(X) as tracer:
        for _ in tracer.iter[2]:
            model.source.torch_sin_0.skip(torch.zeros(2, 4))
        out = tracer.result
    assert torch.equal(out, torch.zeros(2, 4))


def test_next_of_an_operation():
    model = NNsight(Two())
    with model.generate(X, 2):
        one = model.first.source.torch_relu_0.output
        two = model.first.source.torch_relu_0.next().output
    torch.testing.assert_close(one, torch.relu(X))
    torch.testing.assert_close(two, torch.relu(model._module(X)))


def test_operations_by_rows(net, model):
    a, b = rows(1, 1), rows(2, 2)
    with model.trace() as tracer:
        with tracer.invoke(a):
            seen = model.source.torch_relu_0.output
            model.source.torch_relu_1.output = torch.zeros(1, 4)
            one = model.output
        with tracer.invoke(b):
            model.source.torch_relu_1.output[:] = 1
            two = model.output
    torch.testing.assert_close(seen, torch.relu(a))
    assert torch.equal(one, torch.ones(1, 4)) and torch.equal(two, torch.full((2, 4), 3.0))
    with pytest.raises(RowsError, match="torch_relu_1"):
        with model.trace() as tracer:
            with tracer.invoke(a):
                model.source.torch_relu_1.output = torch.zeros(3, 4)
            with tracer.invoke(b):
                pass


def test_some_invokes_skip_an_operation(net, model):
    a, b = rows(1, 1), rows(2, 2)
    with model.trace() as tracer:
        with tracer.invoke(a):
            model.source.self_linear_0.skip(torch.ones(1, 4))
            one = model.output
        with tracer.invoke(b):
            two = model.output
    assert torch.equal(one, torch.full((1, 4), 3.0))
    torch.testing.assert_close(two, by_hand(net, b))


def test_blocks_of_one_class_have_operations_of_their_own():
    net = Two()
    model = NNsight(net)
    with model.trace(X):
        model.first.source.torch_relu_1.output = torch.ones(2, 4)
        first = model.first.output
        second = model.second.source.torch_relu_0.output
        out = model.output
    assert torch.equal(first, torch.full((2, 4), 3.0))
    assert torch.equal(second, torch.full((2, 4), 2.0))
    torch.testing.assert_close(out, by_hand(net.second, torch.full((2, 4), 2.0)))


def test_several_wrappers_of_one_module():
    net = Two()
    one, other = NNsight(net), NNsight(net)
    alone = NNsight(net.first)
    with one.trace(X):
        a = one.first.source.torch_relu_0.output
    with other.trace(X):
        b = other.first.source.torch_relu_0.output
        c = other.first.source.scale_0.source.torch_mul_0.output
    with alone.trace(X):
        d = alone.source.torch_relu_0.output
    assert torch.equal(a, b) and torch.equal(a, d) and torch.equal(a, torch.relu(X))
    torch.testing.assert_close(c, 2 * torch.relu(net.first.linear(torch.relu(X))))
    assert clean(net)


def test_wrappers_of_one_module_in_nested_traces():
    net = Two()
    one, other = NNsight(net), NNsight(net)
    with one.trace(X):
        a = one.first.source.torch_relu_0.output
        with other.trace(X * 2):
            b = other.first.source.torch_relu_0.output
            other.first.source.torch_relu_1.output = torch.zeros(2, 4)
            inner = other.first.output
        c = one.first.source.torch_relu_1.output
    assert torch.equal(a, torch.relu(X)) and torch.equal(b, torch.relu(X * 2))
    assert torch.equal(inner, torch.ones(2, 4))
    torch.testing.assert_close(c, torch.relu(net.first.linear(torch.relu(X))))


def test_operations_in_an_edit():
    net = Two()
    model = NNsight(net)
    with model.edit() as edited:
        model.first.source.torch_relu_1.output *= 0
    with edited.trace(X):
        first = edited.first.output
    assert torch.equal(first, torch.ones(2, 4))
    with model.trace(X):
        plain = model.first.output
    torch.testing.assert_close(plain, by_hand(net.first, X))


# -- forwards that are wrapped ---------------------------------------------------------------------------------------


def logged(function):
    @functools.wraps(function)
    def wrapper(*args, **kwargs):
        wrapper.calls += 1
        return function(*args, **kwargs)

    wrapper.calls = 0
    return wrapper


def plain_decorator(factor):
    def decorate(function):
        @functools.wraps(function)
        def wrapper(self, x):
            return function(self, x) * factor

        return wrapper

    return decorate


def test_a_decorated_forward():
    class Net(torch.nn.Module):
        @logged
        @plain_decorator(factor=3.0)
        @torch.no_grad()
        def forward(self, x):
            return torch.sin(x)

    net = Net()
    model = NNsight(net)
    with model.trace(X):
        inner = model.source.torch_sin_0.output
        model.source.torch_sin_0.output = inner + 1
        out = model.output
    torch.testing.assert_close(inner, torch.sin(X))
    torch.testing.assert_close(out, (torch.sin(X) + 1) * 3)
    torch.testing.assert_close(net(X), torch.sin(X) * 3)


def accelerate_like(module):
    """Wrap a module's forward on the instance, as accelerate does: the old one is kept and looked up at each call."""
    old = module.forward
    module._old_forward = old

    def new_forward(module, *args, **kwargs):
        with torch.no_grad():
            output = module._old_forward(*args, **kwargs)
        return output + 100

    module.forward = functools.update_wrapper(functools.partial(new_forward, module), old)


def closure_like(module):
    """Wrap a module's forward on the instance by a closure, as PEFT and others do."""
    old = module.forward

    @functools.wraps(old)
    def forward(*args, **kwargs):
        return old(*args, **kwargs) + 100

    module.forward = forward


def method_like(module):
    """Put a function on the instance as a method of its own."""
    old = type(module).forward

    @functools.wraps(old)
    def forward(self, x):
        return old(self, x) + 100

    module.forward = types.MethodType(forward, module)


@pytest.mark.parametrize("put_on", [accelerate_like, closure_like, method_like])
@pytest.mark.parametrize("when", ["before", "after wrapping", "after opening"])
def test_a_forward_put_on_the_instance(put_on, when):
    net = Two()
    model = None
    if when == "before":
        put_on(net.first)
    model = NNsight(net)
    if when == "after wrapping":
        put_on(net.first)
    elif when == "after opening":
        with model.trace(X):
            model.first.source.torch_relu_1.output
        put_on(net.first)
    on_instance = net.first.forward
    held = net.first.__dict__.get("_old_forward")
    want = net(X)
    with model.trace(X):
        inner = model.first.source.torch_relu_1.output
        first = model.first.output
        out = model.output
    plain = torch.relu(net.first.linear(torch.relu(X)))
    torch.testing.assert_close(inner, plain)
    torch.testing.assert_close(first, plain * 2 + 1 + 100)
    torch.testing.assert_close(out, want)
    with model.trace(X):
        model.first.source.torch_relu_1.output = torch.zeros(2, 4)
        first = model.first.output
    torch.testing.assert_close(first, torch.full((2, 4), 101.0))
    assert net.first.forward is on_instance
    assert net.first.__dict__.get("_old_forward") is held
    torch.testing.assert_close(net(X), want)


def test_a_forward_taken_off_the_instance_again():
    net = Two()
    model = NNsight(net)
    accelerate_like(net.first)
    with model.trace(X):
        model.first.source.torch_relu_1.output
    del net.first.forward
    del net.first._old_forward
    with model.trace(X):
        inner = model.first.source.torch_relu_1.output
        first = model.first.output
    torch.testing.assert_close(first, inner * 2 + 1)


def test_errors_leave_opened_forwards_as_they_were():
    net = Two()
    accelerate_like(net.first)
    on_instance, held = net.first.forward, net.first._old_forward
    model = NNsight(net)
    with pytest.raises(ZeroDivisionError):
        with model.trace(X):
            model.first.source.torch_relu_0.output
            1 / 0
    with pytest.raises(RuntimeError):
        with model.trace(X):
            model.first.source.torch_relu_0.output = torch.zeros(2, 9)
            model.output
    assert net.first.forward is on_instance and net.first._old_forward is held
    with model.trace(X):
        out = model.output
    torch.testing.assert_close(out, net(X))


def test_errors_of_operations_share_the_root():
    assert issubclass(SourceError, NNsightError) and issubclass(SourceError, RuntimeError)


def test_the_operations_of_a_function_are_those_of_source() -> None:
    class Doubles(torch.nn.Module):
        def forward(self, x):
            return torch.relu(x).mul(2) + torch.relu(-x)

    found = operations_of(Doubles().forward)
    assert [operation.name for operation in found] == [operation.name for operation in NNsight(Doubles()).source]
    lines, start = inspect.getsourcelines(Doubles.forward)
    assert [operation.callee.split(".")[-1] in lines[operation.lineno - start] for operation in found] == [True] * 3


class _Inside(torch.nn.Module):
    """Calls a function, and one module that others hold too, between two of its own."""

    def __init__(self, shared):
        super().__init__()
        self.first = torch.nn.Linear(3, 3)
        self.shared = shared
        self.second = torch.nn.Linear(3, 3)

    def forward(self, x):
        return self.second(self.shared(torch.tanh(self.first(x))))


class _Layer(torch.nn.Module):
    def __init__(self, shared):
        super().__init__()
        self.inside = _Inside(shared)

    def forward(self, x):
        return x + self.inside(x)


@pytest.mark.parametrize("where", ["operation", "shared module"])
def test_what_comes_after_a_value_inside_a_forward_is_given_in_every_trace(where):
    shared = torch.nn.Softplus()
    net = torch.nn.Sequential(*(_Layer(shared) for _ in range(3)))
    model = NNsight(net)
    x = torch.ones(1, 3)
    inside = net[0].inside
    wanted = shared(torch.tanh(inside.first(x)))
    for _ in range(3):  # the first run of a tree counts all visits, and those after it only what they are asked for
        with model.trace(x):
            if where == "operation":
                model[0].inside.source.torch_tanh_0.output
            else:
                model[0].inside.shared.output
            given = model[0].inside.second.input.save()
        torch.testing.assert_close(given, wanted)
