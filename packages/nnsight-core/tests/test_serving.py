"""Runs that share the forwards of an engine: `nnsight._core.serving`, on an engine of a few lines."""

from __future__ import annotations

import copy
import sys
import traceback
import warnings

import pytest
import torch
from toy_engine import Network, Patient, Served, ToyEngine

import nnsight
from nnsight import InvokeError, NNsight, NoInputError, NoTraceError, OutOfOrderError
from nnsight._core.serving.printed import Printing
from nnsight.plugin import (
    Forwards,
    PlainLayout,
    WireError,
    decode_bodies,
    decode_edits,
    decode_request,
    decode_results,
    encode_edits,
    encode_error,
    encode_request,
    encode_results,
    inspect_bytes,
)


@pytest.fixture
def module():
    torch.manual_seed(0)
    return Network()


@pytest.fixture
def engine(module):
    return ToyEngine(module)


@pytest.fixture
def model(engine):
    return Served(engine)


@pytest.fixture
def prompts():
    torch.manual_seed(1)
    return torch.randn(3, 4), torch.randn(1, 4), torch.randn(5, 4)


def alone(module, x, steps=3, first=lambda value: value, second=lambda value: value):
    """What a request gives by itself, with its layers changed: (first, second, output) of each step."""
    seen = []
    with torch.no_grad():
        for _ in range(steps):
            a = first(module.first(x))
            b = second(module.second(torch.tanh(a)))
            seen.append((a, b, a + b))
            x = (a + b)[-1:]
    return seen


def same(ours, theirs):
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs):
        torch.testing.assert_close(one, other)


def test_each_request_sees_its_own_rows_of_every_step_whatever_else_is_in_the_batch(model, module, engine, prompts):
    with model.trace() as tracer:
        seen = nnsight.save([[], [], []])
        for number, x in enumerate(prompts):
            with tracer.invoke(x):
                for _ in tracer.iter[:]:
                    seen[number].append((model.first.output, model.second.output, model.output))
    for got, x in zip(seen, prompts):
        for ours, theirs in zip(got, alone(module, x)):
            same(ours, theirs)
        assert len(got) == 3
    assert max(engine.batches) > 5  # they were together
    assert not engine.forwards.tapped and "forward" not in vars(module.first)


def test_a_write_reaches_its_own_request_and_no_other(model, module, prompts):
    a, b, c = prompts
    with model.trace() as tracer:
        with tracer.invoke(a):
            for _ in tracer.iter[:]:
                model.first.output[:] += 1
            first = nnsight.save(tracer.result)
        with tracer.invoke(b):
            second = nnsight.save(tracer.result)
        with tracer.invoke(c):
            for _ in tracer.iter[:]:
                model.second.output = model.second.output * 2
            third = nnsight.save(tracer.result)
    torch.testing.assert_close(first, alone(module, a, first=lambda v: v + 1)[-1][2][-1:])
    torch.testing.assert_close(second, alone(module, b)[-1][2][-1:])
    torch.testing.assert_close(third, alone(module, c, second=lambda v: v * 2)[-1][2][-1:])


def test_what_a_body_keeps_is_not_written_over_and_an_edit_in_place_counts(model, module, prompts):
    with model.trace(prompts[0]):
        value = model.first.output
        value[0] = 7
        model.second.output
        value[1] = 9  # the engine has gone on: this is the body's own
        kept = value.save()
        output = model.output.save()
    wanted = alone(module, prompts[0], first=lambda v: torch.cat([torch.full((1, 4), 7.0), v[1:]]))[0]
    torch.testing.assert_close(output, wanted[2])
    torch.testing.assert_close(kept[0], torch.full((4,), 7.0))
    torch.testing.assert_close(kept[1], torch.full((4,), 9.0))
    torch.testing.assert_close(kept[2], wanted[0][2])


