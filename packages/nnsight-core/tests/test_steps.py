"""Steps: loops over the rounds of a run, as `for` and as `with`."""

from __future__ import annotations

import warnings

import pytest
import torch
from hooked import Generator, Recurrent, by_hooks, untouched

from nnsight import MissedProviderError, NNsight, NoTraceError, OutOfOrderError, UnmetSiteWarning


@pytest.fixture
def net():
    return Generator()


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


def firsts(net, n, edits=None):
    return by_hooks(net, X, n, call="generate", reads=["first"], edits=edits).outputs["first"]


def equal(got, want):
    assert len(got) == len(want)
    for a, b in zip(got, want):
        torch.testing.assert_close(a, b)


# -- ways to trace a method ------------------------------------------------------------------------------------------


def test_a_method_by_name(net, model):
    with model.trace(X, 3, fn="generate") as tracer:
        out = tracer.result
    assert torch.equal(out, net.generate(X, 3))


def test_a_method_as_a_context(net, model):
    with model.generate(X, n=3) as tracer:
        first = model.first.output
        out = tracer.result
    assert torch.equal(out, net.generate(X, 3))
    assert torch.equal(first, firsts(net, 3)[0])


def test_a_method_as_a_plain_call(net, model):
    out = model.generate(X, 3)
    assert torch.equal(out, net.generate(X, 3))


def test_a_callable(net, model):
    with model.trace(X, fn=lambda x: net(net(x))) as tracer:
        seen = [model.first.output for _ in tracer.iter[:2]]
        out = tracer.result
    assert torch.equal(out, net.generate(X, 2))
    equal(seen, firsts(net, 2))


# -- choosing steps --------------------------------------------------------------------------------------------------

CHOICES = [
    (0, [0]),
    (2, [2]),
    (slice(0, 3), [0, 1, 2]),
    (slice(1, None), [1, 2, 3, 4]),
    (slice(None), [0, 1, 2, 3, 4]),
    (slice(None, None, 2), [0, 2, 4]),
    (slice(1, 4, 2), [1, 3]),
    ([1, 3], [1, 3]),
    ([3, 0, 3], [0, 3]),
    ((2,), [2]),
    (range(1, 3), [1, 2]),
    ([], []),
]


@pytest.mark.parametrize(("selection", "steps"), CHOICES)
def test_steps_in_a_for(net, model, selection, steps):
    seen, numbers = [], []
    with model.generate(X, 5) as tracer:
        for step in tracer.iter[selection]:
            numbers.append(step)
            seen.append(model.first.output)
    assert numbers == steps
    want = firsts(net, 5)
    equal(seen, [want[step] for step in steps])


@pytest.mark.parametrize(("selection", "steps"), CHOICES)
def test_steps_in_a_with(net, model, selection, steps):
    seen, numbers = [], []
    with model.generate(X, 5) as tracer:
        with tracer.iter[selection] as step:
            numbers.append(step)
            seen.append(model.first.output)
    assert numbers == steps
    want = firsts(net, 5)
    equal(seen, [want[step] for step in steps])


@pytest.mark.parametrize("how", ["iter", "all", "slice", "model.all", "model.iter"])
def test_all_steps(net, model, how):
    seen = []
    with model.generate(X, 4) as tracer:
        loops = {
            "iter": lambda: tracer.iter,
            "all": tracer.all,
            "slice": lambda: tracer.iter[:],
            "model.all": model.all,
            "model.iter": lambda: model.iter,
        }
        for _ in loops[how]():
            seen.append(model.first.output)
    equal(seen, firsts(net, 4))


def test_all_as_with(net, model):
    seen = []
    with model.generate(X, 4) as tracer:
        with tracer.all():
            seen.append(model.first.output)
    equal(seen, firsts(net, 4))


@pytest.mark.parametrize("selection", [-1, slice(-2, None), slice(None, -1), [-1, 2], slice(0, 3, -1), slice(0, 3, 0)])
def test_steps_that_cannot_be_counted_are_refused(net, model, selection):
    with pytest.raises(ValueError):
        with model.generate(X, 2) as tracer:
            for _ in tracer.iter[selection]:
                model.first.output
    assert untouched(net)


@pytest.mark.parametrize("selection", ["2", None, 1.5, True])
def test_steps_of_another_kind_are_refused(model, selection):
    with pytest.raises((TypeError, ValueError)):
        with model.generate(X, 2) as tracer:
            for _ in tracer.iter[selection]:
                model.first.output


# -- next ------------------------------------------------------------------------------------------------------------


