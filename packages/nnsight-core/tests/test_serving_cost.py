"""What serving many requests does once, and not for each of them or at each step; and that nobody can tell."""

from __future__ import annotations

import copy

import pytest
import torch
from toy_engine import Network, Seldom, Served, ToyEngine

import nnsight
from nnsight import NNsight
from nnsight._core.bypath import Sender
from nnsight._core.serving.handed import hand_over
from nnsight.plugin import Forwards, PlainLayout, decode_bodies


@pytest.fixture
def module():
    torch.manual_seed(0)
    return Network()


class Looking(ToyEngine):
    """An engine that shows what it was sent, and what is on the model at the end of each forward."""

    def serve(self, bodies, inputs):
        self.sent = decode_bodies(bodies, NNsight(self.module))
        self.tapped = []
        return super().serve(bodies, inputs)

    def _forward(self, taking_part, rows, runs):
        super()._forward(taking_part, rows, runs)
        self.tapped.append(self.forwards.tapped)


def test_a_block_is_compiled_once_for_all_bodies_made_of_it(module):
    engine = Looking(module)
    model = Served(engine)
    with model.trace() as tracer:
        got = nnsight.save([])
        for number in range(4):
            with tracer.invoke(torch.randn(2, 4)):
                got.append(number)
    assert sorted(got) == [0, 1, 2, 3]
    bodies = [invoke.body for invoke in engine.sent.invokes]
    assert len({id(body.block) for body in bodies}) == 1
    assert [body.outer["number"] for body in bodies] == [0, 1, 2, 3]


def test_bodies_that_are_alike_travel_as_one_and_are_each_their_own(module):
    sizes = {}
    for count in (1, 32):
        engine = Looking(module)
        engine.serve = lambda bodies, inputs, engine=engine: (
            sizes.update({len(inputs): len(bodies)}) or Looking.serve(engine, bodies, inputs)
        )
        model, scale = Served(engine), torch.tensor(2.0)
        with model.trace() as tracer:
            for _ in range(count):
                with tracer.invoke(torch.randn(2, 4)):
                    kept = nnsight.save([])
                    kept.append(model.first.output * scale)
        bodies = [invoke.body for invoke in engine.sent.invokes]
        assert len({id(body) for body in bodies}) == len(bodies) == count
        assert {body.outer["scale"].item() for body in bodies} == {2.0}
        assert len(kept) == 1
    assert sizes[32] < sizes[1] + 32 * 8  # a number or two for each


def test_a_model_whose_weights_are_elsewhere_is_not_looked_through_for_each_tensor(module, monkeypatch):
    walked = []
    walk = Sender._walk
    monkeypatch.setattr(Sender, "_walk", lambda self: walked.append(self) or walk(self))
    for hollow in (False, True):
        root = NNsight(copy.deepcopy(module).to("meta"))
        root.__dict__["_is_hollow"] = hollow
        sender = Sender(root)
        assert sender.refer(torch.ones(2)) is None and sender.weight_of(torch.ones(2)) is None
        assert bool(walked) is not hollow
        weight = root._module.first.weight
        assert sender.refer(weight) == ["weight", "first.weight"] and sender.weight_of(weight.T) is not None
        walked.clear()


def test_nothing_is_tapped_while_nobody_wants_anything(module):
    engine = Looking(module, steps=4)
    model = Served(engine)
    with model.trace(torch.randn(2, 4)):
        first = model.first.output.save()
    assert first.shape == (2, 4)
    assert engine.tapped == [False] * 4
    with model.trace(torch.randn(2, 4)):
        later = model.next(2).first.output.save()
    assert later.shape == (1, 4)
    assert engine.tapped == [True, True, False, False]