def test_inputs_can_be_read_and_replaced_and_modules_skipped(model, module, prompts):
    with model.trace() as tracer:
        with tracer.invoke(prompts[0]):
            given = model.second.input.save()
            model.second.input = torch.zeros_like(given)
            first = model.output.save()
        with tracer.invoke(prompts[2]):
            for _ in tracer.iter[:]:
                model.second.skip(model.second.input)
            second = nnsight.save(tracer.result)
    (a, _, _), *_ = alone(module, prompts[0], steps=1)
    torch.testing.assert_close(given, torch.tanh(a))
    torch.testing.assert_close(first, a + module.second.bias.detach())
    torch.testing.assert_close(second, _skipping(module, prompts[2]))


def _skipping(module, x):
    with torch.no_grad():
        for _ in range(3):
            a = module.first(x)
            x = (a + torch.tanh(a))[-1:]
    return x


def test_steps_are_counted_for_each_request_by_itself(model, module, prompts):
    with model.trace() as tracer:
        with tracer.invoke(prompts[0]):
            for _ in tracer.iter[1:]:
                first = model.first.output.save()
                break
        with tracer.invoke(prompts[1]):
            counted = nnsight.save([])
            for step in tracer.iter[:]:
                counted.append(step)
            after = nnsight.save("after the loop")
        with tracer.invoke(prompts[2]):
            third = model.next(2).first.output.save()
    torch.testing.assert_close(first, alone(module, prompts[0])[1][0])
    assert counted == [0, 1, 2] and after == "after the loop"
    torch.testing.assert_close(third, alone(module, prompts[2])[2][0])


def test_what_an_engine_computes_with_the_model_for_itself_is_nobodys(model, module, engine, prompts):
    engine.curious = True
    with model.trace(prompts[0]) as tracer:
        cache = tracer.cache(modules=[model.first])
        seen = [model.first.output for _ in tracer.iter[:]].save()
    wanted = [a for a, _, _ in alone(module, prompts[0])]
    same(seen, wanted)
    same([entry.output for entry in cache["model.first"]], wanted)


def test_an_error_ends_its_own_request_with_its_own_type_and_line(model, module, engine, prompts):
    done = []
    finish = engine.forwards.let_go
    engine.forwards.let_go = lambda run: (done.append(run), finish(run))
    with pytest.raises(ZeroDivisionError) as caught:
        with model.trace() as tracer:
            with tracer.invoke(prompts[0]):
                model.first.output
                1 / 0  # noqa: B018
            with tracer.invoke(prompts[2]):
                for _ in tracer.iter[:]:
                    model.second.output[:] = 0
    assert "1 / 0" in str(caught.traceback[-1].statement)
    assert {run.step for run in done} == {0, 2}  # the other went on to its end
    with model.trace(prompts[0]):
        again = model.output.save()
    torch.testing.assert_close(again, alone(module, prompts[0])[0][2])


def test_stopping_ends_its_own_request_and_no_other(model, module, engine, prompts):
    with model.trace() as tracer:
        with tracer.invoke(prompts[0]):
            first = model.first.output.save()
            tracer.stop()
        with tracer.invoke(prompts[2]):
            second = nnsight.save(tracer.result)
    torch.testing.assert_close(first, alone(module, prompts[0])[0][0])
    torch.testing.assert_close(second, alone(module, prompts[2])[-1][2][-1:])
    assert engine.batches == [3, 1, 5, 1, 1][: len(engine.batches)] or sum(engine.batches) == 3 + 5 + 1 + 1


@pytest.mark.parametrize("what", ["shape", "kind", "late"])
def test_a_write_that_does_not_fit_is_the_error_of_the_line_that_wrote(what, model, prompts):
    expected = {"shape": nnsight.RowsError, "kind": nnsight.RowsError, "late": OutOfOrderError}[what]
    with pytest.raises(expected):
        with model.trace() as tracer:
            with tracer.invoke(prompts[0]):
                if what == "shape":
                    model.first.output = torch.zeros(2, 4)
                elif what == "kind":
                    model.first.output = "no tensor"
                else:
                    model.second.output
                    model.first.output = torch.zeros(3, 4)
            with tracer.invoke(prompts[1]):
                model.output.save()