def test_tracer_next_moves_on(net, model):
    seen = []
    with model.generate(X, 3) as tracer:
        for _ in range(3):
            seen.append(model.first.output)
            tracer.next()
    equal(seen, firsts(net, 3))


def test_module_next_moves_on(net, model):
    with model.generate(X, 3):
        a = model.first.output
        b = model.first.next().output
        c = model.first.next().output
    equal([a, b, c], firsts(net, 3))


def test_next_by_several(net, model):
    with model.generate(X, 4) as tracer:
        a = model.first.output
        tracer.next(3)
        d = model.first.output
    want = firsts(net, 4)
    equal([a, d], [want[0], want[3]])


def test_next_past_the_end_is_an_error(net, model):
    with pytest.raises(MissedProviderError) as caught:
        with model.generate(X, 2) as tracer:
            tracer.next(5)
            model.first.output
    assert "step 5" in str(caught.value) and "2 steps" in str(caught.value)
    assert untouched(net)


def test_without_steps_a_site_means_its_first_visit(net, model):
    with model.generate(X, 3):
        first = model.first.output
        with pytest.raises(OutOfOrderError):
            model.first.input
    assert torch.equal(first, firsts(net, 3)[0])


# -- changing steps --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["for", "with"])
def test_a_change_in_every_step(net, model, form):
    with model.generate(X, 4) as tracer:
        if form == "for":
            for step in tracer.iter[:4]:
                model.first.output *= step
        else:
            with tracer.iter[:4] as step:
                model.first.output *= step
        out = tracer.result
    want = by_hooks(net, X, 4, call="generate", edits={"first": lambda out, visit: out * visit})
    torch.testing.assert_close(out, want.result)


def test_a_change_in_one_step_only(net, model):
    with model.generate(X, 4) as tracer:
        for _ in tracer.iter[2]:
            model.first.output = torch.zeros(2, 4)
        out = tracer.result
    want = by_hooks(net, X, 4, call="generate", edits={"first": lambda out, visit: out * 0 if visit == 2 else None})
    torch.testing.assert_close(out, want.result)


def test_skipping_in_some_steps(net, model):
    with model.generate(X, 4) as tracer:
        for _ in tracer.iter[1:3]:
            model.first.skip(torch.ones(2, 4))
        out = tracer.result
    want = by_hooks(
        net, X, 4, call="generate", edits={"first": lambda out, visit: torch.ones(2, 4) if visit in (1, 2) else None}
    )
    torch.testing.assert_close(out, want.result)


def test_several_sites_in_one_step(net, model):
    seen = []
    with model.generate(X, 3) as tracer:
        for _ in tracer.iter[:]:
            seen.append((model.first.output, model.second.input, model.output))
    want = by_hooks(net, X, 3, call="generate", reads=["first", "second"])
    equal([one for one, _, _ in seen], want.outputs["first"])
    equal([two for _, two, _ in seen], [given[0] for given in want.inputs["second"]])
    torch.testing.assert_close(seen[-1][2], want.result)


def test_stop_in_a_step(net, model):
    calls = []
    handle = net.register_forward_pre_hook(lambda *_: calls.append(1))
    seen = []
    with model.generate(X, 10) as tracer:
        for step in tracer.iter[:]:
            seen.append(model.first.output)
            if step == 2:
                tracer.stop()
    handle.remove()
    assert len(seen) == len(calls) == 3
    assert untouched(net)


def test_break_leaves_the_loop_and_the_run_goes_on(net, model):
    with model.generate(X, 4) as tracer:
        for step in tracer.iter[:]:
            seen = model.first.output
            if step == 1:
                break
        out = tracer.result
    torch.testing.assert_close(seen, firsts(net, 4)[1])
    assert torch.equal(out, net.generate(X, 4))


def test_continue_and_conditions(net, model):
    seen = {}
    with model.generate(X, 4) as tracer:
        for step in tracer.iter[:]:
            if step % 2:
                continue
            seen[step] = model.first.output
    want = firsts(net, 4)
    assert list(seen) == [0, 2]
    equal([seen[0], seen[2]], [want[0], want[2]])


def test_one_loop_after_another(net, model):
    with model.generate(X, 5) as tracer:
        early = [model.first.output for _ in tracer.iter[:2]]
        late = [model.first.output for _ in tracer.iter[3:]]
    want = firsts(net, 5)
    equal(early, want[:2])
    equal(late, want[3:])