def test_taps_come_back_for_a_request_that_joins_when_all_others_are_done(module):
    model = Served(ToyEngine(module, steps=4))
    with model.trace() as tracer:
        with tracer.invoke(torch.ones(2, 4)):
            a = model.first.output.save()
        with tracer.invoke(torch.ones(3, 4)):
            b = model.first.output.save()
            cache = tracer.cache()
    torch.testing.assert_close(a, module.first(torch.ones(2, 4)).detach())
    torch.testing.assert_close(b, module.first(torch.ones(3, 4)).detach())
    assert len(cache["model.second"]) == 4  # a request that watches does so to its end


@pytest.mark.parametrize("large", [False, True])
def test_requests_that_stand_at_one_place_edit_their_own_rows_only(module, large, monkeypatch):
    monkeypatch.setattr("nnsight._core.serving.lent._SMALL", 0 if large else 1 << 20)
    model, xs = Served(ToyEngine(module, steps=1)), [torch.randn(n, 4) for n in (2, 1, 3)]
    kept = []
    # Of three blocks, so that each body runs by itself.
    with model.trace() as tracer:
        with tracer.invoke(xs[0]):
            a = model.first.output.save()
            a[:] += 1
            model.second.output[:] = 0
            a[:] = 7  # the engine has gone on
            x = nnsight.save(tracer.result)
        with tracer.invoke(xs[1]):
            b = model.first.output.save()
            model.second.output[:] = 0
            y = nnsight.save(tracer.result)
        with tracer.invoke(xs[2]):
            model.first.output = model.first.output * 2
            c = model.first.output.save()
            model.second.output[:] = 0
            z = nnsight.save(tracer.result)
    kept = [module.first(x).detach() for x in xs]
    torch.testing.assert_close(a, torch.full((2, 4), 7.0))
    torch.testing.assert_close(b, kept[1])
    torch.testing.assert_close(c, kept[2] * 2)
    for got, wanted in ((x, kept[0] + 1), (y, kept[1]), (z, kept[2] * 2)):
        torch.testing.assert_close(got, wanted[-1:])


def test_a_change_of_shape_in_place_is_refused_however_rows_are_lent(module):
    model = Served(ToyEngine(module, steps=1))
    with pytest.raises(nnsight.RowsError):
        with model.trace() as tracer:
            with tracer.invoke(torch.randn(2, 4)):
                value = model.first.output
                value[:] += 1
                value.t_()
            with tracer.invoke(torch.randn(1, 4)):
                model.first.output.save()


def test_what_is_handed_over_is_the_callers_own_and_shares_what_was_shared():
    base = torch.arange(12.0).reshape(3, 4)
    twice = [base[1], "text", 5, None]
    given = {
        "a": twice,
        "b": {"again": twice, "rows": (base[0:2], base[1:3])},
        "c": {1, 2},
        "d": torch.randn(4, 4)[:, 0],
    }
    given["b"]["self"] = given["b"]
    got = hand_over(given)
    assert got is not None and set(got) == set(given)
    assert got["a"] == [got["a"][0], "text", 5, None] and got["b"]["again"] is got["a"] and got["b"]["self"] is got["b"]
    assert got["a"] is not twice and got["c"] == {1, 2} and got["c"] is not given["c"]
    torch.testing.assert_close(got["d"], given["d"])
    got["a"][0].fill_(9)
    assert base[1].tolist() == [4, 5, 6, 7]  # the engine's is as it was
    for rows, at in zip(got["b"]["rows"], (1, 0)):
        assert rows[at].tolist() == [9, 9, 9, 9]
    with torch.inference_mode():
        made = hand_over({"x": torch.ones(2) * 2})
    assert not made["x"].is_inference()


def keep_and_hand_over(module, steps, between=lambda values: None):
    """Keep a value and a part of it in each step; return both as handed over, and the values as the engine had them.

    `between` is called with those, before they are handed over.
    """
    engine = ToyEngine(module, steps=steps)
    serve, inside = engine.serve, []

    def served(bodies, inputs):
        (found,) = serve(bodies, inputs)
        inside.extend(found["kept"])
        between(inside)
        return [hand_over(found)]

    engine.serve = served
    model = Served(engine)
    with model.trace(torch.ones(1, 4)) as tracer:
        kept, again = nnsight.save([]), nnsight.save([])
        for _ in tracer.iter[:]:
            value = model.first.output
            kept.append(value)
            again.append(value[:, :2])
    return kept, again, inside