def test_values_pass_from_one_request_to_another_that_comes_later(model, module, prompts):
    with model.trace() as tracer:
        with tracer.invoke(prompts[0]):
            vector = model.first.output[-1]
        with tracer.invoke(prompts[1]):
            for _ in tracer.iter[0:1]:
                model.first.output = vector[None]
            output = model.output.save()
    (a, _, _), *_ = alone(module, prompts[0], steps=1)
    torch.testing.assert_close(output, alone(module, prompts[1], 1, first=lambda _: a[-1:])[0][2])


def test_what_a_body_edits_where_another_let_it_go_on_reaches_the_model(model, module, prompts):
    a, _, c = prompts
    with model.trace() as tracer:
        with tracer.invoke(a):
            for _ in tracer.iter[1:2]:  # in the forward in which the other begins
                vector = model.first.output[-1]
        with tracer.invoke(c):
            model.first.output[-1] = vector  # it waits for the name, not for the place
            output = model.output.save()
    (given, _, _) = alone(module, a)[1]

    def patch(value):
        return torch.cat([value[:-1], given[-1:]])

    torch.testing.assert_close(output, alone(module, c, 1, first=patch)[0][2])


class Drawn(Served):
    """Takes `n=`, as often as an input is to be served."""

    def _has_input(self, inputs, kwargs):
        return bool(inputs)

    def _prepare_input(self, x, n=1):
        return (x,), {}, n

    def _requests(self, prepared):
        args, kwargs, n = prepared
        return [((args[0] + number,), kwargs, 1) for number in range(n)]


def test_a_body_runs_once_for_each_request_of_its_input_and_its_names_are_lists(engine, module, prompts):
    model = Drawn(engine)
    with model.trace() as tracer:
        shapes = nnsight.save([])
        with tracer.invoke(prompts[0], n=3):
            first = model.first.output.save()
            shapes.append(len(first))
        with tracer.invoke(prompts[1]):
            second = model.first.output.save()
            shapes.append(len(second))
    assert len(first) == 3 and sorted(shapes) == [1, 3, 3, 3]
    for number, one in enumerate(first):
        torch.testing.assert_close(one, alone(module, prompts[0] + number)[0][0])
    torch.testing.assert_close(second, alone(module, prompts[1])[0][0])


def test_a_name_that_some_of_the_requests_save_is_none_for_the_others(engine, prompts):
    with Drawn(engine).trace(prompts[1], n=2) as tracer:
        total = tracer.model.first.input.sum()
        if total > prompts[1].sum() + 1:
            larger = total.save()
    assert larger[0] is None and larger[1] == (prompts[1] + 1).sum()


def test_which_of_several_values_another_invoke_means_is_not_guessed(engine, prompts):
    model = Drawn(engine)
    with pytest.raises(nnsight.CrossInvokeError, match="several continuations"):
        with model.trace() as tracer:
            with tracer.invoke(prompts[0], n=2):
                vector = model.first.output[-1]
            with tracer.invoke(prompts[1]):
                for _ in tracer.iter[0:1]:
                    model.first.output = vector[None]


def test_what_a_trace_is_given_holds_for_its_invokes_unless_they_say_otherwise(engine, prompts):
    model = Drawn(engine)
    with model.trace(n=2) as tracer:
        with tracer.invoke(prompts[0]):
            both = model.first.output.save()
        with tracer.invoke(prompts[0], n=1):
            one = model.first.output.save()
    assert len(both) == 2 and torch.is_tensor(one)


