"""Invokes: several inputs in one forward, each with a body of its own."""

from __future__ import annotations

import contextlib

import pytest
import torch
from hooked import Stack, by_hooks, untouched

from nnsight import (
    InvokeError,
    MissedProviderError,
    NNsight,
    NoInputError,
    NoTraceError,
    OutOfOrderError,
    RowsError,
    SourceError,
)


@pytest.fixture
def net():
    return Stack()


@pytest.fixture
def model(net):
    return NNsight(net)


def rows(count, seed=0, width=4):
    return torch.rand(count, width, generator=torch.Generator().manual_seed(seed))


# -- who gets what ---------------------------------------------------------------------------------------------------


def test_one_invoke_equals_a_trace_with_the_input(net, model):
    x = rows(2)
    with model.trace() as tracer:
        with tracer.invoke(x):
            hidden = model.layers[1].output
            out = model.output
    want = by_hooks(net, x, reads=["layers.1"])
    assert torch.equal(hidden, want["layers.1"])
    assert torch.equal(out, want.result)


def test_each_invoke_gets_its_own_rows(net, model):
    a, b, c = rows(1, 1), rows(3, 2), rows(2, 3)
    with model.trace() as tracer:
        with tracer.invoke(a):
            one = model.layers[0].output
            one_in = model.layers[2].input
            one_out = model.output
        with tracer.invoke(b):
            two = model.layers[0].output
            two_in = model.layers[2].input
            two_out = model.output
        with tracer.invoke(c):
            three = model.layers[0].output
            three_out = model.output
    for x, hidden, out in ((a, one, one_out), (b, two, two_out), (c, three, three_out)):
        want = by_hooks(net, x, reads=["layers.0"])
        torch.testing.assert_close(hidden, want["layers.0"])
        torch.testing.assert_close(out, want.result)
    for x, given in ((a, one_in), (b, two_in)):
        torch.testing.assert_close(given, by_hooks(net, x, reads=["layers.2"]).inputs["layers.2"][0][0])


def test_the_model_runs_once_for_all_invokes(net, model):
    calls = []
    net.head.register_forward_pre_hook(lambda module, given: calls.append(given[0].shape))
    with model.trace() as tracer:
        for seed in range(3):
            with tracer.invoke(rows(2, seed)):
                model.output
    assert calls == [(6, 4)]


def test_an_invoke_without_input_sees_the_whole_batch(net, model):
    a, b = rows(1, 1), rows(2, 2)
    with model.trace() as tracer:
        with tracer.invoke(a):
            one = model.output
        with tracer.invoke():
            whole = model.output
            given = model.layers[1]
        with tracer.invoke(b):
            two = model.output
        with tracer.invoke():
            again = model.output
    want = net(torch.cat([a, b]))
    assert torch.equal(whole, want) and torch.equal(again, want)
    assert torch.equal(torch.cat([one, two]), want)
    assert given is model.layers[1]


def test_an_invoke_without_input_edits_the_whole_batch(net, model):
    a, b = rows(1, 1), rows(2, 2)
    with model.trace() as tracer:
        with tracer.invoke(a):
            one = model.output
        with tracer.invoke(b):
            two = model.output
        with tracer.invoke():
            model.layers[1].output *= -1
    want = by_hooks(net, torch.cat([a, b]), edits={"layers.1": lambda out, _: -out}).result
    assert torch.equal(torch.cat([one, two]), want)


def test_each_invoke_has_an_order_of_its_own(net, model):
    a, b = rows(1, 1), rows(1, 2)
    with model.trace() as tracer:
        with tracer.invoke(a):
            late = model.layers[2].output
        with tracer.invoke(b):
            early = model.layers[0].output
    torch.testing.assert_close(late, by_hooks(net, a, reads=["layers.2"])["layers.2"])
    torch.testing.assert_close(early, by_hooks(net, b, reads=["layers.0"])["layers.0"])


