"""A trace with an input: what its block can read, change and call, and how it may be left."""

from __future__ import annotations

import asyncio
import contextlib
import copy
from typing import Any

import pytest
import torch
from core_toys import Hooked, Recurrent, Toy, TupleModel, rows, seeded
from torch import nn

from nnsight import MissedProviderError, NNsight, NNsightError, NoInputError, NoTraceError, OutOfOrderError


@pytest.fixture
def net() -> Toy:
    return seeded(Toy)


@pytest.fixture
def model(net: Toy) -> Any:
    return NNsight(net)


def untouched(net: nn.Module) -> bool:
    return not any("forward" in module.__dict__ for module in net.modules())


# -- inputs ----------------------------------------------------------------------------------------------------------


def test_a_positional_input(model: Any, net: Toy) -> None:
    with model.trace(rows()):
        out = model.output
    assert torch.equal(out, net(rows()))


def test_several_positional_inputs(model: Any, net: Toy) -> None:
    with model.trace(rows(), 0.5):
        args, kwargs = model.inputs
        out = model.output
    assert torch.equal(out, net(rows(), 0.5)) and args[1] == 0.5 and kwargs == {}


def test_keyword_inputs_alone(model: Any, net: Toy) -> None:
    with model.trace(x=rows(), scale=0.5):
        args, kwargs = model.inputs
        first = model.input
        out = model.output
    assert torch.equal(out, net(rows(), 0.5)) and args == () and list(kwargs) == ["x", "scale"]
    assert torch.equal(first, rows())