def test_requests_meet_at_a_barrier(model, prompts):
    with model.trace() as tracer:
        order = nnsight.save([])
        barrier = tracer.barrier(2)
        with tracer.invoke(prompts[0]):
            for _ in tracer.iter[1:]:
                order.append("first")
                barrier()
                order.append("first goes on")
                break
        with tracer.invoke(prompts[1]):
            order.append("second")
            barrier()
    assert sorted(order[:2]) == ["first", "second"] and order[2] == "first goes on"


def test_a_cache_keeps_copies_of_its_own_request(model, module, prompts):
    with model.trace() as tracer:
        with tracer.invoke(prompts[0]):
            cache = tracer.cache(include_inputs=True)
        with tracer.invoke(prompts[1]):
            model.output.save()
    wanted = alone(module, prompts[0])
    assert len(cache["model.first"]) == 3
    for entry, (a, _, _) in zip(cache["model.first"], wanted):
        torch.testing.assert_close(entry.output, a)
    torch.testing.assert_close(cache["model.second"][0].input, torch.tanh(wanted[0][0]))


def test_edits_of_the_model_hold_for_all_of_its_requests(model, module, prompts):
    with model.edit() as edited:
        edited.first.output[:] += 1
    with edited.trace() as tracer:
        with tracer.invoke(prompts[0]):
            first = nnsight.save(tracer.result)
        with tracer.invoke(prompts[1]):
            second = nnsight.save(tracer.result)
    for got, x in ((first, prompts[0]), (second, prompts[1])):
        torch.testing.assert_close(got, alone(module, x, first=lambda v: v + 1)[-1][2][-1:])


def test_operations_inside_a_forward_are_served_as_modules_are(model, module, prompts):
    with model.trace() as tracer:
        with tracer.invoke(prompts[0]):
            inside = model.source.torch_tanh_0.output.save()
        with tracer.invoke(prompts[2]):
            model.source.torch_tanh_0.output[:] = 0
            second = model.output.save()
    torch.testing.assert_close(inside, torch.tanh(alone(module, prompts[0])[0][0]))
    torch.testing.assert_close(second, alone(module, prompts[2])[0][0] + module.second.bias.detach())


def test_only_what_was_saved_comes_back(model, prompts):
    with model.trace(prompts[0]):
        model.first.output  # noqa: B018
        unsaved = 5
        saved = nnsight.save(unsaved + 1)
    assert saved == 6
    with pytest.raises(NameError):
        unsaved  # noqa: B018


def test_a_turn_that_takes_too_long_ends_its_own_request(module, prompts):
    model = Served(ToyEngine(module, turn_seconds=0.3))
    with pytest.raises(TimeoutError, match="had its turn for more than 0.3 s"):
        with model.trace() as tracer:
            with tracer.invoke(prompts[0]):
                while True:
                    pass
            with tracer.invoke(prompts[1]):
                model.output.save()
    with pytest.raises(TimeoutError):
        with model.trace(prompts[0]):
            for _ in range(3):
                try:
                    while True:
                        pass
                except BaseException:  # noqa: S112
                    continue
    with model.trace(prompts[0]):
        output = model.output.save()
    torch.testing.assert_close(output, alone(module, prompts[0])[0][2])


def test_what_an_engine_cannot_do_is_refused(model, prompts):
    with pytest.raises(NoInputError, match="as a request of its own"):
        with model.trace() as tracer:
            with tracer.invoke(prompts[0]):
                model.output.save()
            with tracer.invoke():
                model.output.save()
    with pytest.raises(NoTraceError, match="in the invoke whose values"):
        with model.trace() as tracer:
            tracer.cache()
            with tracer.invoke(prompts[0]):
                model.output.save()
    with pytest.raises(InvokeError):
        with model.trace(prompts[0]) as tracer:
            with tracer.invoke(prompts[0]):
                model.output.save()


def test_a_model_that_is_served_is_left_as_it_was(model, module, prompts):
    before = copy.deepcopy(module.state_dict())
    for _ in range(2):
        with model.trace(prompts[0]):
            model.first.output[:] = 0
    assert all(torch.equal(before[name], tensor) for name, tensor in module.state_dict().items())
    assert not any("forward" in vars(part) for part in module.modules())