def test_a_loop_over_steps_that_have_passed_is_an_error(net, model):
    with pytest.raises(OutOfOrderError, match="Step 0 has been passed"):
        with model.generate(X, 5) as tracer:
            for _ in tracer.iter[2]:
                model.first.output
            for _ in tracer.iter[:2]:
                model.first.output
    assert untouched(net)


def test_within_a_step_order_counts(net, model):
    with pytest.raises(OutOfOrderError) as caught:
        with model.generate(X, 3) as tracer:
            for _ in tracer.iter[:]:
                model.second.output
                model.first.output
    assert "model.first.output" in str(caught.value)


# -- the end ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["for", "with", "all"])
def test_code_after_an_unbounded_loop_runs(net, model, form):
    seen = []
    with model.generate(X, 3) as tracer:
        if form == "for":
            for _ in tracer.iter[:]:
                seen.append(model.first.output)
        elif form == "with":
            with tracer.iter[:]:
                seen.append(model.first.output)
        else:
            for _ in tracer.all():
                seen.append(model.first.output)
        after = len(seen)
        out = tracer.result
    assert after == 3
    assert torch.equal(out, net.generate(X, 3))


@pytest.mark.parametrize("form", ["for", "with"])
def test_a_loop_that_reads_nothing_ends(net, model, form):
    rounds = 0
    with model.generate(X, 3) as tracer:
        if form == "for":
            for _ in tracer.iter[:]:
                rounds += 1
        else:
            with tracer.iter[:]:
                rounds += 1
        out = tracer.result
    assert rounds == 3
    assert torch.equal(out, net.generate(X, 3))


def test_a_loop_that_outruns_the_run_warns_once_and_ends(net, model):
    seen = []
    with pytest.warns(UnmetSiteWarning) as caught:
        with model.generate(X, 3) as tracer:
            for _ in tracer.iter[:10]:
                seen.append(model.first.output)
            after = tracer.result
    equal(seen, firsts(net, 3))
    assert torch.equal(after, net.generate(X, 3))
    (warning,) = caught
    assert "step 3" in str(warning.message) and "3 steps" in str(warning.message)
    assert warning.filename == __file__


def test_a_with_that_outruns_the_run_warns_once_and_ends(net, model):
    seen = []
    with pytest.warns(UnmetSiteWarning) as caught:
        with model.generate(X, 2) as tracer:
            with tracer.iter[:4]:
                seen.append(model.first.output)
            after = "ran"
    assert len(seen) == 2 and after == "ran"
    assert len(caught) == 1 and "2 steps" in str(caught[0].message)
    assert caught[0].filename == __file__


class Ending(Generator):
    """Stops early, like a model that has come to the end of its text."""

    def generate(self, x, n, end):
        for step in range(n):
            if step == end:
                break
            x = self(x)
        return x


def test_an_early_end_is_the_end_of_an_open_loop():
    net = Ending()
    model = NNsight(net)
    seen = []
    with model.generate(X, 10, end=4) as tracer:
        for _ in tracer.iter[:]:
            seen.append(model.first.output)
        out = tracer.result
    assert len(seen) == 4
    assert torch.equal(out, net.generate(X, 10, 4))


def test_a_site_that_only_some_steps_have(net):
    class Gated(Generator):
        def __init__(self):
            super().__init__()
            self.gate = torch.nn.Linear(4, 4)

        def generate(self, x, n):
            for step in range(n):
                x = self(x, step % 2 == 1)
            return x

        def forward(self, x, gated):
            x = super().forward(x)
            return self.gate(x) if gated else x

    gated = Gated()
    model = NNsight(gated)
    seen = []
    with model.generate(X, 4) as tracer:
        for step in tracer.iter[:]:
            if step % 2:
                seen.append(model.gate.output)
    equal(seen, by_hooks(gated, X, 4, call="generate", reads=["gate"]).outputs["gate"])


# -- several visits in one step --------------------------------------------------------------------------------------


class Twice(Generator):
    def forward(self, x):
        return super().forward(super().forward(x))


def test_a_step_gives_the_first_visit_in_it():
    net = Twice()
    model = NNsight(net)
    seen = []
    with model.generate(X, 3) as tracer:
        for _ in tracer.iter[:]:
            seen.append(model.first.output)
    want = by_hooks(net, X, 3, call="generate", reads=["first"]).outputs["first"]
    assert len(want) == 6
    equal(seen, want[::2])


# -- a single forward: rounds are visits -----------------------------------------------------------------------------


@pytest.fixture
def recurrent():
    return Recurrent(visits=4)