def test_a_keyword_only_forward() -> None:
    class Only(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(4, 4)

        def forward(self, *, x: torch.Tensor) -> torch.Tensor:
            return self.inner(x)

    net = seeded(Only)
    model = NNsight(net)
    with model.trace(x=rows()):
        model.input = model.input * 2
        out = model.output
    assert torch.equal(out, net(x=rows() * 2))


def test_an_input_that_is_no_tensor() -> None:
    class Length(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(1, 1)

        def forward(self, words: list[str], kind: dict[str, Any]) -> torch.Tensor:
            return self.inner(torch.tensor([[float(len(words) + kind["more"])]]))

    net = seeded(Length)
    model = NNsight(net)
    with model.trace(["a", "b"], {"more": 3}):
        given = model.inner.input
    assert given.item() == 5


def test_the_input_is_passed_as_it_is(model: Any) -> None:
    x = rows()
    with model.trace(x):
        given = model.input
    assert given is x


def test_without_input_or_invoke_is_an_error(model: Any, net: Toy) -> None:
    with pytest.raises(NoInputError, match=r"with model\.trace\(input\)"), model.trace():
        pass
    with pytest.raises(NoInputError, match="model.head"), model.trace():
        model.head.output
    assert untouched(net)


def test_a_block_that_asks_for_nothing_runs_the_model(model: Any, net: Toy) -> None:
    seen = []
    net.head.register_forward_hook(lambda module, args, output: seen.append(output))
    with model.trace(rows()):
        assert not seen
    assert torch.equal(seen[0], net(rows()))


def test_a_trace_can_be_entered_once(model: Any) -> None:
    trace = model.trace(rows())
    with trace:
        pass
    with pytest.raises(NoTraceError, match="once"), trace:
        pass


# -- reading ---------------------------------------------------------------------------------------------------------


def test_outputs_and_inputs_are_the_values_themselves(model: Any, net: Toy) -> None:
    hooked = Hooked(net, rows())
    with model.trace(rows()):
        embedded = model.embed.output
        args, kwargs = model.layers[0].inputs
        attn_in = model.layers[0].attn.input
        attn = model.layers[0].attn.output
        block = model.layers[0].output
        head = model.head.output
        out = model.output
    assert args[0] is embedded is attn_in and kwargs == {"scale": 1.0}
    assert head is out
    for value, path in ((embedded, "embed"), (attn, "layers.0.attn"), (block, "layers.0"), (head, "head")):
        assert torch.equal(value, hooked[path])


def test_a_value_can_be_read_again_while_the_model_stands_there(model: Any) -> None:
    with model.trace(rows()):
        one = model.layers[0].output
        other = model.layers[0].output
    assert one is other


def test_a_passed_site_is_an_error_at_that_line(model: Any, net: Toy) -> None:
    caught = None
    with model.trace(rows()):
        late = model.layers[2].output
        try:
            model.layers[0].output
        except OutOfOrderError as error:
            caught = str(error)
        out = model.output
    assert caught is not None and "`model.layers.0.output`" in caught and "`model.layers.2.output`" in caught
    assert torch.equal(out, net(rows()))


class Embedded(nn.Module):
    """Calls a module that another holds, before that other and its neighbour."""

    def __init__(self) -> None:
        super().__init__()
        self.stack = nn.Module()
        self.stack.embed, self.stack.lin = nn.Linear(4, 4), nn.Linear(4, 4)
        self.stack.forward = lambda x: self.stack.lin(x)
        self.side = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.side(self.stack(self.stack.embed(x)))


def test_after_a_module_that_is_called_from_elsewhere_come_those_that_the_caller_calls_next() -> None:
    net = nn.Sequential(Embedded(), nn.Linear(4, 4)).eval()
    inner = net[0]
    x = torch.rand(2, 4)
    embedded = inner.stack.embed(x)
    stacked = inner.stack.lin(embedded)
    model = NNsight(net)
    with model.trace(x):  # the first run learns who calls what
        pass
    for _ in range(2):
        with model.trace(x):
            embed = model[0].stack.embed.output
            stack = model[0].stack.input
            lin = model[0].stack.lin.output
            side = model[0].side.output
        assert torch.equal(embed, embedded) and torch.equal(stack, embedded)
        assert torch.equal(lin, stacked) and torch.equal(side, inner.side(stacked))
    with model.trace(x):
        embed = model[0].stack.embed.output
        side = model[0].side.output
    assert torch.equal(side, inner.side(stacked))
    with pytest.raises(OutOfOrderError, match=r"model\.0\.stack\.embed\.output"), model.trace(x):
        side = model[0].side.output
        embed = model[0].stack.embed.output


def test_a_site_that_never_comes_is_an_error_at_that_line(model: Any, net: Toy) -> None:
    net.add_module("unused", nn.Linear(2, 2))
    with pytest.raises(MissedProviderError, match=r"`model\.unused\.output` never came"), model.trace(rows()):
        model.unused.output
    assert untouched(net)


def test_a_loop_over_layers(model: Any, net: Toy) -> None:
    hooked = Hooked(net, rows())
    with model.trace(rows()):
        values = [layer.output for layer in model.layers]
    assert all(torch.equal(value, hooked[f"layers.{i}"]) for i, value in enumerate(values))


def test_a_conditional_decides_on_the_real_value(model: Any, net: Toy) -> None:
    for threshold in (-1e9, 1e9):
        with model.trace(rows()):
            if model.layers[0].output.sum() > threshold:
                model.layers[2].output = torch.zeros(2, 8)
            out = model.output
        edits = {"layers.2": torch.zeros_like} if threshold < 0 else {}
        assert torch.equal(out, Hooked(net, rows(), edits=edits).result)


def test_a_tuple_is_given_as_it_is() -> None:
    net = seeded(TupleModel)
    model = NNsight(net)
    with model.trace(rows()):
        pair = model.pair.output
    hooked = Hooked(net, rows())
    assert type(pair) is tuple and all(torch.equal(a, b) for a, b in zip(pair, hooked["pair"]))


def test_the_result_is_what_the_call_returned(model: Any, net: Toy) -> None:
    with model.trace(rows()) as tracer:
        early = model.layers[0].output
        result = tracer.result
    assert torch.equal(result, net(rows()))


def test_the_result_can_be_asked_for_alone(model: Any, net: Toy) -> None:
    with model.trace(rows()) as tracer:
        result = tracer.result
    assert torch.equal(result, net(rows()))


def test_after_the_result_nothing_else_comes(model: Any) -> None:
    with pytest.raises(OutOfOrderError, match="model.head.output"), model.trace(rows()) as tracer:
        tracer.result
        model.head.output


def test_outside_a_block_nothing_is_given(model: Any) -> None:
    with pytest.raises(NoTraceError, match="outside any trace"):
        model.output
    with pytest.raises(NoTraceError):
        model.layers[0].output = torch.zeros(2, 8)
    with model.trace(rows()) as tracer:
        model.output
    with pytest.raises(NoTraceError):
        tracer.result
    with pytest.raises(NoTraceError):
        tracer.stop()


# -- writing ---------------------------------------------------------------------------------------------------------


def test_assigning_an_output_replaces_it(model: Any, net: Toy) -> None:
    with model.trace(rows()):
        model.layers[1].output = torch.ones(2, 8)
        seen = model.layers[2].input
        out = model.output
    assert torch.equal(seen, torch.ones(2, 8))
    assert torch.equal(out, Hooked(net, rows(), edits={"layers.1": torch.ones_like}).result)


def test_what_was_assigned_is_read(model: Any) -> None:
    new = torch.ones(2, 8)
    with model.trace(rows()):
        model.layers[1].output = new
        again = model.layers[1].output
    assert again is new


def test_an_edit_in_place(model: Any, net: Toy) -> None:
    def edit(value: torch.Tensor) -> torch.Tensor:
        value[:, 3] = 9
        return value

    with model.trace(rows()):
        model.layers[1].mlp.output[:, 3] = 9
        out = model.output
    assert torch.equal(out, Hooked(net, rows(), edits={"layers.1.mlp": edit}).result)


def test_augmented_assignment(model: Any, net: Toy) -> None:
    with model.trace(rows()), torch.no_grad():
        model.layers[1].output += 2
        out = model.output
    assert torch.equal(out, Hooked(net, rows(), edits={"layers.1": lambda value: value + 2}).result)


def test_assigning_the_first_input_keeps_the_others(model: Any, net: Toy) -> None:
    with model.trace(rows(), scale=0.5):
        model.layers[0].input = torch.ones(2, 8)
        args, kwargs = model.layers[0].inputs
        value = model.layers[0].output
    assert torch.equal(value, net.layers[0](torch.ones(2, 8), scale=0.5)) and kwargs == {"scale": 0.5}


def test_assigning_all_inputs(model: Any, net: Toy) -> None:
    with model.trace(rows()):
        model.layers[0].inputs = ((torch.ones(2, 8),), {"scale": 3.0})
        value = model.layers[0].output
    assert torch.equal(value, net.layers[0](torch.ones(2, 8), scale=3.0))


def test_the_input_of_the_model_and_its_output_can_be_replaced(model: Any, net: Toy) -> None:
    with model.trace(rows()) as tracer:
        model.input = model.input + 1
        model.output = model.output * 2
        result = tracer.result
    assert torch.equal(result, net(rows() + 1) * 2)


def test_the_result_can_be_replaced(net: Toy) -> None:
    model = NNsight(net)
    with model.edit(inplace=True):
        model.output = model.output * 0
    assert not model.trace(rows(), trace=False).any()
    model.clear_edits()
    with model.trace(rows()) as tracer:
        tracer.result = tracer.result + 1
        result = tracer.result
    assert torch.equal(result, net(rows()) + 1)


def test_a_tuple_can_be_replaced_or_its_parts_edited() -> None:
    net = seeded(TupleModel)
    model = NNsight(net)
    x = rows()
    with model.trace(x):
        left, right = model.pair.output
        model.pair.output = (right, left)
        out = model.output
    assert torch.equal(out, Hooked(net, x, edits={"pair": lambda value: (value[1], value[0])}).result)
    with model.trace(x):
        model.pair.output[1][:] = 0
        out = model.output
    assert torch.equal(out, Hooked(net, x, edits={"pair": lambda value: (value[0], value[1] * 0)}).result)


def test_a_module_without_arguments_has_no_input_to_replace() -> None:
    class Constant(nn.Module):
        def forward(self) -> torch.Tensor:
            return torch.ones(2, 4)

    class Uses(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.constant = Constant()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + self.constant()

    model = NNsight(Uses())
    with model.trace(rows()):
        nothing = model.constant.input
        with pytest.raises(ValueError, match=r"model\.constant"):
            model.constant.input = rows()
        out = model.output
    assert nothing is None and torch.equal(out, rows() + 1)


def test_another_shape_is_taken_when_the_trace_has_one_input(model: Any, net: Toy) -> None:
    with model.trace(rows()):
        model.layers[2].output = torch.ones(7, 8)
        out = model.output
    assert torch.equal(out, net.head(net.ln(torch.ones(7, 8))))


# -- what else a block can do ----------------------------------------------------------------------------------------


def test_log_prints(model: Any, capsys: pytest.CaptureFixture[str]) -> None:
    with model.trace(rows()) as tracer:
        tracer.log("shape", tuple(model.layers[0].output.shape))
    assert capsys.readouterr().out == "shape (2, 8)\n"


def test_stop_ends_the_run(model: Any, net: Toy) -> None:
    ran = []
    for name in ("ln", "head"):
        net.get_submodule(name).register_forward_hook(lambda *_, name=name: ran.append(name))
    after = False
    with model.trace(rows()) as tracer:
        value = model.layers[0].output
        tracer.stop()
        after = True
    assert not after and not ran and untouched(net)
    assert torch.equal(value, net.layers[0](net.embed(rows())))


def test_stop_before_the_model_began(model: Any, net: Toy) -> None:
    ran = []
    net.register_forward_hook(lambda *_: ran.append(1))
    with model.trace(rows()) as tracer:
        tracer.stop()
    assert not ran


def test_modules_can_be_called_by_hand(model: Any, net: Toy) -> None:
    with model.trace(rows()):
        lenses = [model.head(model.ln(layer.output)) for layer in model.layers]
        out = model.output
    hooked = Hooked(net, rows())
    for i, lens in enumerate(lenses):
        assert torch.equal(lens, net.head(net.ln(hooked[f"layers.{i}"])))
    assert torch.equal(lenses[-1], out) and torch.equal(out, hooked.result)


def test_a_call_by_hand_is_no_visit_of_the_run(model: Any, net: Toy) -> None:
    with model.trace(rows()):
        h = model.layers[0].output
        by_hand = model.head(model.ln(h))
        value = model.head.output
    assert torch.equal(value, net(rows())) and not torch.equal(by_hand, value)


def test_the_torch_module_may_be_called_by_hand_too(model: Any, net: Toy) -> None:
    with model.trace(rows()):
        h = model.layers[0].output
        by_hand = net.head(net.ln(h))
        value = model.head.output
    assert torch.equal(value, net(rows()))
    assert torch.equal(by_hand, net.head(net.ln(Hooked(net, rows())["layers.0"])))


def test_the_whole_model_may_be_called_by_hand(model: Any, net: Toy) -> None:
    with model.trace(rows()):
        model.layers[0].output[:] = 0
        other = model(rows(seed=5))
        out = model.output
    assert torch.equal(other, net(rows(seed=5)))
    assert torch.equal(out, Hooked(net, rows(), edits={"layers.0": torch.zeros_like}).result)


def test_trace_false_calls_at_once(model: Any, net: Toy) -> None:
    assert torch.equal(model.trace(rows(), trace=False), net(rows()))
    assert torch.equal(model.trace(rows(), scale=0.5, trace=False), net(rows(), 0.5))
    assert untouched(net)


# -- other methods, parts --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fn", ["twice", Toy.twice.__get__])
def test_another_method_than_forward(model: Any, net: Toy, fn: Any) -> None:
    if not isinstance(fn, str):
        fn = fn(net)
    values = []
    with model.trace(rows(), fn=fn) as tracer:
        for _ in tracer.iter[:2]:
            values.append(model.layers[0].output)
        result = tracer.result
    assert torch.equal(result, net.twice(rows()))
    assert torch.equal(values[0], Hooked(net, rows())["layers.0"])
    assert torch.equal(values[1], Hooked(net, rows() * 2)["layers.0"])


def test_a_bound_method_is_a_context_at_the_head_of_a_with(model: Any, net: Toy) -> None:
    with model.twice(rows()) as tracer:
        model.layers[0].output[:] = 0
        result = tracer.result
    first = Hooked(net, rows(), edits={"layers.0": torch.zeros_like}).result
    assert torch.equal(result, first + net(rows() * 2))
    assert torch.equal(model.twice(rows()), net.twice(rows()))


def test_a_bound_method_of_a_part_is_a_context_too() -> None:
    net = nn.Sequential(seeded(Toy))
    model = NNsight(net)
    with model[0].twice(rows()) as tracer:
        value = model[0].embed.output
        result = tracer.result
    assert torch.equal(result, net[0].twice(rows())) and torch.equal(value, net[0].embed(rows()))


def test_the_forward_by_name_is_the_forward(model: Any, net: Toy) -> None:
    seen = []
    net.register_forward_hook(lambda module, args, output: seen.append(output))
    with model.trace(rows(), fn="forward"):
        named = model.output
    with model.forward(rows()):
        bound = model.output
    assert torch.equal(named, net(rows())) and torch.equal(bound, named) and seen[0] is named and seen[1] is bound


def test_a_part_can_be_traced_alone(model: Any, net: Toy) -> None:
    h = torch.ones(2, 8)
    ran = []
    net.head.register_forward_hook(lambda *_: ran.append(1))
    with model.layers[1].trace(h, scale=2.0) as tracer:
        attn = model.layers[1].attn.output
        out = model.layers[1].output
        result = tracer.result
    assert torch.equal(attn, net.layers[1].attn(h)) and torch.equal(out, net.layers[1](h, scale=2.0)) and result is out
    assert not ran and tracer.model is model.layers[1]


def test_a_part_traced_alone_serves_only_itself(model: Any) -> None:
    with pytest.raises(NoTraceError, match=r"`model\.head`.*does not belong"), model.layers[1].trace(torch.ones(2, 8)):
        model.head.output


# -- traces within traces --------------------------------------------------------------------------------------------


def test_a_trace_of_another_model_inside(model: Any, net: Toy) -> None:
    other_net = copy.deepcopy(net)
    other = NNsight(other_net)
    with model.trace(rows()):
        mine = model.layers[0].output
        with other.trace(rows(seed=7)):
            other.layers[1].output = mine
            theirs = other.output
            both = model.layers[1].output  # the outer run goes on from inside
        out = model.output
    hooked = Hooked(net, rows())
    assert torch.equal(theirs, Hooked(other_net, rows(seed=7), edits={"layers.1": lambda _: hooked["layers.0"]}).result)
    assert torch.equal(both, hooked["layers.1"]) and torch.equal(out, hooked.result)


def test_a_trace_of_the_same_model_inside(model: Any, net: Toy) -> None:
    with model.trace(rows()):
        mine = model.layers[0].output
        with model.trace(rows(seed=7)):
            model.layers[0].output[:] = 0
            inner = model.output
        model.layers[1].output = model.layers[1].output * 2
        out = model.output
    assert torch.equal(inner, Hooked(net, rows(seed=7), edits={"layers.0": torch.zeros_like}).result)
    assert torch.equal(out, Hooked(net, rows(), edits={"layers.1": lambda value: value * 2}).result)
    assert untouched(net)


def test_three_deep(model: Any, net: Toy) -> None:
    with model.trace(rows(seed=1)):
        a = model.layers[0].output
        with model.trace(rows(seed=2)):
            b = model.layers[0].output
            with model.trace(rows(seed=3)):
                c = model.layers[0].output
                c_out = model.output
            b_out = model.output
        a_out = model.output
    for seed, value, out in ((1, a, a_out), (2, b, b_out), (3, c, c_out)):
        hooked = Hooked(net, rows(seed=seed))
        assert torch.equal(value, hooked["layers.0"]) and torch.equal(out, hooked.result)


def test_an_error_inside_an_inner_trace_leaves_the_outer_one_alone(model: Any, net: Toy) -> None:
    with model.trace(rows()):
        model.layers[0].output
        with pytest.raises(ZeroDivisionError), model.trace(rows()):
            model.layers[1].output
            1 / 0
        out = model.output
    assert torch.equal(out, net(rows())) and untouched(net)


def test_stop_of_the_outer_run_inside_an_inner_trace(model: Any, net: Toy) -> None:
    after = []
    with model.trace(rows()) as outer:
        model.layers[0].output
        with model.trace(rows()):
            model.layers[1].output
            outer.stop()
            after.append("inner")
        after.append("outer")
    assert after == [] and untouched(net)


def test_sub_traces_in_functions(model: Any, net: Toy) -> None:
    def read(seed: int) -> torch.Tensor:
        with model.trace(rows(seed=seed)):
            return model.layers[1].output

    with model.trace(rows()):
        mine = model.layers[0].output
        given = read(4)
        model.layers[1].output = given
        out = model.output
    value = Hooked(net, rows(seed=4))["layers.1"]
    assert torch.equal(given, value)
    assert torch.equal(out, Hooked(net, rows(), edits={"layers.1": lambda _: value}).result)


def test_a_function_reads_and_writes_in_the_trace_of_its_caller(model: Any, net: Toy) -> None:
    def double(layer: Any) -> torch.Tensor:
        layer.output = layer.output * 2
        return layer.output

    with model.trace(rows()):
        double(model.layers[0])
        out = model.output
    assert torch.equal(out, Hooked(net, rows(), edits={"layers.0": lambda value: value * 2}).result)


# -- contexts around a trace -----------------------------------------------------------------------------------------


def test_a_trace_on_an_exit_stack(model: Any, net: Toy) -> None:
    with contextlib.ExitStack() as stack:
        stack.enter_context(model.trace(rows()))
        model.layers[0].output[:] = 0
        out = model.output
    assert torch.equal(out, Hooked(net, rows(), edits={"layers.0": torch.zeros_like}).result)
    assert untouched(net)


def test_a_context_manager_made_from_a_generator(model: Any, net: Toy) -> None:
    @contextlib.contextmanager
    def zeroed(x: torch.Tensor) -> Any:
        with model.trace(x) as tracer:
            model.layers[0].output[:] = 0
            yield tracer
            outs.append(model.output)

    outs: list[torch.Tensor] = []
    with zeroed(rows()):
        value = model.layers[1].output
    hooked = Hooked(net, rows(), edits={"layers.0": torch.zeros_like})
    assert torch.equal(value, hooked["layers.1"]) and torch.equal(outs[0], hooked.result)


def test_other_contexts_in_the_same_with(model: Any, net: Toy) -> None:
    with torch.no_grad(), model.trace(rows()) as tracer, contextlib.suppress(KeyError):
        out = tracer.result
        {}["missing"]
    assert torch.equal(out, net(rows())) and not out.requires_grad


def test_the_contexts_are_entered_by_hand(model: Any, net: Toy) -> None:
    tracer = model.trace(rows())
    tracer.__enter__()
    out = model.output
    tracer.__exit__(None, None, None)
    assert torch.equal(out, net(rows())) and untouched(net)


# -- ways to leave a block -------------------------------------------------------------------------------------------


def test_leaving_by_return(model: Any, net: Toy) -> None:
    def read() -> torch.Tensor:
        with model.trace(rows()):
            model.layers[0].output[:] = 0
            return model.output

    assert torch.equal(read(), Hooked(net, rows(), edits={"layers.0": torch.zeros_like}).result)
    assert untouched(net)


def test_leaving_by_return_lets_the_model_run_to_its_end(model: Any, net: Toy) -> None:
    ends = []
    net.register_forward_hook(lambda module, args, output: ends.append(output))

    def read() -> torch.Tensor:
        with model.trace(rows()):
            return model.layers[0].output

    read()
    assert torch.equal(ends[0], net(rows()))


@pytest.mark.parametrize("way", ["break", "continue"])
def test_leaving_by_break_and_continue(model: Any, net: Toy, way: str) -> None:
    ends: list[Any] = []
    handle = net.register_forward_hook(lambda module, args, output: ends.append(output))
    values = []
    for seed in (1, 2):
        with model.trace(rows(seed=seed)):
            values.append(model.layers[0].output)
            if way == "break":
                break
            else:
                continue
    handle.remove()
    assert len(values) == len(ends) == (1 if way == "break" else 2)
    assert all(torch.equal(end, net(rows(seed=i + 1))) for i, end in enumerate(ends)) and untouched(net)


def test_a_generator_yields_from_a_block(model: Any, net: Toy) -> None:
    def layers() -> Any:
        with model.trace(rows()):
            for layer in model.layers:
                yield layer.output

    hooked = Hooked(net, rows())
    assert all(torch.equal(value, hooked[f"layers.{i}"]) for i, value in enumerate(layers()))
    assert untouched(net)


def test_two_generators_take_turns(model: Any, net: Toy) -> None:
    def layers(seed: int) -> Any:
        with model.trace(rows(seed=seed)):
            for layer in model.layers:
                yield layer.output
            yield model.output

    hooked = [Hooked(net, rows(seed=seed)) for seed in (1, 2)]
    for i, (one, other) in enumerate(zip(layers(1), layers(2))):
        for value, run in ((one, hooked[0]), (other, hooked[1])):
            assert torch.equal(value, run[f"layers.{i}"] if i < 3 else run.result)


def test_a_context_manager_around_a_generator_keeps_them_apart(model: Any, net: Toy) -> None:
    @contextlib.contextmanager
    def zeroed(seed: int) -> Any:
        with model.trace(rows(seed=seed)):
            model.layers[0].output[:] = 0
            yield

    def layers() -> Any:
        with model.trace(rows(seed=3)):
            for layer in model.layers:
                yield layer.output

    walk = layers()
    plain = [next(walk)]
    with zeroed(4):
        inner = model.layers[1].output
        plain.append(next(walk))
        inner_out = model.output
    plain.append(next(walk))
    hooked = Hooked(net, rows(seed=4), edits={"layers.0": torch.zeros_like})
    assert torch.equal(inner, hooked["layers.1"]) and torch.equal(inner_out, hooked.result)
    other = Hooked(net, rows(seed=3))
    assert all(torch.equal(value, other[f"layers.{i}"]) for i, value in enumerate(plain))
    walk.close()


def test_a_generator_that_is_dropped_leaves_the_model_usable(model: Any, net: Toy) -> None:
    def layers() -> Any:
        with model.trace(rows()):
            for layer in model.layers:
                yield layer.output

    walk = layers()
    next(walk)
    walk.close()
    assert untouched(net)
    walk = layers()
    next(walk)
    del walk
    assert untouched(net)
    assert torch.equal(model(rows()), net(rows()))
    with pytest.raises(NoTraceError):
        model.output


def test_an_async_function_awaits_inside_a_block(model: Any, net: Toy) -> None:
    async def read(seed: int, turn: asyncio.Event, other: asyncio.Event) -> torch.Tensor:
        with model.trace(rows(seed=seed)):
            first = model.layers[0].output
            other.set()
            await turn.wait()
            model.layers[1].output = first
            return model.output

    async def both() -> list[torch.Tensor]:
        one, other = asyncio.Event(), asyncio.Event()
        return list(await asyncio.gather(read(1, one, other), read(2, other, one)))

    for seed, out in zip((1, 2), asyncio.run(both())):
        first = Hooked(net, rows(seed=seed))["layers.0"]
        assert torch.equal(out, Hooked(net, rows(seed=seed), edits={"layers.1": lambda _, first=first: first}).result)
    assert untouched(net)


def test_an_async_generator(model: Any, net: Toy) -> None:
    async def layers() -> Any:
        with model.trace(rows()):
            for layer in model.layers:
                await asyncio.sleep(0)
                yield layer.output

    async def collect() -> list[torch.Tensor]:
        return [value async for value in layers()]

    hooked = Hooked(net, rows())
    assert all(torch.equal(value, hooked[f"layers.{i}"]) for i, value in enumerate(asyncio.run(collect())))


def test_a_lambda_and_a_comprehension(model: Any, net: Toy) -> None:
    with model.trace(rows()):
        read = lambda layer: layer.output.sum()  # noqa: E731
        sums = {i: read(layer) for i, layer in enumerate(model.layers)}
    hooked = Hooked(net, rows())
    assert all(torch.equal(value, hooked[f"layers.{i}"].sum()) for i, value in sums.items())


def test_an_error_of_the_block_is_the_users_own(model: Any, net: Toy) -> None:
    class Mine(Exception):
        pass

    mine = Mine("as it was")
    with pytest.raises(Mine) as caught, model.trace(rows()):
        model.layers[0].output
        raise mine
    assert caught.value is mine and untouched(net)
    with pytest.raises(Mine) as caught, model.trace(rows()):
        raise mine
    assert caught.value is mine


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit, GeneratorExit])
def test_what_is_no_exception_leaves_the_model_usable_too(model: Any, net: Toy, kind: type[BaseException]) -> None:
    with pytest.raises(kind), model.trace(rows()):
        model.layers[0].output
        raise kind
    assert untouched(net)
    with model.trace(rows()):
        out = model.output
    assert torch.equal(out, net(rows()))


def test_an_error_of_the_model_comes_out_at_the_line_that_waited(model: Any, net: Toy) -> None:
    caught = None
    with pytest.raises(RuntimeError), model.trace(rows()):
        model.layers[1].input = torch.ones(2, 3)
        try:
            model.layers[1].output
        except RuntimeError as error:
            caught = error
            raise
    assert caught is not None and not isinstance(caught, NNsightError) and untouched(net)


def test_an_error_of_the_model_after_the_block_comes_out_of_it(model: Any, net: Toy) -> None:
    with pytest.raises(RuntimeError), model.trace(rows()):
        model.layers[1].output = torch.ones(2, 3)
    assert untouched(net)


def test_an_error_of_the_model_can_be_handled_in_the_block(model: Any, net: Toy) -> None:
    with model.trace(rows()):
        model.layers[1].output = torch.ones(2, 3)
        try:
            model.layers[2].output
        except RuntimeError:
            handled = True
    assert handled and untouched(net)


def test_many_traces_leave_nothing_behind(model: Any, net: Toy) -> None:
    want = net(rows())
    for _ in range(50):
        with model.trace(rows()):
            out = model.output
    assert torch.equal(out, want) and untouched(net)


# -- visits ----------------------------------------------------------------------------------------------------------


def test_the_first_visit_is_meant_without_a_loop() -> None:
    net = seeded(Recurrent)
    model = NNsight(net)
    with model.trace(rows()):
        value = model.cell.output
        with pytest.raises(OutOfOrderError):
            model.cell.input
        out = model.output
    assert torch.equal(value, net.cell(rows())) and torch.equal(out, net(rows()))