class Elsewhere:
    """Runs a block as a server would that has the engine: read from bytes, on a model of its own."""

    def __init__(self, engine):
        self.model = Served(engine)

    def run(self, request):
        return decode_results(encode_results(decode_request(encode_request(request), self.model).replay()))


def doubled(value):
    return value * 2


def test_a_trace_that_comes_from_elsewhere_runs_in_the_engine_as_it_was_written(model, module, engine, prompts):
    with model.trace(prompts[0], backend=Elsewhere(engine)) as tracer:
        seen = nnsight.save([])
        for _ in tracer.iter[:]:
            seen.append(doubled(model.first.output))
        result = nnsight.save(tracer.result)
        unsaved = seen[0] + 1  # noqa: F841
    same(seen, [doubled(first) for first, _, _ in alone(module, prompts[0])])
    same([result], [alone(module, prompts[0])[-1][2]])
    assert "unsaved" not in locals()


def test_invokes_that_come_from_elsewhere_share_what_was_saved_around_them(model, module, engine, prompts):
    with model.trace(backend=Elsewhere(engine)) as tracer:
        seen = nnsight.save({})
        for number, x in enumerate(prompts):
            with tracer.invoke(x):
                seen[number] = model.first.output
                if number == 1:
                    own = (model.second.output * 1).save()
    for number, x in enumerate(prompts):
        same([seen[number]], [alone(module, x)[0][0]])
    same([own], [alone(module, prompts[1])[0][1]])


def test_a_session_elsewhere_hands_values_of_one_trace_to_the_next(model, module, engine, prompts):
    with model.session(backend=Elsewhere(engine)):
        kept = nnsight.save([])
        with model.trace(prompts[0]):
            first = model.first.output[-1:].save()
        with model.trace(prompts[1]):
            model.first.output[:] = first
            second = model.second.output.save()
            kept.append(doubled(model.output))
    changed = alone(module, prompts[1], first=lambda _: alone(module, prompts[0])[0][0][-1:])[0]
    same([first, second], [alone(module, prompts[0])[0][0][-1:], changed[1]])
    same(kept, [doubled(changed[2])])


def test_a_class_that_came_with_a_block_goes_on_to_the_engine(model, module, engine, prompts):
    around = 3

    class Scaled:
        by = around

        def __init__(self, value):
            self.value = value * self.by * around

    class MineError(KeyError):
        pass

    with model.trace(prompts[0], backend=Elsewhere(engine)):
        seen = Scaled(model.first.output).value.save()
    same([seen], [alone(module, prompts[0])[0][0] * 9])
    with pytest.raises(KeyError, match="3"):
        with model.trace(prompts[0], backend=Elsewhere(engine)):
            raise MineError(len(model.first.output))


def test_an_error_in_a_block_that_comes_from_elsewhere_has_its_type_and_line(model, engine, prompts):
    with pytest.raises(ZeroDivisionError) as caught:
        with model.trace(prompts[0], backend=Elsewhere(engine)):
            model.first.output.sum()
            1 / 0  # noqa: B018
    assert "1 / 0" in "".join(traceback.format_exception(caught.value))


def test_a_standing_edit_changes_every_step_of_requests_with_a_body_and_without(model, module, engine, prompts):
    vector = torch.arange(4.0)
    with model.edit() as steered:
        model.first.output[:] += vector
    with steered.edit() as both:
        both.second.output = both.second.output * 2
    engine.install(encode_edits(both))
    wanted = alone(module, prompts[0], first=lambda v: v + vector, second=lambda v: v * 2)
    run, given = engine.run(prompts[0])
    torch.testing.assert_close(given, wanted[-1][2][-1:])
    assert run.failure is None and len(run.bodies) < 6  # of three steps and two edits
    with model.trace(prompts[0]) as tracer:
        seen = [(model.first.output, model.second.output, model.output) for _ in tracer.iter[:]].save()
    for ours, theirs in zip(seen, wanted):
        same(ours, theirs)
    engine.standing = ()
    _, given = engine.run(prompts[0])
    torch.testing.assert_close(given, alone(module, prompts[0])[-1][2][-1:])
    assert not engine.forwards.tapped