@pytest.mark.parametrize(("selection", "visits"), [(0, [0]), (2, [2]), (slice(1, 3), [1, 2]), ([0, 3], [0, 3])])
@pytest.mark.parametrize("form", ["for", "with"])
def test_visits_of_a_recurrent_module(recurrent, selection, visits, form):
    model = NNsight(recurrent)
    seen = []
    with model.trace(X) as tracer:
        if form == "for":
            for _ in tracer.iter[selection]:
                seen.append(model.cell.output)
        else:
            with tracer.iter[selection]:
                seen.append(model.cell.output)
    want = by_hooks(recurrent, X, reads=["cell"]).outputs["cell"]
    equal(seen, [want[visit] for visit in visits])


@pytest.mark.parametrize("form", ["for", "with"])
def test_every_visit_of_a_recurrent_module_and_the_code_after(recurrent, form):
    model = NNsight(recurrent)
    cells, inners = [], []
    with model.trace(X) as tracer:
        if form == "for":
            for _ in tracer.iter[:]:
                cells.append(model.cell.output)
                inners.append(model.inner.output)
        else:
            with tracer.iter[:]:
                cells.append(model.cell.output)
                inners.append(model.inner.output)
        out = tracer.result
    want = by_hooks(recurrent, X, reads=["cell", "inner"])
    equal(cells, want.outputs["cell"])
    equal(inners, want.outputs["inner"])
    assert torch.equal(out, want.result)


def test_a_change_at_every_visit(recurrent):
    model = NNsight(recurrent)
    with model.trace(X) as tracer:
        for visit in tracer.iter[:4]:
            model.cell.output = model.cell.output + visit
        out = model.output
    want = by_hooks(recurrent, X, edits={"cell": lambda out, visit: out + visit}).result
    torch.testing.assert_close(out, want)


def test_next_visit_of_a_recurrent_module(recurrent):
    model = NNsight(recurrent)
    with model.trace(X):
        a = model.cell.output
        b = model.cell.next().output
        c = model.cell.next().output
    equal([a, b, c], by_hooks(recurrent, X, reads=["cell"]).outputs["cell"][:3])


def test_a_loop_that_outruns_the_visits_warns(recurrent):
    model = NNsight(recurrent)
    seen = []
    with pytest.warns(UnmetSiteWarning, match="4 steps") as caught:
        with model.trace(X) as tracer:
            for _ in tracer.iter[:7]:
                seen.append(model.cell.output)
            after = tracer.result
    assert len(seen) == 4 and len(caught) == 1
    assert torch.equal(after, recurrent(X))


@pytest.mark.parametrize("form", ["for", "with"])
def test_a_loop_in_a_single_forward_that_reads_nothing_ends(recurrent, form):
    model = NNsight(recurrent)
    rounds = 0
    with model.trace(X) as tracer:
        if form == "for":
            for _ in tracer.iter[:]:
                rounds += 1
        else:
            with tracer.iter[:]:
                rounds += 1
        out = tracer.result
    assert rounds == 1
    assert torch.equal(out, recurrent(X))


def test_an_open_loop_over_a_site_that_is_visited_once(recurrent):
    model = NNsight(recurrent)
    with model.trace(X) as tracer:
        seen = [model.head.output for _ in tracer.iter[:]]
        after = "ran"
    assert len(seen) == 1 and after == "ran"


# -- in invokes ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["for", "with"])
def test_loops_in_invokes(net, model, form):
    a, b = rows(1, 1), rows(2, 2)
    ones, twos = [], []
    with model.trace(fn="generate") as tracer:
        with tracer.invoke(a, n=3):
            if form == "for":
                for step in tracer.iter[:]:
                    model.first.output *= step
                    ones.append(model.second.output)
            else:
                with tracer.iter[:] as step:
                    model.first.output *= step
                    ones.append(model.second.output)
            one = tracer.result
        with tracer.invoke(b, n=3):
            for _ in tracer.iter[1:]:
                twos.append(model.second.output)
            two = tracer.result
    want_a = by_hooks(net, a, 3, call="generate", reads=["second"], edits={"first": lambda out, n: out * n})
    want_b = by_hooks(net, b, 3, call="generate", reads=["second"])
    equal(ones, want_a.outputs["second"])
    equal(twos, want_b.outputs["second"][1:])
    torch.testing.assert_close(one, want_a.result)
    torch.testing.assert_close(two, want_b.result)