def test_at_one_site_bodies_run_in_the_order_of_the_text(model):
    order = []
    with model.trace() as tracer:
        with tracer.invoke(rows(1)):
            order.append("a")
            model.layers[1].output
            order.append("A")
        with tracer.invoke(rows(1)):
            order.append("b")
            model.layers[1].output
            order.append("B")
        with tracer.invoke():
            order.append("c")
            model.layers[1].output
            order.append("C")
    assert order == ["a", "b", "c", "A", "B", "C"]


def test_at_one_site_an_earlier_writer_is_seen_by_a_later_reader_of_the_whole_batch(net, model):
    a, b = rows(1, 1), rows(1, 2)
    with model.trace() as tracer:
        with tracer.invoke(a):
            model.layers[1].output = torch.zeros(1, 4)
        with tracer.invoke(b):
            pass
        with tracer.invoke():
            whole = model.layers[1].output
    plain = by_hooks(net, torch.cat([a, b]), reads=["layers.1"])["layers.1"]
    assert torch.equal(whole, torch.cat([torch.zeros(1, 4), plain[1:]]))


def test_a_body_that_asks_for_nothing_still_runs_and_its_rows_count(net, model):
    a, b = rows(1, 1), rows(2, 2)
    with model.trace() as tracer:
        with tracer.invoke(a):
            note = "ran"
        with tracer.invoke(b):
            pass
        with tracer.invoke():
            whole = model.output
    assert note == "ran"
    assert torch.equal(whole, net(torch.cat([a, b])))


def test_result_in_an_invoke_is_its_rows(net, model):
    a, b = rows(1, 1), rows(2, 2)
    with model.trace() as tracer:
        with tracer.invoke(a):
            one = tracer.result
        with tracer.invoke(b):
            two = tracer.result
        with tracer.invoke():
            whole = tracer.result
    want = net(torch.cat([a, b]))
    assert torch.equal(one, want[:1]) and torch.equal(two, want[1:]) and torch.equal(whole, want)


def test_stop_in_one_invoke_ends_the_run_for_all(net, model):
    calls = []
    handle = net.head.register_forward_pre_hook(lambda *_: calls.append(1))
    with model.trace() as tracer:
        with tracer.invoke(rows(1, 1)):
            kept = model.layers[0].output
            tracer.stop()
        with tracer.invoke(rows(1, 2)):
            early = model.embed.output
            later = model.layers[2].output
    assert kept.shape == early.shape == (1, 4)
    assert calls == []
    with pytest.raises(NameError):
        later
    handle.remove()
    assert untouched(net)


def test_the_block_of_the_trace_runs_before_any_body(model):
    order = []
    with model.trace() as tracer:
        order.append("before")
        with tracer.invoke(rows(1)):
            order.append("body")
        order.append("after")
    assert order == ["before", "after", "body"]


def test_invoke_is_known_by_its_name_after_as(model):
    with model.trace() as tracer:
        with tracer.invoke(rows(1)) as first:
            seen = first.number
        with tracer.invoke(rows(2)) as second:
            seen_too = (second.number, second.rows)
    assert seen == 0
    assert seen_too == (1, (1, 2))


# -- inputs ----------------------------------------------------------------------------------------------------------


