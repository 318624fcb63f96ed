"""A model that is spread over several ranks: two threads stand for two processes, each with its part of one network."""

from __future__ import annotations

import re
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from two_ranks import Halves, Meeting, OneRank, Summed

from nnsight import NNsight, RanksError, ScanError
from nnsight._core import lockstep
from nnsight.plugin import Lockstep, Sharding, fingerprint, leaves

X = torch.rand(3, 4, generator=torch.Generator().manual_seed(2))

#: The parts of the network of which each rank has half along the last dimension, by where they pass.
SPREAD = {("model.0", "output"), ("model.1", "input"), ("model.1", "output"), ("model.2", "input")}


class Network(Halves):
    """How the values of the network lie on two ranks."""

    def __init__(self, rank, meeting, store):
        super().__init__(rank, meeting, SPREAD)
        self.lockstep = Lockstep(store, rank, 2, "test", patience=10)
        self.gathered = []

    def gather(self, path, stage, value):
        if (path, stage) in SPREAD:
            self.gathered.append(f"{path}.{stage}")
        return super().gather(path, stage, value)

    def read(self, path, value):
        if not isinstance(value, torch.nn.Parameter):
            return value
        return torch.cat(self.meeting.all(self.rank, value), 1 if ".2." in path else 0)

    def assign(self, path, old, new):
        if not isinstance(new, torch.nn.Parameter):
            return new
        return torch.nn.Parameter(new.detach().chunk(2, 1 if ".2." in path else 0)[self.rank])


def network():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(4, 6, bias=False), torch.nn.ReLU(), torch.nn.Linear(6, 4, bias=False))


def on_both(block, x=X):
    """Run `block(model, rank)` on both ranks; return what each gave or raised."""
    meeting, store, whole = Meeting(), torch.distributed.HashStore(), network()
    first, last = whole[0].weight.detach().chunk(2, 0), whole[2].weight.detach().chunk(2, 1)
    ready = threading.Barrier(2, timeout=20)

    def run(rank):
        part = torch.nn.Linear(4, 3, bias=False)
        part.weight = torch.nn.Parameter(first[rank])
        module = torch.nn.Sequential(part, torch.nn.ReLU(), Summed(last[rank], rank, meeting))
        model = OneRank(module, Network(rank, meeting, store))
        ready.wait()
        with torch.no_grad():
            try:
                return block(model, rank)
            except Exception as error:
                return error

    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(run, (0, 1)))


def equal_to_whole(block):
    """Compare what a block gives on both ranks with what it gives on the whole network."""
    with torch.no_grad():
        expected = leaves(block(NNsight(network()), 0))
    assert expected
    for found in on_both(block):
        if isinstance(found, Exception):
            raise found
        for mine, theirs in zip(leaves(found), expected, strict=True):
            torch.testing.assert_close(mine, theirs)


def test_the_toy_keeps_the_protocol():
    assert isinstance(Network(0, Meeting(), torch.distributed.HashStore()), Sharding)


def test_values_are_read_whole():
    def block(model, rank):
        with model.trace(X):
            return_ = [model[0].output, model[1].input, model[1].output, model[2].inputs, model.output]
        return return_

    equal_to_whole(block)


def test_assignments_edits_in_place_and_skips_are_split():
    def assign(model, rank):
        with model.trace(X):
            model[0].output = model[0].output * torch.arange(6.0)
            out = model.output
        return out

    def in_place(model, rank):
        with model.trace(X):
            model[1].output[:, 2:5] = 1
            out = model.output
        return out

    def skip(model, rank):
        with model.trace(X):
            model[1].skip(model[1].input + 1)
            out = model.output
        return out

    def skip_and_read(model, rank):
        with model.trace(X):
            model[0].skip(torch.arange(18.0).reshape(3, 6))
            again = model[0].output
            out = model.output
        return [again, out]

    for block in (assign, in_place, skip, skip_and_read):
        equal_to_whole(block)


def test_a_value_is_put_together_only_where_somebody_asks():
    def block(model, rank):
        with model.trace(X):
            model[1].output
        return model.given.gathered

    assert on_both(block) == [["model.1.output"], ["model.1.output"]]


def test_a_value_that_nobody_changed_goes_on_as_it_was():
    def block(model, rank):
        parts = []
        model._module[1].register_forward_pre_hook(lambda module, args: parts.append(args[0]))
        model._module[0].register_forward_hook(lambda module, args, output: parts.append(output))
        with model.trace(X):
            model[0].output
        return parts[0] is parts[1]

    assert on_both(block) == [True, True]