def test_what_was_made_for_one_body_is_handed_over_itself(module):
    kept, again, inside = keep_and_hand_over(module, 6)
    # In the first step it had a turn, and was lent a copy of another kind.
    assert [mine is theirs for mine, theirs in zip(kept, inside)] == [False, True, True, True, True, True]
    assert all(not vars(value) for value in kept)
    for value, part in zip(kept, again):
        value[0, 0] = 7
        assert part[0, 0] == 7 and part[0, 1] == value[0, 1]
    assert len({value.data_ptr() for value in kept}) == 6


def test_what_is_handed_over_can_be_edited_with_gradients_and_asks_for_none(module):
    kept, again, _ = keep_and_hand_over(module, 4, between=lambda values: values[2].requires_grad_())
    assert not any(value.requires_grad for value in (*kept, *again))
    for part in again:
        part.add_(torch.ones(2, requires_grad=True))  # torch refuses that of what was made a view in inference mode
        assert part.requires_grad


@pytest.mark.parametrize(
    "more", [object(), lambda: 0, torch.nn.Linear(1, 1), torch.ones(2).to_sparse(), [{"x": PlainLayout(1)}]]
)
def test_what_is_more_than_data_is_left_to_the_bytes(more):
    assert hand_over({"plain": 1, "more": more}) is None


def test_objects_that_were_made_for_the_caller_are_handed_over_themselves():
    layout = PlainLayout(3)
    assert hand_over({"x": [layout]}, (PlainLayout,))["x"][0] is layout


def test_parts_of_a_large_memory_do_not_take_all_of_it_along():
    weight = torch.randn(1000, 10)
    assert hand_over({"one": weight[0]})["one"].untyped_storage().nbytes() == 40
    assert hand_over({"two": [weight[0], weight[1]]}) is None


@pytest.fixture
def turns(monkeypatch):
    """Where the model stood at each turn that a body had."""
    stood = []
    give_turn = Forwards.give_turn

    def noted(self, mediator, switch):
        stood.append(self.here.place.path if self.here is not None else None)
        return give_turn(self, mediator, switch)

    monkeypatch.setattr(Forwards, "give_turn", noted)
    return stood


def test_a_body_that_asks_for_the_same_first_in_each_step_has_one_turn_in_each(module, turns):
    model = Served(ToyEngine(module, steps=4))
    with model.trace(torch.ones(2, 4)) as tracer:
        kept = nnsight.save([])
        for step in tracer.iter[:]:
            kept.append(model.second.output * step)
            if step > 9:
                kept.append(model.first.output)
    assert len(kept) == 4
    # It begins, and learns at the end that there is no further step.
    assert turns == [None, *["model.second"] * 4, None]


def test_a_body_that_asks_for_one_value_in_each_step_has_a_turn_in_the_first(module, turns):
    model = Served(ToyEngine(module, steps=4))
    with model.trace(torch.ones(2, 4)) as tracer:
        kept = nnsight.save([])
        for step in tracer.iter[:]:
            kept.append(model.second.output * step)
    assert len(kept) == 4
    assert turns == [None, "model.second", None]


def test_a_body_that_may_be_seen_before_it_asks_has_its_turn_where_the_step_begins(module, turns, capsys):
    model = Served(ToyEngine(module, steps=3))
    with model.trace(torch.ones(2, 4)) as tracer:
        for step in tracer.iter[:]:
            print("step", step)
            model.second.output  # noqa: B018
    assert turns == [None, "model.second", None, "model.second", None, "model.second", None]
    assert capsys.readouterr().out.split() == ["step", "0", "step", "1", "step", "2"]


