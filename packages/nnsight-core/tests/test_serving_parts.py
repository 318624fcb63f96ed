"""A served model in parts: every part runs every body, and is told what lies elsewhere. Here both are in one process."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from toy_engine import Network, Served

import nnsight
from nnsight import ElsewhereError, NNsight, OutOfOrderError
from nnsight.plugin import (
    EndedElsewhereError,
    Forwards,
    Parts,
    PlainLayout,
    decode_bodies,
    decode_results,
    encode_results,
)


def owner(place, stage):
    """The first layer is in the first part, the second in the second; the model begins there and ends here."""
    if place.owner.path == "model":
        return 0 if stage == "input" else 1
    return int(place.owner.path == "model.second")


class Part(torch.nn.Module):
    """The network in one part, of which it calls what it has."""

    def __init__(self, network, number):
        super().__init__()
        self.first, self.second, self.number = network.first, network.second, number

    def forward(self, x):
        return self.first(x) if self.number == 0 else x.clone().add_(self.second(torch.tanh(x)))


class Pipeline:
    """Serves one request for each input, all in every step, one part after the other."""

    def __init__(self, network, steps=3):
        self.steps = steps
        self.modules = [Part(copy.deepcopy(network), number) for number in range(2)]
        self.module = self.modules[0]
        self.forwards = [Forwards(NNsight(module)) for module in self.modules]
        for number, forwards in enumerate(self.forwards):
            forwards.parts = Parts(number, 2, owner)

    def serve(self, bodies, inputs):
        sent = [decode_bodies(bodies, NNsight(module)) for module in self.modules]
        rows = [args[0] for args, _, _ in inputs]
        runs = [[one.begin(n, forwards) for n in range(len(rows))] for one, forwards in zip(sent, self.forwards)]
        with torch.inference_mode():
            for _ in range(self.steps):
                rows = self._step(rows, runs)
                if all(run.wants_no_more for run in runs[1]):
                    break
            for run, value in zip(runs[1], rows):
                run.finish(value)
            for run in runs[0]:
                run.close()
        failures = [run.failure for run in (*runs[0], *runs[1]) if run.failure is not None]
        for failure in failures:
            if not isinstance(failure, EndedElsewhereError):
                raise failure
        assert not failures
        return [decode_results(encode_results(sent[1].saved(n))) for n in range(len(rows))]

    def _step(self, rows, runs):
        where, at = [], 0
        for one in rows:
            where.append((at, len(one)))
            at += len(one)
        value = torch.cat(rows)
        for number, forwards in enumerate(self.forwards):
            with forwards.forward(dict(zip(runs[number], where)), PlainLayout(at)):
                value = self.modules[number](value)
            self._tell(number, runs)
        return [value[start + count - 1 : start + count].clone() for start, count in where]

    def _tell(self, number, runs):
        mine, other = self.forwards[number].parts, self.forwards[1 - number].parts
        for run, twin in zip(runs[number], runs[1 - number]):
            other.read(twin, number, pickle.loads(pickle.dumps(mine.page(run))))  # noqa: S301


@pytest.fixture
def network():
    torch.manual_seed(0)
    return Network()


@pytest.fixture
def engine(network):
    return Pipeline(network)


@pytest.fixture
def model(engine):
    return Served(engine)


@pytest.fixture
def prompts():
    torch.manual_seed(1)
    return torch.randn(3, 4), torch.randn(2, 4)


def alone(network, x, first=lambda step, value: value, second=lambda step, value: value):
    """What a request gives by itself, with its layers changed: (first, second, output) of each step."""
    seen = []
    with torch.no_grad():
        for step in range(3):
            a = first(step, network.first(x))
            b = second(step, network.second(torch.tanh(a)))
            seen.append((a, b, a + b))
            x = (a + b)[-1:]
    return seen


def same(ours, theirs):
    assert len(ours) == len(theirs)
    for mine, wanted in zip(ours, theirs):
        for one, other in zip(mine, wanted):
            torch.testing.assert_close(one, other)


def test_a_body_sees_all_parts_in_order_and_each_request_its_own_rows(model, network, engine, prompts):
    with model.trace() as tracer:
        seen = nnsight.save([[], []])
        for number, x in enumerate(prompts):
            with tracer.invoke(x):
                for _ in tracer.iter[:]:
                    seen[number].append((model.first.output, model.second.output, model.output))
    for got, x in zip(seen, prompts):
        same(got, alone(network, x))
    assert not any(forwards.tapped for forwards in engine.forwards)
    assert not any(
        vars(forwards.parts)[kept] for forwards in engine.forwards for kept in ("_lines", "_pages", "_waiting")
    )


def test_writes_reach_the_part_that_has_the_place(model, network, prompts):
    with model.trace() as tracer:
        with tracer.invoke(prompts[0]):
            for _ in tracer.iter[:]:
                model.first.output[:] += 1
                model.second.output = model.second.output * 2
            given = tracer.result.save()
        with tracer.invoke(prompts[1]):
            other = tracer.result.save()
    changed = alone(network, prompts[0], lambda _, v: v + 1, lambda _, v: v * 2)
    torch.testing.assert_close(given, changed[-1][2][-1:])
    torch.testing.assert_close(other, alone(network, prompts[1])[-1][2][-1:])


def test_a_value_of_one_part_is_written_in_the_other_and_in_the_next_step_back(model, network, prompts):
    with model.trace(prompts[0]) as tracer:
        last = None
        for _ in tracer.iter[:]:
            if last is not None:
                model.first.output[:] = last
            early = model.first.output
            model.second.output = early * 3
            last = model.output[-1:]
        given = tracer.result.save()
    kept = {}

    def first(step, value):
        kept["early"] = kept.get("last", value) if step else value
        return kept["early"]

    def second(step, value):
        kept["last"] = (kept["early"] + kept["early"] * 3)[-1:]
        return kept["early"] * 3

    torch.testing.assert_close(given, alone(network, prompts[0], first, second)[-1][2][-1:])


def test_what_was_written_is_read_again_and_the_same_value_twice(model, network, prompts):
    with model.trace(prompts[0]):
        first = model.first.output
        again = model.first.output
        model.first.output = first * 2
        changed = model.first.output.save()
        alike = nnsight.save(first is again)
        given = model.second.output.save()
    (a, b, _), *_ = alone(network, prompts[0], lambda step, v: v * 2)
    assert alike
    torch.testing.assert_close(changed, a)
    torch.testing.assert_close(given, b)


def test_what_an_earlier_part_has_passed_cannot_be_asked_for(model, prompts):
    with pytest.raises(OutOfOrderError, match=r"model\.first\.output"):
        with model.trace(prompts[0]):
            model.second.output.save()
            model.first.output.save()


def test_an_error_of_either_part_ends_the_request_with_its_own_type(model, network, prompts):
    for name in ("first", "second"):
        with pytest.raises(LookupError, match="seen"):
            with model.trace(prompts[0]):
                getattr(model, name).output
                raise LookupError("seen")
        with pytest.raises(ValueError, match="shape"):
            with model.trace(prompts[0]):
                getattr(model, name).output = torch.zeros(1, 1)
                model.output.save()


def test_a_body_that_needs_what_is_elsewhere_is_left_to_the_last_part(model, network, prompts):
    with model.trace(prompts[0]):
        early = model.first.output
        if model._module.number == 0:
            raise ElsewhereError("a weight of the second part")
        late = nnsight.save(early + model.second.output)
    torch.testing.assert_close(late, alone(network, prompts[0])[0][2])
    with pytest.raises(ElsewhereError, match="could not go on"):
        with model.trace(prompts[0]) as tracer:
            for _ in tracer.iter[:]:
                model.first.output
                if model._module.number == 0:
                    raise ElsewhereError("a weight of the second part")
                model.second.output


def test_a_body_that_does_not_do_the_same_in_all_parts_is_told_so(model, prompts):
    with pytest.raises(
        ElsewhereError, match=r"asks for `model\.first\.input` here, and asked for `model\.first\.output`"
    ):
        with model.trace(prompts[0]):
            if model._module.number == 0:
                model.first.output
            else:
                model.first.input.save()