def test_invokes_see_and_write_their_rows_of_whole_values():
    def block(model, rank):
        with model.trace() as tracer:
            with tracer.invoke(X[:1]):
                model[0].output = model[0].output + 1
                one = model.output.save()
            with tracer.invoke(X[1:]):
                model[1].skip(torch.full((2, 6), 0.5))
                two = model.output.save()
            with tracer.invoke():
                every = model[1].output.save()
        return [one, two, every]

    equal_to_whole(block)


def test_a_cache_keeps_whole_values():
    def block(model, rank):
        with model.trace(X) as tracer:
            cache = tracer.cache(include_inputs=True)
        return [cache["model.0"].output, cache["model.1"].inputs, cache["model.2"].inputs, cache["model.2"].output]

    equal_to_whole(block)


def test_edits_are_replayed_on_whole_values():
    def block(model, rank):
        with model.edit() as edited:
            edited[0].output[:, 1:4] = 0
        return edited(X)

    equal_to_whole(block)


def test_parameters_are_read_and_assigned_whole():
    def block(model, rank):
        model[2].weight = torch.nn.Parameter(model[2].weight.detach() * torch.arange(6.0))
        with model.trace(X):
            return_ = [model[0].weight, model[2].weight, model.output]
        return return_

    equal_to_whole(block)


def test_modules_called_by_hand_take_and_give_whole_values():
    def block(model, rank):
        hidden = model[0](X)
        return [hidden, model[2](hidden), model(X)]

    equal_to_whole(block)


# -- ranks that do not agree -------------------------------------------------------------------------------------------


def only_one_asks(model, rank):
    with model.trace(X):
        if rank == 0:
            model[0].output


def another_site(model, rank):
    with model.trace(X):
        model[1].output if rank else model[0].output


def one_stops(model, rank):
    with model.trace(X) as tracer:
        model[0].output
        if rank == 1:
            tracer.stop()


def one_caches(model, rank):
    with model.trace(X) as tracer:
        if rank == 0:
            tracer.cache()


def one_writes(model, rank):
    with model.trace(X):
        hidden = model[0].output
        if rank == 0:
            hidden.zero_()


def they_write_different_numbers(model, rank):
    with model.trace(X):
        model[0].output[0, 0] = 5.0 + rank


def they_are_given_different_inputs(model, rank):
    with model.trace(X + rank):
        model.output


def one_invoke_asks_for_more(model, rank):
    with model.trace() as tracer:
        with tracer.invoke(X[:1]):
            model[0].output
        with tracer.invoke(X[1:]):
            if rank == 1:
                model[0].output


def one_calls_by_hand(model, rank):
    with model.trace(X):
        hidden = model[0].output
        if rank == 1:
            model[2](hidden)


DISAGREE = {
    only_one_asks: r"rank 0 waits for `model.0.output` \(test_sharded.py, line \d+\); rank 1 has come to the end of its",
    another_site: "rank 0 waits for `model.0.output` .*; rank 1 waits for `model.1.output`",
    one_stops: "rank 0 has come to the end of its block .*; rank 1 stops the run",
    one_caches: "rank 0 makes a cache of 4 modules",
    one_writes: "gave the model values of shapes",
    they_write_different_numbers: "gave the model different numbers: .*`torch.manual_seed`",
    they_are_given_different_inputs: "opens a run of `model`.*gave the model different numbers",
    one_invoke_asks_for_more: "end of invoke 1 .*; rank 1 waits for `model.0.output` in invoke 1",
    one_calls_by_hand: "rank 0 has come to the end of its block .*; rank 1 calls `model.2`",
}


@pytest.mark.parametrize("block", DISAGREE, ids=lambda block: block.__name__)
def test_a_block_that_depends_on_the_rank_raises_on_every_rank_and_leaves_the_model_usable(block):
    def twice(model, rank):
        try:
            block(model, rank)
        except RanksError as raised:
            error = raised
        with model.trace(X):
            out = model.output
        return error, out, "forward" in vars(model._module[0])

    with torch.no_grad():
        expected = network()(X)
    for error, out, left_over in on_both(twice):
        assert re.search(DISAGREE[block], str(error)), error
        torch.testing.assert_close(out, expected)
        assert not left_over


def test_one_rank_that_raises_lets_the_others_go():
    def inline(model, rank):
        with model.trace(X):
            model[0].output
            if rank == 1:
                raise KeyError("mine")
            model[1].output

    def in_an_invoke(model, rank):
        with model.trace() as tracer:
            with tracer.invoke(X[:1]):
                if rank == 1:
                    raise KeyError("mine")
                model[1].output
            with tracer.invoke(X[1:]):
                model[1].output

    for block in (inline, in_an_invoke):
        waiting, raising = on_both(block)
        assert isinstance(raising, KeyError)
        assert isinstance(waiting, RanksError) and "rank 1 raised KeyError: 'mine' in" in str(waiting)