def test_a_standing_edit_that_raises_ends_its_own_request(model, module, engine, prompts):
    with model.edit() as broken:
        raise KeyError(model.first.output.shape[0])
    engine.install(encode_edits(broken))
    run, _ = engine.run(prompts[0])
    assert isinstance(run.failure, KeyError) and run.failure.args == (3,)
    engine.standing = ()
    torch.testing.assert_close(engine.run(prompts[0])[1], alone(module, prompts[0])[-1][2][-1:])


def test_edits_are_written_of_what_has_some_and_read_from_bytes_that_hold_some(model, module, prompts):
    with pytest.raises(ValueError, match="has no edits"):
        encode_edits(model)
    with model.edit() as steered:
        model.first.output[:] = 0
    data = encode_edits(steered)
    assert inspect_bytes(data)["kind"] == "edits"
    assert len(decode_edits(data, NNsight(module))) == 1
    with pytest.raises(WireError, match="error"):
        decode_edits(encode_error(ValueError("no")), NNsight(module))


def test_what_bodies_print_is_kept_for_who_sent_them_and_what_others_print_is_not(capsys, module, prompts):
    forwards, heard = Forwards(NNsight(module)), {}
    model = Served(ToyEngine(module))

    class Heard:
        def serve(self, bodies, inputs):
            sent = decode_bodies(bodies, model)
            sent.hear()
            print("of this process")
            runs = {sent.begin(number, forwards): (number, 1) for number in range(len(inputs))}
            with torch.inference_mode(), forwards.forward(runs, PlainLayout(len(inputs))):
                module(torch.cat([args[0][:1] for args, _, _ in inputs]))
            heard["first"] = sent.heard()
            for run in runs:
                run.finish(None)
            heard["then"] = sent.heard()
            return [sent.saved(number) for number in range(len(inputs))]

    model.__dict__["engine"] = Heard()
    before = sys.stdout, sys.stderr
    try:
        with model.trace() as tracer:
            for number in range(2):
                with tracer.invoke(prompts[number]):
                    print(number, "began")
                    model.second.output  # noqa: B018
                    print(number, "saw it", file=sys.stderr)
                    tracer.result  # noqa: B018
                    tracer.log(number, "is done")
    finally:
        sys.stdout, sys.stderr = before
    assert "0 began\n1 began\n" in heard["first"] and "0 saw it" in heard["first"] and "1 saw it" in heard["first"]
    assert heard["then"] == "0 is done\n1 is done\n"
    said = capsys.readouterr()
    assert (said.out, said.err) == ("of this process\n", "")


def test_an_engine_that_does_not_wait_leaves_what_is_under_way_and_names_are_bound_when_it_is_done(
    module, engine, prompts
):
    model = Served(Patient(engine))
    with model.trace(prompts[0]) as tracer:
        hidden = model.first.output.save()
    with pytest.raises(NameError):
        hidden  # noqa: B018
    (saved,) = tracer.backend()
    torch.testing.assert_close(hidden, alone(module, prompts[0])[0][0])
    assert saved["hidden"] is hidden

    with model.trace() as several:
        with several.invoke(prompts[0]):
            first = model.first.output.save()
        with several.invoke(prompts[1]):
            second = model.second.output.save()
    with pytest.raises(NameError):
        first  # noqa: B018
    assert [list(saved) for saved in several.backend()] == [["first"], ["second"]]
    torch.testing.assert_close(first, alone(module, prompts[0])[0][0])
    torch.testing.assert_close(second, alone(module, prompts[1])[0][1])
    with pytest.raises(nnsight.NNsightError, match="Write `as tracer`"):
        with model.trace(prompts[0]):
            model.first.output.save()


