"""Edits: bodies that are stored on a model and replayed in each of its runs."""

from __future__ import annotations

import copy
import pickle
import warnings

import pytest
import torch
from hooked import Generator, Stack, by_hooks, untouched

from nnsight import NNsight, NNsightError, SourceError, UnmetSiteWarning


@pytest.fixture
def net():
    return Stack()


@pytest.fixture
def model(net):
    return NNsight(net)


@pytest.fixture(autouse=True)
def no_unexpected_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error", UnmetSiteWarning)
        yield


def rows(count, seed=0, width=4):
    return torch.rand(count, width, generator=torch.Generator().manual_seed(seed))


X = rows(2, 5)


def zeroed(net, x=X, name="layers.1"):
    return by_hooks(net, x, edits={name: lambda out, _: out * 0}).result


def result_of(model, x=X):
    with model.trace(x):
        out = model.output
    return out


# -- making ----------------------------------------------------------------------------------------------------------


def test_an_edit_gives_a_new_reference(net, model):
    with model.edit() as edited:
        model.layers[1].output[:] = 0
    assert edited is not model and edited._module is net
    torch.testing.assert_close(result_of(edited), zeroed(net))
    torch.testing.assert_close(result_of(model), net(X))
    assert len(edited.edits) == 1 and len(model.edits) == 0
    assert untouched(net)


def test_an_edit_does_not_run_when_it_is_made(model):
    ran = []
    with model.edit() as edited:
        ran.append(1)
        model.layers[1].output[:] = 0
    assert ran == []
    result_of(edited)
    result_of(edited)
    assert ran == [1, 1]


def test_an_edit_in_place(net, model):
    with model.edit(inplace=True) as edited:
        model.layers[1].output[:] = 0
    assert edited is model
    torch.testing.assert_close(result_of(model), zeroed(net))
    model.clear_edits()
    torch.testing.assert_close(result_of(model), net(X))


@pytest.mark.parametrize("through", ["model", "edited"])
def test_an_edit_may_name_either_reference(net, model, through):
    if through == "model":
        with model.edit() as edited:
            model.layers[1].output = torch.zeros(2, 4)
    else:
        with model.edit() as edited:
            edited.layers[1].output = torch.zeros(2, 4)
    for reference in (model, edited):
        with edited.trace(X):
            out = reference.output
        torch.testing.assert_close(out, zeroed(net))


def test_several_edits_are_replayed_in_their_order(net, model):
    with model.edit() as once:
        model.layers[1].output[:] = 1
    with once.edit() as twice:
        model.layers[1].output[:] *= 3
        model.layers[2].output[:] = 0

    def edit(out, _):
        return torch.full_like(out, 3.0)

    want = by_hooks(net, X, edits={"layers.1": edit, "layers.2": lambda out, _: out * 0}).result
    torch.testing.assert_close(result_of(twice), want)
    torch.testing.assert_close(
        result_of(once), by_hooks(net, X, edits={"layers.1": lambda out, _: torch.ones_like(out)}).result
    )


def test_a_body_sees_what_edits_made(net, model):
    with model.edit() as edited:
        model.layers[1].output = torch.ones(2, 4)
    with edited.trace(X):
        seen = edited.layers[1].output.clone()
        edited.layers[1].output += 1
        out = edited.output
    assert torch.equal(seen, torch.ones(2, 4))
    torch.testing.assert_close(out, by_hooks(net, X, edits={"layers.1": lambda *_: torch.full((2, 4), 2.0)}).result)


def test_an_edit_reads_one_site_and_writes_another(net, model):
    with model.edit() as edited:
        early = model.layers[0].output
        model.layers[2].output = early * 2
    early = by_hooks(net, X, reads=["layers.0"])["layers.0"]
    want = by_hooks(net, X, edits={"layers.2": lambda *_: early * 2}).result
    torch.testing.assert_close(result_of(edited), want)


def test_an_edit_calls_a_module_that_the_model_does_not_call(net):
    net.adapter = torch.nn.Linear(4, 4)
    model = NNsight(net)
    with model.edit() as edited:
        model.layers[1].output = model.adapter(model.layers[1].output)
    want = by_hooks(net, X, edits={"layers.1": lambda out, _: net.adapter(out)}).result
    torch.testing.assert_close(result_of(edited), want)


def test_an_edit_skips_a_module(net, model):
    with model.edit() as edited:
        model.layers[1].skip(model.layers[1].input * 2)
    h = by_hooks(net, X, reads=["layers.1"]).inputs["layers.1"][0][0]
    torch.testing.assert_close(result_of(edited), by_hooks(net, X, edits={"layers.1": lambda *_: h * 2}).result)