def test_a_rank_that_caught_its_own_error_is_told_that_it_has_left():
    def block(model, rank):
        with model.trace(X):
            try:
                if rank == 0:
                    model[0].output
                else:
                    model[1].output
            except RanksError:
                model[2].output

    assert [type(error) for error in on_both(block)] == [RanksError, RanksError]


def test_a_backward_block_is_compared_too():
    def block(model, rank):
        with torch.enable_grad(), model.trace(X):
            value = model[2].output
            loss = value.sum()
            if rank == 0:
                with loss.backward():
                    value.grad

    first, second = on_both(block)
    assert "rank 0 runs backward" in str(first) and str(first)[:60] == str(second)[:60]


def test_gradients_that_are_asked_for_are_compared():
    def block(model, rank):
        with torch.enable_grad(), model.trace(X):
            hidden = model[2].input.detach().requires_grad_()
            loss = hidden.pow(2).sum()
            with loss.backward():
                if rank == 0:
                    hidden.grad

    for error in on_both(block):
        assert "rank 0 waits for `gradient of (3, 6).output`" in str(error)
        assert "rank 1 has come to the end of a backward block" in str(error)


def test_a_scan_is_refused():
    def block(model, rank):
        with model.scan(X):
            pass

    assert all(isinstance(error, ScanError) for error in on_both(block))


def test_an_error_of_the_model_is_the_error_of_every_rank():
    def block(model, rank):
        with model.trace(X[:, :2]):
            model[1].output

    assert all(type(error) is RuntimeError and "mat1" in str(error) for error in on_both(block))


# -- the meeting of ranks ----------------------------------------------------------------------------------------------


@pytest.fixture
def store():
    return torch.distributed.HashStore()


def test_a_rank_whose_process_has_ended_is_not_waited_for(store):
    here, gone = Lockstep(store, 0, 2, "x"), Lockstep(store, 1, 2, "x")
    lockstep._leave(lambda: gone)
    with pytest.raises(RanksError, match="Rank 0 waits for `a.output` .* waits for rank 1 .* its process has ended"):
        here.meet("waits for `a.output`", "s.py, line 1")


def test_a_rank_that_does_not_come_in_time_is_an_error(store):
    with pytest.raises(RanksError, match="did not come in time"):
        Lockstep(store, 0, 2, "x", patience=0.05).meet("opens a run")


def test_what_a_rank_said_before_it_ended_counts(store):
    here, gone = Lockstep(store, 0, 2, "x"), Lockstep(store, 1, 2, "x")
    gone.part("opens a run")
    lockstep._leave(lambda: gone)
    here.meet("opens a run")


def test_meetings_that_are_over_leave_nothing_in_the_store(store):
    ranks = [Lockstep(store, rank, 2, "x", patience=10) for rank in (0, 1)]

    def run(rank):
        for _ in range(4):
            ranks[rank].begin()
            for _ in range(5):
                ranks[rank].meet("goes on")

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(run, (0, 1)))
    assert store.num_keys() <= 4


def test_another_run_finds_ranks_in_step_that_have_parted_in_different_numbers_of_meetings(store):
    ranks = [Lockstep(store, rank, 2, "x", patience=10) for rank in (0, 1)]
    ranks[0].begin()
    ranks[0].part("raised")
    ranks[0].part("raised again")
    ranks[1].begin()
    ranks[1].part("raised")
    for each in ranks:
        each.begin()
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda each: each.meet("goes on"), ranks))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.int64, torch.bool, torch.complex64])
def test_fingerprints_are_equal_for_equal_tensors_only(dtype):
    tensor = torch.tensor([[0, 1, 1], [1, 0, 1]]).to(dtype)
    assert lockstep.same(fingerprint(tensor), fingerprint(tensor.clone()))
    for other in (tensor.T, tensor.flip(1), torch.zeros_like(tensor)):
        assert not lockstep.same(fingerprint(tensor), fingerprint(other))


def test_fingerprints_allow_for_rounding_and_for_what_is_no_number():
    tensor = torch.rand(50)
    assert lockstep.same(fingerprint(tensor), fingerprint(tensor * (1 + 1e-6)))
    assert not lockstep.same(fingerprint(tensor), fingerprint(tensor * 1.01))
    broken = torch.tensor([1.0, float("nan")])
    assert lockstep.same(fingerprint(broken), fingerprint(broken.clone()))
    assert not lockstep.same(fingerprint(broken), fingerprint(torch.ones(2)))
    assert fingerprint(torch.ones(0, 3)) == ([0, 3], 0.0, 0.0)