def test_gradients_through_an_engine_are_refused_and_those_of_a_bodys_own_are_not(model, prompts):
    for ask in ("backward", "grad", "context"):
        with pytest.raises(nnsight.BackwardError, match="`LanguageModel`"):
            with model.trace(prompts[0]):
                value = model.first.output
                if ask == "backward":
                    value.sum().backward()
                elif ask == "grad":
                    value.grad  # noqa: B018
                else:
                    with value.sum().backward():
                        value.grad  # noqa: B018
    with model.trace(prompts[0]):
        value = copy.deepcopy(model.first.output)  # torch looks at `.grad` there
        with torch.inference_mode(False), torch.enable_grad():
            mine = value.clone().requires_grad_()
            (mine * 3).sum().backward()
        grad = mine.grad.save()
    torch.testing.assert_close(grad, torch.full((3, 4), 3.0))
    assert "grad" not in vars(torch.Tensor)


def test_a_module_that_is_skipped_keeps_what_it_keeps(model, module, engine, prompts):
    calls = []
    forward = module.second.forward
    module.second.forward = lambda x: (calls.append(len(x)), forward(x))[1]
    with model.trace(prompts[0]) as tracer:
        for _ in tracer.iter[:]:
            model.second.skip(model.second.input)
        result = tracer.result.save()
    assert calls == [3, 1, 1]
    torch.testing.assert_close(result, _skipping(module, prompts[0]))


@pytest.mark.parametrize("what", ["meta", "complex", "sparse", "resized", "skipped"])
def test_what_an_engine_cannot_take_in_ends_its_own_request(what, model, module, engine, prompts):
    with pytest.raises((nnsight.RowsError, RuntimeError)):
        with model.trace() as tracer:
            with tracer.invoke(prompts[0]):
                if what == "skipped":
                    model.second.skip(torch.zeros(7, 7))
                elif what == "resized":
                    model.first.output.resize_(2, 2)
                else:
                    value = model.first.output
                    model.first.output = {
                        "meta": lambda: value.to("meta"),
                        "complex": lambda: value + 1j,
                        "sparse": lambda: value.to_sparse(),
                    }[what]()
            with tracer.invoke(prompts[2]):
                for _ in tracer.iter[:]:
                    model.output  # noqa: B018
    assert engine.batches[-1] == 1 and len(engine.batches) == 4  # the other went on to its end