def test_an_edit_of_the_input_of_the_model(net, model):
    with model.edit() as edited:
        model.input = model.input * 0
    torch.testing.assert_close(result_of(edited), net(X * 0))


def test_an_edit_of_the_output_of_the_model(net, model):
    with model.edit() as edited:
        model.output = model.output + 1
    torch.testing.assert_close(result_of(edited), net(X) + 1)
    with edited.trace(X) as tracer:
        out = tracer.result
    torch.testing.assert_close(out, net(X) + 1)


def test_an_edit_keeps_the_values_around_it(net, model):
    factor, table = 2.0, {"shift": 1.0}

    def change(out):
        return out * factor + table["shift"]

    with model.edit() as edited:
        model.layers[1].output = change(model.layers[1].output)
    want = by_hooks(net, X, edits={"layers.1": lambda out, _: out * 2 + 1}).result
    torch.testing.assert_close(result_of(edited), want)
    table["shift"] = 0.0
    want = by_hooks(net, X, edits={"layers.1": lambda out, _: out * 2}).result
    torch.testing.assert_close(result_of(edited), want)


def test_edits_made_in_a_function_outlive_it(net, model):
    def steer(model, factor):
        with model.edit() as edited:
            model.layers[1].output *= factor
        return edited

    double, triple = steer(model, 2), steer(model, 3)
    for edited, factor in ((double, 2), (triple, 3)):
        want = by_hooks(net, X, edits={"layers.1": lambda out, _, f=factor: out * f}).result
        torch.testing.assert_close(result_of(edited), want)


def test_edits_made_in_a_loop(net, model):
    edited = model
    for number in range(3):
        with edited.edit() as edited:
            model.layers[number].output *= number
    want = by_hooks(net, X, edits={f"layers.{n}": lambda out, _, n=n: out * n for n in range(3)}).result
    torch.testing.assert_close(result_of(edited), want)


# -- running ---------------------------------------------------------------------------------------------------------


def test_an_edited_model_is_called_plainly(net, model):
    with model.edit() as edited:
        model.layers[1].output[:] = 0
    torch.testing.assert_close(edited(X), zeroed(net))
    torch.testing.assert_close(edited.trace(X, trace=False), zeroed(net))
    torch.testing.assert_close(model(X), net(X))
    assert untouched(net)


def test_an_edited_model_in_a_trace_that_asks_for_nothing(net, model):
    with model.edit() as edited:
        model.layers[1].output[:] = 0
    with edited.trace(X):
        pass
    with edited.trace(X) as tracer:
        out = tracer.result
    torch.testing.assert_close(out, zeroed(net))
    assert untouched(net)


def test_edits_see_the_whole_batch_of_invokes(net, model):
    shapes = []
    with model.edit() as edited:
        shapes.append(tuple(model.layers[1].output.shape))
        model.layers[1].output[:] = 0
    a, b = rows(1, 1), rows(2, 2)
    with edited.trace() as tracer:
        with tracer.invoke(a):
            one = edited.output
        with tracer.invoke(b):
            seen = edited.layers[1].output.clone()
            edited.layers[1].output += 1
            two = edited.output
    assert shapes == [(3, 4)]
    assert torch.equal(seen, torch.zeros(2, 4))
    want = by_hooks(
        net,
        torch.cat([a, b]),
        edits={"layers.1": lambda *_: torch.cat([torch.zeros(1, 4), torch.ones(2, 4)])},
    ).result
    torch.testing.assert_close(torch.cat([one, two]), want)


def test_edits_hold_in_a_backward_pass(net, model):
    with model.edit() as edited:
        model.layers[1].output = model.layers[1].output * 2
    with edited.trace(X):
        hidden = edited.layers[0].output
        with edited.output.sum().backward():
            grad = hidden.grad
    net.zero_grad(set_to_none=True)
    seen = by_hooks(net, X, reads=["layers.0"], edits={"layers.1": lambda out, _: out * 2})
    torch.testing.assert_close(grad, torch.autograd.grad(seen.result.sum(), seen["layers.0"])[0])


# -- on a part of the model ------------------------------------------------------------------------------------------


def test_an_edit_made_on_a_submodule_holds_when_the_parent_is_traced(net, model):
    with model.layers[1].edit() as layer:
        layer.output[:] = 0
    assert layer._module is net.layers[1]
    torch.testing.assert_close(result_of(layer.root), zeroed(net))
    torch.testing.assert_close(result_of(model), net(X))


def test_an_edit_in_place_on_a_submodule_holds_when_the_parent_is_traced(net, model):
    with model.layers[1].edit(inplace=True) as layer:
        layer.output[:] = 0
    assert layer is model.layers[1]
    torch.testing.assert_close(result_of(model), zeroed(net))