class Summed(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.linear = torch.nn.Linear(4, 4)

    def forward(self, x, other=None, scale=1.0):
        out = self.linear(x) * scale
        return out if other is None else out + other


def test_an_invoke_knows_its_siblings_by_their_names_after_as(model):
    with model.trace() as tracer:
        with tracer.invoke(rows(2)) as first:
            mine = first.rows
        with tracer.invoke(rows(1)) as second:
            both = first.rows, second.rows
    assert mine == (0, 2) and both == ((0, 2), (2, 1))


def test_where_tokens_lie_is_the_familys_to_say(net):
    class Counting(NNsight):
        def _tokens(self, args, kwargs, rows, method):
            return args, kwargs, rows, method

    x, y = rows(1), rows(2)
    with Counting(net).trace() as tracer:
        with tracer.invoke(x) as first:
            one, same = tracer.tokens, first.tokens is tracer.tokens
        with tracer.invoke(y):
            two, others = tracer.tokens, first.tokens
        with tracer.invoke():
            everything = tracer.tokens
    assert same and others is one
    assert (one[2], two[2], everything[2]) == ((0, 1), (1, 2), None)
    assert torch.equal(one[0][0], torch.cat([x, y])) and one[1] == {} and one[3] is None
    assert first.tokens is one, "it was asked for, so it is kept"
    with Counting(net).trace(x) as tracer:
        assert tracer.tokens[0][0] is x and tracer.tokens[2] is None
    with NNsight(net).trace(x) as tracer:
        with pytest.raises(NotImplementedError, match="NNsight.* are not made of tokens"):
            tracer.tokens
    with pytest.raises(NoTraceError, match="inside the block"):
        tracer.tokens
    with pytest.raises(NoInputError, match="has no input"):
        with Counting(net).trace() as tracer:
            tracer.tokens
    with pytest.raises(NoTraceError, match="within one of its invokes"):
        with Counting(net).trace() as tracer:
            with tracer.invoke(x):
                net
            tracer.tokens


def test_keyword_inputs_are_batched():
    net = Summed()
    model = NNsight(net)
    a, b, u, v = rows(1, 1), rows(2, 2), rows(1, 3), rows(2, 4)
    with model.trace() as tracer:
        with tracer.invoke(x=a, other=u, scale=2.0):
            one = model.output
        with tracer.invoke(x=b, other=v, scale=2.0):
            two = model.output
    torch.testing.assert_close(one, net(a, u, 2.0))
    torch.testing.assert_close(two, net(b, v, 2.0))


def test_options_of_the_trace_hold_for_the_batch():
    net = Summed()
    model = NNsight(net)

    class Family(NNsight):
        def _has_input(self, inputs, kwargs):
            return bool(inputs)

    model = Family(net)
    a, b = rows(1, 1), rows(2, 2)
    with model.trace(scale=3.0) as tracer:
        with tracer.invoke(a):
            one = model.output
        with tracer.invoke(b):
            two = model.output
    torch.testing.assert_close(torch.cat([one, two]), net(torch.cat([a, b]), scale=3.0))


def test_inputs_that_do_not_stack_are_refused(model):
    with pytest.raises(RowsError, match="positional argument 0.*stacked"):
        with model.trace() as tracer:
            with tracer.invoke(torch.rand(1, 4)):
                model.output
            with tracer.invoke(torch.rand(1, 3, 4)):
                model.output


def test_invokes_with_other_arguments_are_refused():
    model = NNsight(Summed())
    with pytest.raises(RowsError, match="other arguments"):
        with model.trace() as tracer:
            with tracer.invoke(rows(1)):
                model.output
            with tracer.invoke(rows(1), other=rows(1)):
                model.output
    with pytest.raises(RowsError, match="`scale` differ"):
        with model.trace() as tracer:
            with tracer.invoke(rows(1), scale=1.0):
                model.output
            with tracer.invoke(rows(1), scale=2.0):
                model.output


# -- where invokes can be defined ------------------------------------------------------------------------------------


def test_a_loop_defines_invokes(net, model):
    inputs = [rows(1, seed) for seed in range(5)]
    outs = []
    with model.trace() as tracer:
        for x in inputs:
            with tracer.invoke(x):
                outs.append(model.output)
    assert torch.equal(torch.cat(outs), net(torch.cat(inputs)))


def test_a_loop_variable_keeps_the_value_of_its_round(net, model):
    scaled = {}
    with model.trace() as tracer:
        for factor in (1, 2, 3):
            with tracer.invoke(rows(1)):
                model.layers[0].output *= factor
                scaled[factor] = model.output
    for factor in (1, 2, 3):
        want = by_hooks(net, rows(1), edits={"layers.0": lambda out, _, factor=factor: out * factor}).result
        torch.testing.assert_close(scaled[factor], want)


def test_a_condition_decides_which_invokes_there_are(net, model):
    for both in (False, True):
        with model.trace() as tracer:
            with tracer.invoke(rows(1, 1)):
                pass
            if both:
                with tracer.invoke(rows(1, 2)):
                    pass
            with tracer.invoke():
                whole = model.output
        assert whole.shape[0] == 1 + both


def test_a_function_defines_invokes_for_its_caller(net, model):
    def add(tracer, x, kept):
        with tracer.invoke(x):
            kept.append(model.output)

    kept = []
    with model.trace() as tracer:
        add(tracer, rows(1, 1), kept)
        add(tracer, rows(2, 2), kept)
    assert torch.equal(torch.cat(kept), net(torch.cat([rows(1, 1), rows(2, 2)])))


def test_invokes_in_a_generator_that_is_a_context_manager(net, model):
    @contextlib.contextmanager
    def traced():
        with model.trace() as tracer:
            yield tracer

    with traced() as tracer:
        with tracer.invoke(rows(1, 1)):
            one = model.output
        with tracer.invoke(rows(1, 2)):
            two = model.output
    assert torch.equal(torch.cat([one, two]), net(torch.cat([rows(1, 1), rows(1, 2)])))


def test_everything_in_one_with(net, model):
    with model.trace() as tracer, tracer.invoke(rows(2)):
        out = model.output
    assert torch.equal(out, net(rows(2)))


def test_managers_behind_an_invoke_surround_its_body(model):
    order = []

    @contextlib.contextmanager
    def noting(name):
        order.append(f"{name} in")
        yield name
        order.append(f"{name} out")

    with model.trace() as tracer:
        with tracer.invoke(rows(1)), noting("x") as x, torch.no_grad():
            order.append(x)
            grad = torch.is_grad_enabled()
        order.append("defined")
    assert order == ["defined", "x in", "x", "x out"]
    assert grad is False


def test_a_manager_before_an_invoke_in_one_with_is_refused(model):
    with pytest.raises(InvokeError, match="torch.no_grad.*stands before"):
        with model.trace() as tracer:
            with torch.no_grad(), tracer.invoke(rows(1)):
                model.output


def test_one_line_bodies(net, model):
    # fmt: off
    with model.trace() as tracer:
        with tracer.invoke(rows(1, 1)): one = model.output  # noqa: E701
        with tracer.invoke(rows(1, 2)): two = model.output  # noqa: E701
    # fmt: on
    assert torch.equal(torch.cat([one, two]), net(torch.cat([rows(1, 1), rows(1, 2)])))


# -- python in bodies ------------------------------------------------------------------------------------------------


def test_functions_lambdas_and_comprehensions_in_bodies(net, model):
    factor = 3
    with model.trace() as tracer:
        with tracer.invoke(rows(1, 1)):
            local = 2

            def double(value):
                return value * local * factor

            firsts = [layer.output for layer in model.layers]
            by_lambda = (lambda value: value + local)(firsts[-1])
            by_function = double(firsts[-1])
            nested = {i: [float(v) * local for v in t[0].detach()] for i, t in enumerate(firsts)}
            total = sum(float(t.detach().sum()) for t in firsts)
        with tracer.invoke(rows(1, 2)):
            pass
    want = by_hooks(net, rows(1, 1), reads=["layers.0", "layers.1", "layers.2"])
    last = want["layers.2"]
    torch.testing.assert_close(by_lambda, last + 2)
    torch.testing.assert_close(by_function, last * 6)
    assert len(firsts) == 3
    assert nested[1] == pytest.approx([float(v) * 2 for v in want["layers.1"][0].detach()])
    assert total == pytest.approx(sum(float(want[f"layers.{i}"].detach().sum()) for i in range(3)), rel=1e-4)


def test_a_function_from_a_body_works_after_the_trace(model):
    with model.trace() as tracer:
        with tracer.invoke(rows(1)):
            offset = 10

            def add(value):
                return value + offset

    assert add(1) == 11


def test_try_and_with_and_while_in_bodies(net, model):
    with model.trace() as tracer:
        with tracer.invoke(rows(1)):
            try:
                {}["nothing"]
            except KeyError as error:
                caught = str(error)
            finally:
                ended = True
            count = 0
            while True:
                count += 1
                if count == 2:
                    continue
                if count > 3:
                    break
            with contextlib.suppress(ZeroDivisionError):
                1 / 0
            out = model.output
    assert caught == "'nothing'" and ended and count == 4
    assert torch.equal(out, net(rows(1)))


def test_a_body_in_a_method_sees_self_and_super(net):
    class Base:
        def factor(self):
            return 2

    class Study(Base):
        def __init__(self, model):
            self.model = model
            self.kept = {}

        def factor(self):
            return 5

        def run(self, x):
            with self.model.trace() as tracer:
                with tracer.invoke(x):
                    self.kept["out"] = self.model.output * super().factor()
                    scale = self.factor()
            return scale

    study = Study(NNsight(net))
    assert study.run(rows(1)) == 5
    assert torch.equal(study.kept["out"], net(rows(1)) * 2)


# -- names afterwards ------------------------------------------------------------------------------------------------


def test_names_of_bodies_are_bound_in_the_function(model):
    with model.trace() as tracer:
        with tracer.invoke(rows(1, 1)):
            a, (b, *c) = 1, (2, 3, 4)
            for loop in range(3):  # noqa: B007 - looked at below
                pass
            import math as mathematics

            total = 0
            total += a
            (walrus := 9)
    assert (a, b, c, loop, total, walrus) == (1, 2, [3, 4], 2, 1, 9)
    assert mathematics.pi > 3


def test_the_outer_value_of_a_name_is_updated(model):
    count = 5
    with model.trace() as tracer:
        with tracer.invoke(rows(1)):
            count += 1
    assert count == 6


def test_a_name_of_an_enclosing_function_is_updated(model):
    seen = None

    def run():
        nonlocal seen
        with model.trace() as tracer:
            with tracer.invoke(rows(1)):
                seen = "here"

    run()
    assert seen == "here"


total_of_invokes = 0


def test_a_global_name_is_updated(model):
    global total_of_invokes
    with model.trace() as tracer:
        with tracer.invoke(rows(1)):
            total_of_invokes += 7
    assert total_of_invokes == 7


def test_where_invokes_bind_one_name_the_last_one_counts(model):
    with model.trace() as tracer:
        with tracer.invoke(rows(1)):
            model.layers[2].output
            which = "first"
        with tracer.invoke(rows(1)):
            which = "second"
    assert which == "second"


# -- errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("at", [0, 1])
def test_an_error_in_one_body_is_raised_as_it_is(net, model, at):
    mine = KeyError("mine")
    with pytest.raises(KeyError) as caught:
        with model.trace() as tracer:
            for number in range(2):
                with tracer.invoke(rows(1, number)):
                    model.layers[0].output
                    if number == at:
                        raise mine
                    done = number
                    model.layers[1].output
    assert caught.value is mine
    assert untouched(net)
    with model.trace(rows(1)):
        out = model.output
    assert torch.equal(out, net(rows(1)))


def test_an_error_in_a_body_before_it_asks_for_anything(net, model):
    with pytest.raises(ZeroDivisionError):
        with model.trace() as tracer:
            with tracer.invoke(rows(1)):
                1 / 0
            with tracer.invoke(rows(1)):
                model.output
    assert untouched(net)


def test_names_bound_before_an_error_are_kept(model):
    with pytest.raises(ValueError, match="mine"):
        with model.trace() as tracer:
            with tracer.invoke(rows(1)):
                kept = model.layers[0].output
                raise ValueError("mine")
    assert kept.shape == (1, 4)


def test_an_error_shows_the_line_of_the_body(model):
    import traceback

    with pytest.raises(ZeroDivisionError) as caught:
        with model.trace() as tracer:
            with tracer.invoke(rows(1)):
                model.layers[0].output
                1 / 0  # here
    text = "".join(traceback.format_exception(caught.value))
    assert "1 / 0  # here" in text
    assert "nnsight/_core" not in text


def test_the_block_that_defines_invokes_may_fail(net, model):
    ran = []
    with pytest.raises(ValueError, match="mine"):
        with model.trace() as tracer:
            with tracer.invoke(rows(1)):
                ran.append(1)
            raise ValueError("mine")
    assert ran == []
    assert untouched(net)


def test_an_error_of_the_model_is_raised(net, model):
    with pytest.raises(RuntimeError, match="shapes"):
        with model.trace() as tracer:
            with tracer.invoke(torch.rand(1, 3)):
                model.output
            with tracer.invoke(torch.rand(1, 3)):
                model.output
    assert untouched(net)


def test_out_of_order_in_one_invoke_names_it(model):
    with pytest.raises(OutOfOrderError) as caught:
        with model.trace() as tracer:
            with tracer.invoke(rows(1)):
                model.layers[2].output
            with tracer.invoke(rows(1)):
                model.layers[1].output
                model.layers[0].output
    assert "invoke 1" in str(caught.value) and "model.layers.0.output" in str(caught.value)


def test_a_site_that_never_comes_names_the_invoke(net, model):
    net.unused = torch.nn.Linear(4, 4)
    model = NNsight(net)
    with pytest.raises(MissedProviderError) as caught:
        with model.trace() as tracer:
            with tracer.invoke(rows(1)):
                model.output
            with tracer.invoke(rows(1)):
                model.unused.output
    assert "invoke 1" in str(caught.value) and "model.unused.output" in str(caught.value)


def test_a_missed_site_can_be_caught_in_the_body(net, model):
    net.unused = torch.nn.Linear(4, 4)
    model = NNsight(net)
    with model.trace() as tracer:
        with tracer.invoke(rows(1)):
            try:
                model.unused.output
            except MissedProviderError:
                missed = True
        with tracer.invoke(rows(1)):
            out = model.output
    assert missed
    torch.testing.assert_close(out, net(rows(1)))


def test_an_invoke_in_a_trace_with_an_input_is_refused(net, model):
    with pytest.raises(InvokeError, match="Cannot invoke during an active model execution"):
        with model.trace(rows(1)) as tracer:
            with tracer.invoke(rows(1)):
                model.output
    assert untouched(net)


def test_an_invoke_in_an_invoke_is_refused(net, model):
    with pytest.raises(InvokeError):
        with model.trace() as tracer:
            with tracer.invoke(rows(1)):
                with tracer.invoke(rows(1)):
                    model.output
    assert untouched(net)


def test_an_invoke_after_its_trace_is_refused(model):
    with model.trace() as tracer:
        with tracer.invoke(rows(1)):
            model.output
    with pytest.raises(InvokeError, match="block of its own trace"):
        with tracer.invoke(rows(1)):
            model.output


@pytest.mark.parametrize("define", [False, True])
def test_a_trace_without_any_input_is_refused(net, model, define):
    with pytest.raises(NoInputError, match="no input"):
        with model.trace() as tracer:
            if define:
                with tracer.invoke():
                    model.output
    assert untouched(net)


def test_asking_in_a_trace_without_an_input_says_what_is_missing(model):
    with pytest.raises(NoInputError, match=r"model.trace\(input\)"):
        with model.trace():
            model.output


def test_asking_outside_the_invokes_says_where_to_ask(model):
    with pytest.raises(NoInputError, match="outside the invokes"):
        with model.trace() as tracer:
            with tracer.invoke(rows(1)):
                model.output
            model.output


@pytest.mark.parametrize(
    "text",
    ["return 1", "break", "continue", "yield 1", "await later()"],
)
def test_a_body_that_would_leave_its_function_is_refused(model, text):
    kind = "async def" if "await" in text else "def"
    source = f"""
{kind} run(model, x, later=None):
    for _ in range(1):
        with model.trace() as tracer:
            with tracer.invoke(x):
                {text}
"""
    import linecache

    name = f"<refused {text}>"
    linecache.cache[name] = (len(source), None, source.splitlines(keepends=True), name)
    scope: dict = {}
    exec(compile(source, name, "exec"), scope)
    with pytest.raises(SourceError, match=text.split()[0]):
        outcome = scope["run"](model, rows(1))
        if kind == "async def":
            outcome.send(None)
        elif outcome is not None:
            list(outcome)


def test_a_thousand_traces_of_invokes_leave_no_trace(net, model):
    for _ in range(300):
        with model.trace() as tracer:
            with tracer.invoke(rows(1)):
                model.layers[0].output = torch.zeros(1, 4)
            with tracer.invoke(rows(1)):
                out = model.output
    assert untouched(net)
    torch.testing.assert_close(out, net(rows(1)))
