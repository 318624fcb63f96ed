"""Names that flow between invokes: what one body binds, another reads, and waits for if it must."""

from __future__ import annotations

import pytest
import torch
from hooked import Generator, Stack, by_hooks, untouched

from nnsight import CONFIG, CrossInvokeError, NNsight, NNsightError


@pytest.fixture
def net():
    return Stack()


@pytest.fixture
def model(net):
    return NNsight(net)


@pytest.fixture
def no_crossing():
    before = CONFIG.APP.CROSS_INVOKER
    CONFIG.APP.CROSS_INVOKER = False
    yield
    CONFIG.APP.CROSS_INVOKER = before


def rows(count, seed=0, width=4):
    return torch.rand(count, width, generator=torch.Generator().manual_seed(seed))


def copied(out, _):
    return torch.cat([out[:1], out[:1]])


A, B = rows(1, 1), rows(1, 2)


# -- what flows ------------------------------------------------------------------------------------------------------


def test_a_value_is_patched_into_another_invoke_at_the_same_site(net, model):
    with model.trace() as tracer:
        with tracer.invoke(A):
            hidden = model.layers[1].output
            one = model.output
        with tracer.invoke(B):
            model.layers[1].output = hidden
            two = model.output
    want = by_hooks(net, torch.cat([A, B]), edits={"layers.1": copied}).result
    torch.testing.assert_close(torch.cat([one, two]), want)


def test_in_place_patching_at_the_same_site(net, model):
    with model.trace() as tracer:
        with tracer.invoke(A):
            hidden = model.layers[1].output[:, 1:3]
        with tracer.invoke(B):
            model.layers[1].output[:, 1:3] = hidden
            two = model.output

    def edit(out, _):
        out = out.clone()
        out[1, 1:3] = out[0, 1:3]
        return out

    torch.testing.assert_close(two, by_hooks(net, torch.cat([A, B]), edits={"layers.1": edit}).result[1:])


def test_a_value_of_an_earlier_site_is_used_later(net, model):
    with model.trace() as tracer:
        with tracer.invoke(A):
            hidden = model.layers[0].output
        with tracer.invoke(B):
            model.layers[2].output = hidden
            two = model.output
    early = by_hooks(net, A, reads=["layers.0"])["layers.0"]
    torch.testing.assert_close(two, by_hooks(net, B, edits={"layers.2": lambda *_: early}).result)


def test_several_readers_of_one_name(net, model):
    outs = []
    with model.trace() as tracer:
        with tracer.invoke(A):
            hidden = model.layers[1].output
        for seed in (2, 3, 4):
            with tracer.invoke(rows(1, seed)):
                model.layers[1].output = hidden
                outs.append(model.layers[1].output)
    want = by_hooks(net, A, reads=["layers.1"])["layers.1"]
    for out in outs:
        torch.testing.assert_close(out, want)


def test_a_chain_of_invokes(net, model):
    with model.trace() as tracer:
        with tracer.invoke(A):
            first = model.layers[0].output
        with tracer.invoke(B):
            second = first + model.layers[0].output
        with tracer.invoke(rows(1, 3)):
            third = second + model.layers[0].output
    want = by_hooks(net, torch.cat([A, B, rows(1, 3)]), reads=["layers.0"])["layers.0"]
    torch.testing.assert_close(third, want.sum(0, keepdim=True))


def test_both_ways_between_two_invokes(net, model):
    with model.trace() as tracer:
        with tracer.invoke(A):
            mine = model.layers[0].output
            model.layers[2].output = theirs  # noqa: F821 - bound below
            one = model.output
        with tracer.invoke(B):
            theirs = model.layers[1].output
            model.layers[1].output = mine
            two = model.output
    plain_a = by_hooks(net, A, reads=["layers.0"])
    plain_b = by_hooks(net, B, reads=["layers.1"])
    torch.testing.assert_close(one, by_hooks(net, A, edits={"layers.2": lambda *_: plain_b["layers.1"]}).result)
    torch.testing.assert_close(two, by_hooks(net, B, edits={"layers.1": lambda *_: plain_a["layers.0"]}).result)


def test_a_reader_that_is_written_first_waits_for_a_later_invoke(net, model):
    with model.trace() as tracer:
        with tracer.invoke(A):
            model.layers[1].output = hidden  # noqa: F821 - bound below
            one = model.output
        with tracer.invoke(B):
            hidden = model.layers[0].output
    early = by_hooks(net, B, reads=["layers.0"])["layers.0"]
    torch.testing.assert_close(one, by_hooks(net, A, edits={"layers.1": lambda *_: early}).result)