def test_an_edit_holds_when_the_submodule_alone_is_traced(net, model):
    with model.edit() as edited:
        model.layers[1].output += 1
    with edited.layers[1].trace(X):
        out = edited.layers[1].output
    torch.testing.assert_close(out, net.layers[1](X) + 1)


def test_an_edit_that_a_part_does_not_reach_warns(net, model):
    with model.edit(name="late change") as edited:
        model.layers[2].output += 1
    with pytest.warns(UnmetSiteWarning) as caught:
        with edited.layers[1].trace(X):
            out = edited.layers[1].output
    torch.testing.assert_close(out, net.layers[1](X))
    assert len(caught) == 1
    assert "model.layers.2.output" in str(caught[0].message) and "late change" in str(caught[0].message)


def test_an_edit_of_a_module_that_is_not_called_warns(net):
    net.unused = torch.nn.Linear(4, 4)
    model = NNsight(net)
    with model.edit() as edited:
        model.unused.output[:] = 0
    with pytest.warns(UnmetSiteWarning, match=r"model\.unused\.output"):
        out = edited(X)
    torch.testing.assert_close(out, net(X))
    with pytest.warns(UnmetSiteWarning, match=r"model\.unused\.output"):
        with edited.trace(X):
            pass
    assert untouched(net)


# -- in generation ---------------------------------------------------------------------------------------------------


@pytest.fixture
def generator():
    return Generator()


def test_an_edit_is_replayed_in_every_step(generator):
    model = NNsight(generator)
    with model.edit() as edited:
        model.first.output *= 2
    with edited.generate(X, 4) as tracer:
        seen = [edited.first.output for _ in tracer.iter[:]]
        out = tracer.result
    want = by_hooks(generator, X, 4, call="generate", edits={"first": lambda out, _: out * 2})
    for one, other in zip(seen, want.outputs["first"]):
        torch.testing.assert_close(one, other)
    torch.testing.assert_close(out, want.result)


def test_every_edit_is_replayed_in_every_step(generator):
    model = NNsight(generator)
    with model.edit() as once:
        model.first.output *= 2
    with once.edit() as twice:
        model.first.output += 1
    with twice.generate(X, 4) as tracer:
        out = tracer.result
    want = by_hooks(generator, X, 4, call="generate", edits={"first": lambda out, _: out * 2 + 1})
    torch.testing.assert_close(out, want.result)


def test_an_edit_of_several_sites_is_replayed_in_every_step(generator):
    model = NNsight(generator)
    with model.edit() as edited:
        kept = model.first.output
        model.second.output = model.second.output + kept
    with edited.generate(X, 3) as tracer:
        out = tracer.result

    def by_hand(x):
        for _ in range(3):
            first = generator.first(x)
            x = torch.tanh(generator.second(torch.tanh(first)) + first)
        return x

    torch.testing.assert_close(out, by_hand(X))


def test_an_edit_that_walks_the_steps_is_not_replayed(generator):
    model = NNsight(generator)
    with model.edit() as edited:
        for step in model.iter[1:3]:
            model.first.output *= step
    with edited.generate(X, 4) as tracer:
        out = tracer.result
    want = by_hooks(generator, X, 4, call="generate", edits={"first": lambda out, n: out * n if n in (1, 2) else None})
    torch.testing.assert_close(out, want.result)


def test_an_edit_that_walks_all_steps_in_a_with(generator):
    model = NNsight(generator)
    with model.edit() as edited:
        with model.all():
            model.first.output *= 2
    with edited.generate(X, 3) as tracer:
        out = tracer.result
    want = by_hooks(generator, X, 3, call="generate", edits={"first": lambda out, _: out * 2})
    torch.testing.assert_close(out, want.result)


def test_an_edit_of_the_result_of_a_generation_happens_once(generator):
    model = NNsight(generator)
    with model.edit() as edited:
        model.first.output *= 2
    out = [edited.trace(X, n, fn="generate", trace=False) for n in (1, 2, 3)]
    for n, one in zip((1, 2, 3), out):
        want = by_hooks(generator, X, n, call="generate", edits={"first": lambda out, _: out * 2}).result
        torch.testing.assert_close(one, want)


def test_an_edited_generation_as_a_plain_call(generator):
    model = NNsight(generator)
    with model.edit() as edited:
        model.first.output *= 2
    want = by_hooks(generator, X, 3, call="generate", edits={"first": lambda out, _: out * 2}).result
    torch.testing.assert_close(edited.generate(X, 3), want)
    torch.testing.assert_close(model.generate(X, 3), generator.generate(X, 3))