@pytest.mark.parametrize("waits", [True, False])
def test_a_site_that_does_not_come_in_a_later_step_is_missed_there(waits, monkeypatch):
    if not waits:
        monkeypatch.setattr(Forwards, "let_wait", lambda self, mediator: False)
    engine = ToyEngine(Seldom(lambda count: count % 2), steps=3)
    model = Served(engine)
    with pytest.raises(nnsight.MissedProviderError, match="step 1"):
        with model.trace(torch.ones(2, 4)) as tracer:
            kept = nnsight.save([])
            for _ in tracer.iter[:]:
                kept.append(model.seldom.output)
    assert not engine.forwards.at_output and not engine.forwards.runs


def test_a_request_that_ends_while_its_body_waits_leaves_nobody_waiting(module):
    model = NNsight(module)
    engine = ToyEngine(module)
    sent = []
    engine.serve = lambda bodies, inputs: [sent.append(decode_bodies(bodies, model)) or {} for _ in inputs]
    with Served(engine).trace(torch.ones(2, 4)) as tracer:
        for _ in tracer.iter[:]:
            model.first.output  # noqa: B018
    forwards = Forwards(model)
    with torch.inference_mode():
        run = sent[0].begin(0, forwards)
        with forwards.forward({run: (0, 2)}, PlainLayout(2)):
            module(torch.ones(2, 4))
        with forwards.forward({run: (0, 2)}, PlainLayout(2)):
            run.close()  # it is given up when the step has begun
            module(torch.ones(2, 4))
    assert not (forwards.at_output or forwards.runs or forwards.ahead or forwards.tapped)


WRITES = {
    "reads": (False, "model.second.output[0] * 2"),
    "keeps and changes a copy": (False, "x = model.second.output.clone(); x += 1"),
    "edits": (True, "model.second.output[:] += 0"),
    "edits a part": (True, "x = model.second.output; x[0, 1] = 7"),
    "assigns": (True, "model.first.output = model.first.output * 2"),
    "assigns an input": (True, "model.second.input = model.second.input * 2"),
    "skips": (True, "model.second.skip(model.second.input)"),
    "edits at last": (True, "model.second.output[:] *= number"),
}


@pytest.mark.parametrize("requests", [1, 3])
@pytest.mark.parametrize("together", [True, False])
@pytest.mark.parametrize("forwards", [1, 4])
@pytest.mark.parametrize("name", WRITES)
def test_a_run_says_whether_its_body_has_changed_anything(name, forwards, together, requests, module, tmp_path):
    writes, line = WRITES[name]
    path = tmp_path / "changes.py"
    path.write_text(
        "def run(model, prompts):\n"
        "    with model.trace() as tracer:\n"
        "        for prompt in prompts:\n"
        "            with tracer.invoke(prompt):\n"
        "                for number in tracer.iter[:]:\n"
        f"                    {line}\n"
    )
    space = {}
    exec(compile(path.read_text(), str(path), "exec"), space)

    class Noting(ToyEngine):
        def serve(self, bodies, inputs):
            self.forwards.serves_together = together
            sent = decode_bodies(bodies, self.model)
            rows = torch.cat([args[0] for args, _, _ in inputs])
            with torch.inference_mode():
                runs = [sent.begin(number, self.forwards) for number in range(len(inputs))]
                where = {run: (at, 1) for at, run in enumerate(runs)}
                for _ in range(forwards):
                    with self.forwards.forward(where, PlainLayout(len(rows)), even=True):
                        self.module(rows)
                self.said = [run.has_written for run in runs]
                for run in runs:
                    run.finish(None)
            assert [run.has_written for run in runs] == self.said
            assert not any(run.failure for run in runs)
            return [{} for _ in inputs]

    engine = Noting(module)
    space["run"](Served(engine), [torch.randn(1, 4) for _ in range(requests)])
    assert engine.said == [writes] * requests