def test_the_whole_batch_reads_what_an_invoke_binds(net, model):
    with model.trace() as tracer:
        with tracer.invoke(A):
            hidden = model.layers[1].output
        with tracer.invoke(B):
            pass
        with tracer.invoke():
            model.layers[1].output = hidden.repeat(2, 1)
            whole = model.output
    want = by_hooks(net, torch.cat([A, B]), edits={"layers.1": copied}).result
    torch.testing.assert_close(whole, want)


def test_names_read_by_functions_lambdas_and_comprehensions(net, model):
    with model.trace() as tracer:
        with tracer.invoke(A):
            hidden = model.layers[0].output
            parts = [hidden, hidden * 2]
        with tracer.invoke(B):

            def use():
                return hidden + 1

            by_function = use()
            by_lambda = (lambda value: value + hidden)(0)
            by_comprehension = [part + hidden for part in parts]
    want = by_hooks(net, A, reads=["layers.0"])["layers.0"]
    torch.testing.assert_close(by_function, want + 1)
    torch.testing.assert_close(by_lambda, want)
    torch.testing.assert_close(by_comprehension[1], want * 3)


def test_a_read_waits_at_the_place_where_it_stands(net, model):
    """The reader's wait holds nobody up: the run goes on to where the name is bound."""
    with model.trace() as tracer:
        with tracer.invoke(A):
            model.layers[2].output
            hidden = "bound"
        with tracer.invoke(B):
            model.layers[0].output
            got = hidden
            after = model.output
    assert got == "bound"
    torch.testing.assert_close(after, net(B))


def test_a_name_bound_before_anything_is_asked_for(model):
    with model.trace() as tracer:
        with tracer.invoke(A):
            scale = 3
            model.output
        with tracer.invoke(B):
            doubled = scale * 2
    assert doubled == 6


def test_an_augmented_assignment_starts_from_the_value_of_a_sibling(model):
    with model.trace() as tracer:
        with tracer.invoke(A):
            total = 1
        with tracer.invoke(B):
            total += 10
    assert total == 11


def test_own_binding_hides_that_of_a_sibling(net, model):
    with model.trace() as tracer:
        with tracer.invoke(A):
            hidden = model.layers[0].output
        with tracer.invoke(B):
            hidden = model.layers[1].output
            mine = hidden
    torch.testing.assert_close(mine, by_hooks(net, B, reads=["layers.1"])["layers.1"])


# -- names from outside ----------------------------------------------------------------------------------------------


def test_an_outer_name_does_not_hide_what_an_earlier_invoke_binds(net, model):
    hidden = torch.zeros(1, 4)
    with model.trace() as tracer:
        with tracer.invoke(A):
            hidden = model.layers[1].output
        with tracer.invoke(B):
            model.layers[1].output = hidden
            two = model.output
    want = by_hooks(net, torch.cat([A, B]), edits={"layers.1": copied}).result
    torch.testing.assert_close(two, want[1:])


hidden_of_the_module = torch.zeros(1, 4)


def test_a_global_or_builtin_name_does_not_hide_it_either(net, model):
    with model.trace() as tracer:
        with tracer.invoke(A):
            hidden_of_the_module = model.layers[1].output
            sum = "mine"
        with tracer.invoke(B):
            got = hidden_of_the_module, sum
    torch.testing.assert_close(got[0], by_hooks(net, A, reads=["layers.1"])["layers.1"])
    assert got[1] == "mine"


def test_an_outer_name_counts_before_a_later_invoke_rebinds_it(model):
    label = "outer"
    with model.trace() as tracer:
        with tracer.invoke(A):
            first = label
        with tracer.invoke(B):
            label = "rebound"
            second = label
    assert (first, second, label) == ("outer", "rebound", "rebound")


def test_an_outer_name_stands_in_where_the_sibling_did_not_bind_it(model):
    label = "outer"
    never = False
    with model.trace() as tracer:
        with tracer.invoke(A):
            if never:
                label = "inner"
        with tracer.invoke(B):
            got = label
    assert got == "outer"


def test_each_invoke_sees_the_outer_value_of_where_it_was_written(model):
    seen = []
    label = "first"
    with model.trace() as tracer:
        with tracer.invoke(A):
            seen.append(label)
        label = "second"
        with tracer.invoke(B):
            seen.append(label)
    assert seen == ["first", "second"]