def test_a_captured_loop_in_an_invoke_writes_its_names_back(model):
    with model.trace(fn="generate") as tracer:
        with tracer.invoke(rows(1, 1), n=3):
            total = 0
            with tracer.iter[:] as step:
                total += step
                last = step
                model.first.output
            inside = (total, last)
        with tracer.invoke(rows(1, 2), n=3):
            pass
    assert inside == (3, 2) == (total, last)


def test_captured_loops_write_their_names_back(model):
    count, kept = 10, []
    with model.generate(X, 3) as tracer:
        with tracer.iter[:] as step:
            count += 1
            squares = [step**2 for _ in range(2)]
            kept.append((lambda: count + step)())
    assert count == 13 and squares == [4, 4] and kept == [11, 13, 15]


def test_an_error_in_a_captured_loop(net, model):
    with pytest.raises(ZeroDivisionError):
        with model.generate(X, 3) as tracer:
            with tracer.iter[:] as step:
                model.first.output
                1 / (1 - step)
    assert step == 1
    assert untouched(net)


def test_a_loop_of_the_whole_batch_beside_invokes(net, model):
    a, b = rows(1, 1), rows(1, 2)
    seen = []
    with model.trace(fn="generate") as tracer:
        with tracer.invoke(a, n=2):
            pass
        with tracer.invoke(b, n=2):
            pass
        with tracer.invoke():
            for _ in tracer.iter[:]:
                seen.append(model.first.output)
    equal(seen, by_hooks(net, torch.cat([a, b]), 2, call="generate", reads=["first"]).outputs["first"])


def test_invokes_that_walk_different_steps(net, model):
    a, b = rows(1, 1), rows(1, 2)
    with model.trace(fn="generate") as tracer:
        with tracer.invoke(a, n=4):
            ones = [model.first.output for _ in tracer.iter[[0, 2]]]
        with tracer.invoke(b, n=4):
            twos = [model.first.output for _ in tracer.iter[[1, 3]]]
    want = by_hooks(net, torch.cat([a, b]), 4, call="generate", reads=["first"]).outputs["first"]
    equal(ones, [want[0][:1], want[2][:1]])
    equal(twos, [want[1][1:], want[3][1:]])


def test_an_outrunning_loop_in_an_invoke_warns_and_goes_on(model):
    with pytest.warns(UnmetSiteWarning, match="2 steps") as caught:
        with model.trace(fn="generate") as tracer:
            with tracer.invoke(rows(1, 1), n=2):
                for _ in tracer.iter[:5]:
                    model.first.output
                after = "ran"
            with tracer.invoke(rows(1, 2), n=2):
                other = tracer.result
    assert after == "ran" and other.shape == (1, 4) and len(caught) == 1


def test_visits_in_invokes(recurrent):
    model = NNsight(recurrent)
    a, b = rows(1, 1), rows(2, 2)
    with model.trace() as tracer:
        with tracer.invoke(a):
            for visit in tracer.iter[:]:
                model.cell.output *= visit
            one = tracer.result
        with tracer.invoke(b):
            seen = [model.cell.output for _ in tracer.iter[1:3]]
            two = tracer.result
    torch.testing.assert_close(one, by_hooks(recurrent, a, edits={"cell": lambda out, visit: out * visit}).result)
    want = by_hooks(recurrent, b, reads=["cell"])
    equal(seen, want.outputs["cell"][1:3])
    torch.testing.assert_close(two, want.result)


# -- elsewhere -------------------------------------------------------------------------------------------------------


def test_steps_outside_a_trace_are_refused(net, model):
    with model.trace(X, 2, fn="generate") as tracer:
        pass
    with pytest.raises(NoTraceError):
        for _ in tracer.iter[:]:
            pass
    with pytest.raises(NoTraceError):
        model.next()
    with pytest.raises(NoTraceError):
        tracer.result


def test_a_loop_as_with_may_not_leave_the_function(model):
    def run():
        with model.generate(X, 2) as tracer:
            with tracer.iter[:]:
                return 1

    with pytest.raises(RuntimeError, match="return"):
        run()


def test_a_loop_as_for_may_leave_the_function(net, model):
    def run():
        with model.generate(X, 3) as tracer:
            for step in tracer.iter[:]:
                if step == 1:
                    return model.first.output
        return None

    torch.testing.assert_close(run(), firsts(net, 3)[1])
    assert untouched(net)


def test_a_generator_of_steps(net, model):
    def walk():
        with model.generate(X, 3) as tracer:
            for _ in tracer.iter[:]:
                yield model.first.output

    equal(list(walk()), firsts(net, 3))
    walking = walk()
    next(walking)
    walking.close()
    assert untouched(net)
