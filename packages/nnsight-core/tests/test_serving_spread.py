"""An engine whose model is spread over two ranks: two threads stand for two processes, each with its part of one network."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from toy_engine import Served, ToyEngine
from two_ranks import Halves, Meeting, OneRank, Summed

import nnsight
from nnsight import RanksError
from nnsight.plugin import SpreadForwards

#: Where each rank has half of a value, along its last dimension.
SPREAD = {("model.up", "output"), ("model.act", "input"), ("model.act", "output"), ("model.down", "input")}


class Whole(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.act = torch.nn.Linear(4, 6, bias=False), torch.nn.Tanh()
        self.down = torch.nn.Linear(6, 4, bias=False)

    def forward(self, x):
        return x + self.down(self.act(self.up(x)))


class Rank(Halves):
    """One rank: how values lie there, and how it talks to the other."""

    def __init__(self, rank, meeting):
        super().__init__(rank, meeting, SPREAD)

    def compare(self, message):
        told = self.meeting.all(self.rank, message)
        return None if told[0] == told[1] else told

    def gather(self, path, stage, value):
        if path == "model.act.source.torch_tanh_0":
            raise RanksError("who knows how this is spread")
        return super().gather(path, stage, value)

    def read(self, path, value):
        if not isinstance(value, torch.nn.Parameter):
            return value
        dim = 1 if ".down." in path else 0
        return self.lockstep.together(
            f"reads `{path}`", lambda: torch.cat(self.meeting.all(self.rank, value.detach()), dim)
        )

    def assign(self, path, old, new):
        raise RanksError("not in an engine")


class TwoRanks:
    """An engine of two ranks, each of which serves all requests."""

    def __init__(self, module, turn_seconds=0, steps=3):
        self.module, self.turn_seconds, self.steps = module, turn_seconds, steps
        self.meeting = Meeting()

    def serve(self, bodies, inputs):
        with ThreadPoolExecutor(2) as pool:
            self.answers = list(pool.map(lambda rank: self._serve(rank, bodies, inputs), (0, 1)))
        errors = [answer for answer in self.answers if isinstance(answer, Exception)]
        for error in sorted(errors, key=lambda error: isinstance(error, threading.BrokenBarrierError)):
            raise error
        return self.answers[0]

    def _serve(self, rank, bodies, inputs):
        part = Whole()
        part.up = torch.nn.Linear(4, 3, bias=False)
        part.up.weight = torch.nn.Parameter(self.module.up.weight.detach().chunk(2, 0)[rank].clone())
        part.down = Summed(self.module.down.weight.detach().chunk(2, 1)[rank], rank, self.meeting)
        own = Rank(rank, self.meeting)
        engine = ToyEngine(part, self.steps)
        engine.model = OneRank(part, own)
        engine.forwards = own.lockstep = SpreadForwards(engine.model, self.turn_seconds, own, own)
        threading.current_thread().name = f"rank {rank}"
        try:
            return engine.serve(bodies, inputs)
        except Exception as error:
            return error


@pytest.fixture
def module():
    torch.manual_seed(0)
    return Whole()


@pytest.fixture
def ranks(module):
    return TwoRanks(module)


@pytest.fixture
def spread(ranks):
    return Served(ranks)


@pytest.fixture
def prompts():
    torch.manual_seed(1)
    return torch.randn(3, 4), torch.randn(1, 4), torch.randn(5, 4)


def as_on_one_rank(module, block):
    """Compare what a block saves on two ranks with what it saves on one."""
    found = block(Served(TwoRanks(module)))
    expected = block(Served(ToyEngine(module)))
    assert found.keys() == expected.keys() and found
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name])


def test_values_are_read_whole_and_written_whole(module, prompts):
    def block(model):
        with model.trace() as tracer:
            found = nnsight.save({})
            with tracer.invoke(prompts[0]):
                up = model.up.output
                found["up"] = up.clone()
                up[:, 1:5] = 2
                found["given"] = model.down.input
                found["first"] = model.output
            with tracer.invoke(prompts[1]):
                for step in tracer.iter[:]:
                    model.act.output = model.act.output * 2
                    found[f"{step}"] = model.output
            with tracer.invoke(prompts[2]):
                model.act.input = model.act.input.flip(-1)
                found["third"] = tracer.result
        return found

    as_on_one_rank(module, block)


def test_modules_are_skipped_and_caches_hold_whole_values(module, prompts):
    def block(model):
        with model.trace() as tracer:
            found = nnsight.save({})
            with tracer.invoke(prompts[0]):
                cache = tracer.cache(include_inputs=True)
            with tracer.invoke(prompts[1]):
                model.act.skip(model.up.output + 1)
                found["skipped"] = model.output
        for name in ("model.up", "model.act", "model.down"):
            for number, entry in enumerate(cache[name]):
                found[f"{name}.output {number}"], found[f"{name}.input {number}"] = entry.output, entry.input
        return found

    as_on_one_rank(module, block)


def test_parameters_are_whole_and_modules_can_be_called_by_hand_after_a_loop_too(module, prompts):
    def block(model):
        with model.trace() as tracer:
            found = nnsight.save({})
            with tracer.invoke(prompts[0]):
                found["weight"] = model.up.weight * 1
                found["by hand"] = model.down(model.up.output)
                for _ in tracer.iter[:]:
                    found["last"] = model.up.output
                found["late"] = model.down.weight * 1
            with tracer.invoke(prompts[1]):
                found["other"] = tracer.result
        return found

    as_on_one_rank(module, block)


def test_values_pass_between_requests_on_all_ranks(module, prompts):
    def block(model):
        with model.trace() as tracer:
            found = nnsight.save({})
            with tracer.invoke(prompts[0]):
                vector = model.up.output[-1]
            with tracer.invoke(prompts[1]):
                for _ in tracer.iter[0:1]:
                    model.up.output = vector[None]
                found["output"] = model.output
        return found

    as_on_one_rank(module, block)


@pytest.mark.parametrize("odd", [0, 1])
@pytest.mark.parametrize(
    "when", ["raises", "waits elsewhere", "stops", "ends", "reads a parameter", "writes too much", "skips"]
)
def test_a_body_that_parts_on_one_rank_is_given_up_on_all_and_others_go_on(spread, ranks, prompts, odd, when):
    with pytest.raises((RanksError, ZeroDivisionError, nnsight.RowsError)):
        with spread.trace() as tracer:
            with tracer.invoke(prompts[0]):
                import threading

                value = spread.up.output
                if threading.current_thread().name == f"rank {odd}":
                    if when == "raises":
                        1 / 0  # noqa: B018
                    elif when == "waits elsewhere":
                        spread.down.output  # noqa: B018
                    elif when == "stops":
                        tracer.stop()
                    elif when == "reads a parameter":
                        spread.up.weight  # noqa: B018
                    elif when == "skips":
                        spread.act.skip(value)
                    elif when == "writes too much":
                        value.resize_(1, 1)
                if when != "ends" or threading.current_thread().name == f"rank {odd}":
                    spread.act.output.save()
            with tracer.invoke(prompts[2]):
                for _ in tracer.iter[:]:
                    spread.act.output[:] = 0
    assert all(isinstance(answer, Exception) for answer in ranks.answers)
    told = str(ranks.answers[1 - odd])
    assert f"on rank {odd} it" in told and f"on rank {1 - odd} it" in told and "given up on all" in told


def test_a_body_that_never_gives_back_its_turn_on_one_rank_is_over_on_all(module, prompts):
    ranks = TwoRanks(module, turn_seconds=0.3)
    model = Served(ranks)
    with pytest.raises(RanksError, match="on rank 1 it raised TooLongError"):
        with model.trace() as tracer:
            with tracer.invoke(prompts[0]):
                import threading

                model.up.output  # noqa: B018
                while threading.current_thread().name == "rank 1":
                    pass
                model.down.input.save()
            with tracer.invoke(prompts[1]):
                for _ in tracer.iter[:]:
                    model.act.output[:] = 0


def test_an_error_that_is_the_same_on_all_ranks_is_the_users_own(spread, prompts):
    with pytest.raises(ZeroDivisionError):
        with spread.trace(prompts[0]):
            spread.up.output  # noqa: B018
            1 / 0  # noqa: B018


@pytest.mark.parametrize("how", ["assigned", "edited", "skipped"])
def test_what_differs_between_ranks_is_not_given_to_the_model_in_silence(spread, prompts, how):
    with pytest.raises(RanksError, match="different numbers"):
        with spread.trace(prompts[0]):
            import threading

            own = float(threading.current_thread().name[-1])
            if how == "assigned":
                spread.down.output = spread.down.output + own
            elif how == "edited":
                spread.down.output[:] += own
            else:
                spread.down.skip(torch.zeros(3, 4) + own)


def test_what_cannot_be_put_together_is_refused_at_the_line_that_asks(spread, module, prompts):
    with pytest.raises(RanksError, match="who knows") as caught:
        with spread.trace() as tracer:
            with tracer.invoke(prompts[0]):
                spread.act.source.torch_tanh_0.output.save()
            with tracer.invoke(prompts[1]):
                spread.output.save()
    assert any("torch_tanh_0.output.save()" in str(entry.statement) for entry in caught.traceback)


def test_a_cache_does_not_keep_what_cannot_be_put_together(spread, ranks, prompts):
    refusing, Rank.gather = Rank.gather, lambda self, path, stage, value: _refuse(path, value)
    try:
        with pytest.raises(RanksError, match="nobody knows `model.act`"):
            with spread.trace(prompts[0]) as tracer:
                cache = tracer.cache(modules=["act"])  # noqa: F841
    finally:
        Rank.gather = refusing
    assert all(isinstance(answer, RanksError) for answer in ranks.answers)


def _refuse(path, value):
    if path == "model.act":
        raise RanksError(f"nobody knows `{path}`")
    return value


def test_ranks_talk_once_for_all_requests_that_are_served_at_a_place(spread, ranks, prompts):
    with spread.trace() as tracer:
        for x in prompts:
            with tracer.invoke(x):
                spread.output.save()
    alone = ranks.meeting.count
    ranks.meeting.count = 0
    with spread.trace(prompts[0]):
        spread.output.save()
    # Five forwards against three, and each has one sum; all else is the same for one request as for three.
    assert alone - ranks.meeting.count <= 2 + 3 * 3