def test_invokes_of_a_loop_do_not_read_each_others_loop_body(net, model):
    """Every round binds the same names: each body sees its own."""
    outs = []
    with model.trace() as tracer:
        for seed in range(3):
            with tracer.invoke(rows(1, seed)):
                hidden = model.layers[0].output
                outs.append(hidden)
    for seed, out in enumerate(outs):
        torch.testing.assert_close(out, by_hooks(net, rows(1, seed), reads=["layers.0"])["layers.0"])


# -- never bound -----------------------------------------------------------------------------------------------------


def test_a_name_that_is_never_bound_names_both_invokes(net, model):
    never = False
    with pytest.raises(CrossInvokeError) as caught:
        with model.trace() as tracer:
            with tracer.invoke(A):
                if never:
                    hidden = model.layers[1].output
            with tracer.invoke(B):
                model.layers[2].output = hidden
    message = str(caught.value)
    assert "'hidden'" in message and "invoke 0" in message and "invoke 1" in message
    assert isinstance(caught.value, NameError) and isinstance(caught.value, NNsightError)
    assert untouched(net)


def test_two_invokes_that_wait_for_each_other(net, model):
    with pytest.raises(CrossInvokeError) as caught:
        with model.trace() as tracer:
            with tracer.invoke(A):
                got = theirs  # noqa: F821
                mine = 1
            with tracer.invoke(B):
                got = mine
                theirs = 2
    assert "invoke 0" in str(caught.value) and "invoke 1" in str(caught.value)
    assert untouched(net)


def test_a_name_that_nobody_binds_is_a_plain_name_error(net, model):
    with pytest.raises(NameError, match="nobody_knows_this") as caught:
        with model.trace() as tracer:
            with tracer.invoke(A):
                nobody_knows_this  # noqa: F821
            with tracer.invoke(B):
                pass
    assert not isinstance(caught.value, NNsightError)
    assert untouched(net)


def test_a_never_bound_name_can_be_caught(model):
    never = False
    with model.trace() as tracer:
        with tracer.invoke(A):
            if never:
                hidden = 1
        with tracer.invoke(B):
            try:
                got = hidden
            except NameError:
                got = "nothing"
    assert got == "nothing"


def test_a_binder_that_fails_raises_its_own_error(net, model):
    with pytest.raises(ZeroDivisionError):
        with model.trace() as tracer:
            with tracer.invoke(A):
                model.layers[1].output
                hidden = 1 / 0
            with tracer.invoke(B):
                model.layers[1].output = hidden
    assert untouched(net)


# -- switched off ----------------------------------------------------------------------------------------------------


def test_switched_off_a_siblings_name_is_unknown(net, model, no_crossing):
    with pytest.raises(NameError):
        with model.trace() as tracer:
            with tracer.invoke(A):
                hidden = model.layers[1].output
            with tracer.invoke(B):
                model.layers[1].output = hidden
    assert untouched(net)


def test_switched_off_the_outer_name_counts(model, no_crossing):
    label = "outer"
    with model.trace() as tracer:
        with tracer.invoke(A):
            label = "inner"
        with tracer.invoke(B):
            got = label
    assert got == "outer"


def test_switched_off_names_still_come_back(model, no_crossing):
    with model.trace() as tracer:
        with tracer.invoke(A):
            one = model.output
        with tracer.invoke(B):
            two = model.output
    assert one.shape == two.shape == (1, 5)


# -- in loops over steps ---------------------------------------------------------------------------------------------


def test_a_name_that_a_loop_binds_anew_is_waited_for_in_each_step():
    torch.manual_seed(0)
    generator = Generator()
    model = NNsight(generator)
    with model.trace(fn="generate") as tracer:
        with tracer.invoke(A, n=3):
            for _ in tracer.iter[:]:
                hidden = model.first.output
        with tracer.invoke(B, n=3):
            for _ in tracer.iter[:]:
                model.first.output = hidden
            result = tracer.result
    expected = by_hooks(
        generator, torch.cat([A, B]), 3, call="generate", edits={"first": lambda out, _: torch.cat([out[:1]] * 2)}
    ).result
    torch.testing.assert_close(result, expected[1:])


def test_a_name_that_was_bound_before_a_loop_is_not_waited_for_again():
    torch.manual_seed(0)
    generator = Generator()
    model = NNsight(generator)
    with model.trace(fn="generate") as tracer:
        with tracer.invoke(A, n=3):
            first = model.first.output
            for _ in tracer.iter[:]:
                model.first.output
        with tracer.invoke(B, n=3):
            seen = []
            for _ in tracer.iter[:]:
                model.first.output = first
                seen.append(first)
    assert len(seen) == 3 and all(value is seen[0] for value in seen)