def test_an_edit_inside_the_loop_of_a_body(generator):
    model = NNsight(generator)
    with model.edit() as edited:
        model.first.output += 1
    with edited.generate(X, 3) as tracer:
        for step in tracer.iter[:]:
            edited.first.output *= step
        out = tracer.result
    want = by_hooks(generator, X, 3, call="generate", edits={"first": lambda out, n: (out + 1) * n})
    torch.testing.assert_close(out, want.result)


def test_a_site_that_comes_in_some_steps_only(generator):
    class Gated(Generator):
        def __init__(self):
            super().__init__()
            self.gate = torch.nn.Linear(4, 4)

        def generate(self, x, n):
            for step in range(n):
                x = self(x, step == 1)
            return x

        def forward(self, x, gated):
            x = super().forward(x)
            return self.gate(x) if gated else x

    gated = Gated()
    model = NNsight(gated)
    with model.edit() as edited:
        model.gate.output *= 0
    with edited.generate(X, 3) as tracer:
        out = tracer.result
    want = by_hooks(gated, X, 3, call="generate", edits={"gate": lambda out, _: out * 0}).result
    torch.testing.assert_close(out, want)


# -- listing and removing --------------------------------------------------------------------------------------------


def test_edits_are_listed_and_removed(net, model):
    with model.edit(inplace=True, name="zero"):
        model.layers[1].output[:] = 0
    with model.edit(inplace=True):
        model.layers[2].output[:] = 1
    first, second = model.edits
    assert first.name == "zero" and second.name != "zero"
    assert "model.layers[1].output[:] = 0" in first.source
    assert "zero" in repr(first) and __file__ in repr(first)
    model.remove_edit("zero")
    torch.testing.assert_close(
        result_of(model), by_hooks(net, X, edits={"layers.2": lambda out, _: torch.ones_like(out)}).result
    )
    model.remove_edit(second)
    assert len(model.edits) == 0
    torch.testing.assert_close(result_of(model), net(X))


def test_removing_an_edit_that_is_not_there(model):
    with model.edit(inplace=True, name="zero"):
        model.layers[1].output[:] = 0
    with pytest.raises(KeyError, match="zero"):
        model.remove_edit("one")


def test_clearing_the_edits_of_one_reference_leaves_the_others(net, model):
    with model.edit() as once:
        model.layers[1].output[:] = 0
    with once.edit() as twice:
        model.layers[2].output[:] = 0
    once.clear_edits()
    torch.testing.assert_close(result_of(once), net(X))
    both = by_hooks(net, X, edits={f"layers.{n}": lambda out, _: out * 0 for n in (1, 2)}).result
    torch.testing.assert_close(result_of(twice), both)


def test_a_deepcopy_of_an_edited_model_is_edited(net, model):
    with model.edit() as edited:
        edited.layers[1].output[:] = 0
    other = copy.deepcopy(edited)
    assert other._module is not net
    torch.testing.assert_close(result_of(other), zeroed(net))


# -- errors ----------------------------------------------------------------------------------------------------------


def test_an_error_in_an_edit(net, model):
    with model.edit() as edited:
        model.layers[1].output
        raise ValueError("in the edit")
    for run in (lambda: edited(X), lambda: result_of(edited)):
        with pytest.raises(ValueError, match="in the edit"):
            run()
        assert untouched(net)
    with pytest.raises(ValueError, match="in the edit"):
        with edited.trace() as tracer:
            with tracer.invoke(X):
                edited.output
    assert untouched(net)


def test_an_edit_out_of_order_is_an_error(net, model):
    with model.edit(name="backwards") as edited:
        model.layers[2].output
        model.layers[1].output[:] = 0
    with pytest.raises(NNsightError) as caught:
        edited(X)
    assert "backwards" in str(caught.value) and "model.layers.1.output" in str(caught.value)
    assert untouched(net)


def test_an_edit_may_not_leave_the_function(model):
    def run():
        with model.edit() as edited:
            return 1

    with pytest.raises(SourceError, match="return"):
        run()


def test_an_edit_of_another_model_is_an_error(net, model):
    other = NNsight(Stack())
    with model.edit() as edited:
        other.layers[0].output[:] = 0
    with pytest.raises(NNsightError, match="does not belong"):
        edited(X)
    assert untouched(net)


def test_an_edited_models_module_is_plain(net, model):
    with model.edit() as edited:
        model.layers[1].output[:] = 0
    result_of(edited)
    assert untouched(net)
    torch.testing.assert_close(pickle.loads(pickle.dumps(net))(X), net(X))