def test_whole_numbers_are_looked_at_before_the_model_has_them():
    class Picks(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.pick, self.table = torch.nn.Identity(), torch.nn.Embedding(5, 4)

        def forward(self, x):
            return self.table(self.pick(x.abs().sum(-1).long() % 5))

    module = Picks()
    engine = ToyEngine(module)
    model = Served(engine)

    def check(place, old, new):
        if place.path == "model.pick" and int(new.max()) > 4:
            raise IndexError("out of range")

    engine.forwards.check_numbers = check
    x = torch.arange(12.0).view(3, 4)
    for assigns in (False, True):
        with pytest.raises(IndexError, match="out of range"):
            with model.trace(x):
                if assigns:
                    model.pick.output = model.pick.output + 5
                else:
                    model.pick.output[:] = 5
    with model.trace(x):
        model.pick.output[:] = 4
        picked = model.table.output.save()
    torch.testing.assert_close(picked, module.table.weight[4].detach().expand(3, 4))


def test_a_trace_that_was_waited_for_has_nothing_under_way(model, prompts):
    with model.trace() as tracer:
        with tracer.invoke(prompts[0]):
            model.first.output.save()
    with pytest.raises(nnsight.NNsightError, match="nothing of this trace is under way"):
        tracer.backend()


@pytest.mark.parametrize("where", ["turn", "asking", "closing"])
def test_a_body_that_catches_everything_for_ever_is_left_where_it_stands(where, module, prompts):
    engine = ToyEngine(module, turn_seconds=0.3)
    model = Served(engine)
    with pytest.raises((TimeoutError, KeyError)):
        with model.trace() as tracer:
            with tracer.invoke(prompts[1]):
                if where == "closing":
                    raise KeyError("ends the trace")
                model.first.output  # noqa: B018
                while True:
                    try:
                        if where == "asking":
                            model.first.output  # noqa: B018  # it has passed
                    except BaseException:  # noqa: S112
                        continue
            with tracer.invoke(prompts[0]):
                while where == "closing":
                    try:
                        model.next(7).first.output  # noqa: B018
                    except BaseException:  # noqa: S112
                        continue
                for _ in tracer.iter[:]:
                    model.output  # noqa: B018
    with model.trace(prompts[0]):
        output = model.output.save()
    torch.testing.assert_close(output, alone(module, prompts[0])[0][2])
    assert not engine.forwards.runs and not engine.forwards.tapped

    def deeper():
        deeper()

    # Nor is Python left in the middle of making an error, where it aborts at too deep a recursion.
    with pytest.raises(RecursionError):
        deeper()


def test_an_output_that_does_not_say_how_much_it_wrote_can_be_listened_to():
    # As those that Ray gives its workers.
    written = []

    class Silent:
        encoding = "utf-8"

        def write(self, text):
            written.append(text)

    assert Printing(Silent()).write("of this process") == 15
    assert written == ["of this process"]


def halve(value):
    value[:] = value / 2


@pytest.mark.parametrize("requests", [1, 3])
def test_edits_by_way_of_data_reach_the_model_and_those_of_what_is_the_users_own_stay_so(
    model, module, prompts, requests
):
    with model.trace() as tracer:
        found = nnsight.save([])
        for x in prompts[:requests]:
            with tracer.invoke(x):
                own = torch.zeros(2)
                own.data = torch.ones(2)
                own.data += 1
                value = model.first.output
                before = value.data.clone()
                value.data[:, 0] = 0
                value.data.mul_(2)
                halve(model.second.output.data)
                found.append((own, before, model.output))
                tracer.stop()

    def change(value):
        return 2 * value * torch.tensor([0.0] + [1.0] * (value.shape[1] - 1))

    assert len(found) == requests
    for (own, before, output), x in zip(found, prompts):
        assert own.tolist() == [2, 2]
        torch.testing.assert_close(before, alone(module, x, 1)[0][0])
        torch.testing.assert_close(output, alone(module, x, 1, change, lambda value: value / 2)[0][2])


def test_data_of_what_is_lent_cannot_be_replaced(model, prompts):
    for number in range(2):
        with pytest.raises(nnsight.NNsightError, match=r"`model.first`.*Write `x\[:\] = ...`"):
            with model.trace(prompts[0]):
                value = model.first.output
                if number:
                    value.data = torch.zeros_like(value)
                else:
                    value[:1].data *= 2


def test_what_a_block_will_have_meant_to_bring_back_is_said_once_for_each_line(model, prompts):
    found, kept, book = [], [], {}

    def run():
        with model.trace(prompts[0]) as tracer:
            one, other = nnsight.save((model.first.output, model.second.output))  # noqa: F841
            found.append(1)
            nnsight.save(kept).append(2)
            book["a"] = 3
            inner = []
            inner.append(4)
            nnsight.save(other)
            tracer.stop()
        return kept

    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("default")
        first = run()
        run()
    assert first == [2] and found == [] and book == {}
    first_line = run.__code__.co_firstlineno
    assert [(one.category, one.lineno - first_line) for one in said] == [
        (nnsight.NNsightWarning, at) for at in (2, 3, 5)
    ]
    texts = [str(one.message) for one in said]
    assert "`one` is a part" in texts[0] and "nnsight.save(one)" in texts[0]
    assert "`found` is a list from outside" in texts[1] and "`book` is a dict" in texts[2]
