"""One request that only reads, among plain ones: the shortest way through a forward, and all that leads off it."""

from __future__ import annotations

import pytest
import torch
from batching_engine import Batching, Collecting, Deep, both, equal, trace_of
from toy_engine import Network, Served, ToyEngine

import nnsight
from nnsight import NNsight
from nnsight._core.serving import steady
from nnsight._core.taps import running
from nnsight.plugin import Forwards


@pytest.fixture
def module():
    torch.manual_seed(0)
    return Deep()


@pytest.fixture
def ways(monkeypatch):
    """How often the shortest way was gone, and how often the longer one in its place."""
    found = {"short": 0, "long": 0}
    shorten, leave = steady.shortest, steady.Steady.leave

    def noted(*args):
        way = shorten(*args)

        def short(*args):
            found["short"] += 1
            return way(*args)

        return way and short

    def long(*args):
        found["long"] += 1
        return leave(*args)

    monkeypatch.setattr(steady, "shortest", noted)
    monkeypatch.setattr(steady.Steady, "leave", long)
    return found


READING = {
    "a tensor": "kept.append(model.first.output)",
    "a part": "kept.append(model.pair.output[1])",
    "what is computed of it": "x = model.first.output\nkept.append(x * step - vector)",
    "in some steps": "x = model.first.output\nif step % 3:\n    kept.append(x.mean(-1))",
}
OTHERS = {
    "edits": "model.first.output[:] += vector",
    "reads and edits": "x = model.first.output\nx += 1\nkept.append(x)",
    "saves": "last = model.first.output.save()",
    "two parts": "kept.append(model.pair.output[0] + model.pair.output[1])",
    "goes through it": "for at in range(3):\n    kept.append(model.first.output[:, at])",
}


def _body(lines):
    return "kept = nnsight.save([])\nfor step in tracer.iter[:]:\n" + "".join(
        f"    {line}\n" for line in lines.split("\n")
    )


@pytest.mark.parametrize("name", [*READING, *OTHERS])
def test_it_gives_what_turns_give(name, module, tmp_path, ways):
    lines = READING.get(name) or OTHERS[name]
    # Longer than the memory that is set aside in one go.
    both(module, tmp_path, _body(lines), prompts=[torch.randn(3, 4)], steps=[90], plain=3)
    assert bool(ways["short"]) is (name in READING)
    if name in READING:
        assert ways["short"] > 40 * ways["long"] / 2


def test_without_neighbours_too(module, tmp_path, ways):
    both(module, tmp_path, _body(READING["a part"]), prompts=[torch.randn(3, 4)], steps=[9])
    assert ways["short"]


def check_alone(module, steps):
    """Keep what the first layer gives to a request in each step, see that it is what the layer gives, and return it."""
    x, model = torch.randn(1, 4), Served(ToyEngine(module, steps=steps))
    with model.trace(x) as tracer:
        kept = nnsight.save([])
        for _ in tracer.iter[:]:
            kept.append(model.first.output)
    wanted = []
    with torch.no_grad():
        for _ in range(steps):
            wanted.append(module.first(x))
            x = module(x)
    torch.testing.assert_close(kept, wanted)
    return kept


def test_what_is_kept_is_nobody_elses_and_the_caller_gets_it_itself(ways):
    torch.manual_seed(0)
    kept = check_alone(Network(), 80)
    assert ways["short"] > 70
    assert len({one.untyped_storage().data_ptr() for one in kept}) == 80
    assert all(one.untyped_storage().nbytes() == 16 and not one.is_inference() for one in kept)


def test_an_error_there_is_the_requests_own_with_its_line(module, tmp_path, ways):
    body = _body("kept.append(vector[step] + model.first.output)")
    (saved,) = both(module, tmp_path, body, prompts=[torch.randn(2, 4)], steps=[12], plain=2)
    assert type(saved["failed"]) is IndexError and ways == {"short": 2 * 3, "long": 2}


def test_what_lies_there_may_become_something_else(tmp_path, ways):
    class Pair(torch.nn.Module):
        count = 0

        def forward(self, x):
            self.count += 1
            turn = self.count % 8
            if turn == 3:
                return x, x * 2, x * 3, x * 4
            if turn == 5:
                return x, (x * 2).double(), x * 3
            if turn == 6:
                return [x, x * 2]
            if turn == 7:
                return x, torch.cat([x, x], 1), x * 3
            return x, x * 2, x * 3

    class Other(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.pair = Pair()

        def forward(self, x):
            return self.pair(x)[0] + 1

    found = []
    for together in (True, False):
        engine = Batching(Other(), [0], [40], together, plain=2)
        trace_of(tmp_path, _body("kept.append(model.pair.output[1])"))(Collecting(engine), [torch.ones(1, 4)], 0, 0, [])
        found.append(engine.saved)
    equal(*found)
    kept = found[0][0]["kept"]
    assert [one.dtype for one in kept].count(torch.float64) == [one.size(1) for one in kept].count(8) == 5
    assert ways["short"] and ways["long"]


def test_a_second_visit_in_a_forward_is_not_the_rounds(tmp_path, ways):
    class Twice(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.first = torch.nn.Linear(4, 4)

        def forward(self, x):
            return self.first(self.first(x))

    torch.manual_seed(0)
    check_alone(Twice(), 9)
    assert ways["short"] == 7


def test_it_is_over_when_all_is_done_that_anybody_wants(module, tmp_path, ways):
    seen = []

    class Looking(Batching):
        def serve(self, bodies, inputs):
            second = self.module.second
            handle = second.register_forward_hook(lambda *args: seen.append(len(running)))
            try:
                return super().serve(bodies, inputs)
            finally:
                handle.remove()

    run = trace_of(tmp_path, _body(READING["a tensor"]))
    before = len(running)
    run(Collecting(Looking(module, [0], [9])), [torch.randn(1, 4)], 0, 0, [])
    # In the first its body had a turn, and could have asked for more.
    assert seen == [before + 1, *[before] * 8] and ways["short"] == 7


@pytest.mark.parametrize("after", ["", "x = nnsight.save(model.second.output)"])
def test_taps_rest_from_the_first_forward_on_unless_something_comes_after_the_loop(after, module, tmp_path):
    class Looking(Batching):
        """Notes in each forward whether a module that no round asks for has a wrapper on."""

        def serve(self, bodies, inputs):
            self.on = []
            second = self.module.second
            handle = second.register_forward_hook(lambda *args: self.on.append("forward" in vars(second)))
            try:
                return super().serve(bodies, inputs)
            finally:
                handle.remove()

    body = f"kept = nnsight.save([])\nfor step in tracer.iter[:]:\n    kept.append(model.first.output)\n{after}"
    bounded = body.replace("iter[:]", "iter[:6]")
    for text in (body, bounded):
        run, found = trace_of(tmp_path, text), []
        for together in (True, False):
            model = NNsight(module)
            for _ in range(2):  # the first time it has to be learned which modules are called from elsewhere
                engine = Looking(module, [0], [9], together)
                engine.forwards = Forwards(model)
                engine.forwards.serves_together = together
                run(Collecting(engine), [torch.randn(1, 4, generator=torch.Generator().manual_seed(0))], 0, 0, [])
            found.append(engine.saved)
            if together:
                on = engine.on
        equal(*found)
        if not after:
            assert on[:5] == [False] * 5
        else:
            assert on[0] is True
    # It has gone by in the steps of the loop, and is missed.
    assert ("failed" in found[0][0]) is bool(after)
