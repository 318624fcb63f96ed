"""Forwards that are alike: rounds of loops that are done where the model stands, and that nobody can tell."""

from __future__ import annotations

import gc
import random
import textwrap
import weakref

import pytest
import torch
from batching_engine import Batching, Collecting, Deep, both, trace_of
from toy_engine import Network, Seldom, Served, ToyEngine

import nnsight
from nnsight._core.serving import steady
from nnsight._core.serving.loan import Loan
from nnsight._core.serving.steady import Steady
from nnsight.plugin import Forwards, PlainLayout

STEPS = [14, 11, 14, 9]


@pytest.fixture
def module():
    torch.manual_seed(0)
    return Deep()


@pytest.fixture
def alike(monkeypatch):
    """The places at which rounds were done in forwards that are alike, and whether by way of a loan."""
    found = []
    leave, lent, shorten = Steady.leave, Steady._leave_the_usual_way, steady.shortest

    def noted(self, place, value, visit):
        found.append((place.path, "loan"))
        return leave(self, place, value, visit)

    def noted_too(self, place, value):
        found[-1] = (place.path, "usual")
        return lent(self, place, value)

    def shortened(*args):
        way = shorten(*args)

        def noted_there(place, value, visit):
            before = len(found)
            value = way(place, value, visit)
            if len(found) == before:  # it did not go the longer way after all
                found.append((place.path, "loan"))
            return value

        return way and noted_there

    monkeypatch.setattr(steady, "shortest", shortened)
    monkeypatch.setattr(Steady, "leave", noted)
    monkeypatch.setattr(Steady, "_leave_the_usual_way", noted_too)
    return found


#: Bodies each round of which is done where the model stands, by loans if `True`.
ROUNDS = {
    "keep": (True, "kept.append(model.first.output)"),
    "keep a part": (True, "kept.append(model.pair.output[1])"),
    "keep a part by both its numbers": (False, "kept.append(model.pair.output[1] + model.pair.output[-2])"),
    "keep what is no part": (
        False,
        "kept.append(model.pair.output[0])\nif step > 30:\n    model.pair.output[5][:] = 0",
    ),
    "keep what was expanded": (True, "kept.append(model.wide.output)"),
    "steer": (True, "model.first.output[:] += vector"),
    "steer a part": (True, "model.pair.output[0][:] *= 1.5\nmodel.pair.output[0][..., 1] = 2"),
    "steer by step": (True, "model.second.output[:] += vector * step"),
    "steer by what is there": (True, "model.second.output[:] += model.second.output.mean(-1, keepdim=True)"),
    "steer rows by themselves": (True, "model.second.output[-1] = vector"),
    "keep and steer": (True, "x = model.second.output\nx[:] += scale\nkept.append(x)\nx[:, 0] = 7"),
    "keep twice": (True, "x = model.first.output\nkept.append(x)\nkept.append(x[:, 1:])\nx += 1"),
    "keep a copy, steer": (True, "kept.append(model.first.output.clone())\nmodel.first.output[:] = 0"),
    "mark": (True, "last = model.second.output.save()"),
    "count": (True, "x = model.first.output\nif step % 3 == 1:\n    x[:] = number\nnumber = step * 2\ny = x * number"),
    "some": (True, "x = model.first.output\nif step > 4:\n    for at in range(3):\n        kept.append(x[:, at] * at)"),
    "without rows": (False, "kept.append(model.shared.output)"),
    "whole numbers": (False, "kept.append(model.numbers.output * 2)"),
    "the whole tuple": (False, "a, b, c = model.pair.output\nkept.append(a + b)\nkept.append(c)"),
}


class Numbers(torch.nn.Module):
    def forward(self, x):
        return x.argmax(-1)


class Shared(torch.nn.Module):
    def forward(self):
        return torch.arange(9.0)


class Wide(torch.nn.Module):
    def forward(self, x):
        return x[:1].expand(len(x), -1)


class Counting(Deep):
    """Has modules that give whole numbers, the same for all requests, and one row as if it were many."""

    def __init__(self):
        super().__init__()
        self.numbers, self.shared, self.wide = Numbers(), Shared(), Wide()

    def forward(self, x):
        return super().forward(x) + self.numbers(x)[:, None] + self.shared()[:4] + self.wide(x)


@pytest.mark.parametrize("name", ROUNDS)
@pytest.mark.parametrize("loop", ["tracer.iter[:]", "tracer.iter[2:8]", "tracer.iter"])
def test_rounds_give_what_turns_give(loop, name, tmp_path, alike):
    loan, lines = ROUNDS[name]
    torch.manual_seed(0)
    body = (
        f"kept = nnsight.save([])\nnumber = 0\nfor step in {loop}:\n"
        + "".join(f"    {line}\n" for line in lines.split("\n"))
        + "at_last = nnsight.save(len(kept))\nend = nnsight.save(tracer.result)"
    )
    both(Counting(), tmp_path, body, steps=STEPS)
    assert alike and {way for _, way in alike} == {"loan" if loan else "usual"}


@pytest.mark.parametrize(
    "lines",
    [
        "kept.append(model.first.output)\n    if step == 5:\n        break",
        "kept.append(model.first.output)\n    if step == 5:\n        tracer.stop()",
        "model.first.output = model.first.output * 2",
        "kept.append(model.first.output)\n    kept.append(model.second.output)",
        "for layer in model.layers:\n        kept.append(layer.output)",
        "kept.append(model.first.input)",
        "print(step)\n    kept.append(model.first.output)",
    ],
)
def test_other_loops_have_their_turns(lines, module, tmp_path, alike, capsys):
    both(module, tmp_path, f"kept = nnsight.save([])\nfor step in tracer.iter[:]:\n    {lines}", steps=STEPS)
    assert not alike


@pytest.mark.parametrize("name", ["keep", "steer", "keep and steer", "count"])
def test_requests_come_go_and_pause_while_others_go_on(name, module, tmp_path, alike):
    body = "kept = nnsight.save([])\nnumber = 0\nfor step in tracer.iter[:]:\n" + "".join(
        f"    {line}\n" for line in ROUNDS[name][1].split("\n")
    )
    prompts = [torch.randn(n, 4) for n in (3, 1, 2, 1, 4)]
    both(
        module,
        tmp_path,
        body,
        prompts=prompts,
        begins=[0, 0, 0, 3, 7],
        steps=[16, 9, 13, 11, 2],
        plain=2,
        pauses={(5, 0), (6, 2), (9, 3), (10, 3)},
        looks=[(4, 0), (4, 1), (8, 2), (12, 0)],
    )
    assert alike


def _loop(seed):
    """Make a body of a loop that asks for one value in each step: statements are drawn, of which some fail in some steps."""
    draw = random.Random(seed)
    site = draw.choice(["model.first.output", "model.second.output", "model.pair.output[0]", "model.layers[1].output"])
    values = [site, f"{site}[:, 1:3]", f"{site}[:1]", "x"]
    operands = [
        "vector",
        "scale",
        "step",
        "table[step % 5]",
        "table[:1 + step // 6]",
        f"{site} * 0.5",
        "vector[None]",
        "-1",
    ]
    indices = [":", "...", ":, 1", "..., 1:3", "0", "-1:", "step // 4", ":, step % 4", "None, :, 0"]
    lines = [] if draw.random() < 0.6 else [f"x = {site}"]
    for _ in range(draw.randrange(1, 4)):
        value, operand = draw.choice(values[: 3 + len(lines[:1])]), draw.choice(operands)
        value = site if value == "x" and not lines else value
        edit = f"{value}[{draw.choice(indices)}] {draw.choice(['+=', '*=', '-=', '/=', '=', '**='])} {operand}"
        lines.append(
            draw.choice(
                [edit, edit, edit, f"kept.append({value})", f"kept.append({value} {draw.choice('+-*/')} {operand})"]
                + [f"if step % 3 == {draw.randrange(3)}:\n    {edit}", f"kept.append({value}.mean(-1))"]
            )
        )
    inside = textwrap.indent("\n".join(lines), "    ")
    loop = draw.choice(["tracer.iter[:]", "tracer.iter[:]", "tracer.iter[1:7]"])
    return f"kept = nnsight.save([])\ntable = vector[:, None] * vector\nfor step in {loop}:\n{inside}\n" + draw.choice(
        ["", "end = nnsight.save(tracer.result)"]
    )


@pytest.mark.filterwarnings("ignore::nnsight.NNsightWarning")
@pytest.mark.parametrize("seed", range(120))
def test_loops_that_are_drawn_give_what_turns_give(seed, module, tmp_path):
    draw = random.Random(seed)
    prompts = [torch.randn(draw.choice([1, 1, 3]), 4) for _ in range(draw.randrange(1, 5))]
    steps = [draw.choice([9, 9, 6, 7, 1]) for _ in prompts]
    begins = [draw.choice([0, 0, 0, 2]) for _ in prompts]
    both(module, tmp_path, _loop(seed), prompts=prompts, begins=begins, steps=steps, plain=draw.randrange(2))


class Leaving(Batching):
    """Notes after each forward which modules have a wrapper on."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.on = []
        forward = self.forwards.forward

        def noting(*args, **options):
            found = forward(*args, **options)
            self.on.append({name for name, part in self.module.named_modules() if "forward" in vars(part)})
            return found

        self.forwards.forward = noting


def test_taps_that_nobody_waits_for_rest(module, tmp_path):
    run = trace_of(tmp_path, "for step in tracer.iter[:]:\n    model.first.output[:] += vector")
    engine = Leaving(module, [0, 8], [20, 3])
    run(Collecting(engine), [torch.randn(1, 4), torch.randn(1, 4)], torch.ones(4), 1, [])
    everything = {"", "first", "layers.0", "layers.1", "pair", "second"}
    # All are there in the first forward ever, and for some after each that changed who takes part; they rest at once where
    # it is known what all will ask for: when the second request comes, but not when it goes.
    wide, narrow = [everything], [{"first"}]
    assert engine.on[1:] == wide * 4 + narrow * 3 + wide + narrow * 2 + wide * 4 + narrow * 5
    assert not any("forward" in vars(part) for part in module.modules())


def test_a_forward_of_somebodys_own_is_called_and_stays(module, tmp_path):
    called = []

    class Replacing(Batching):
        def serve(self, bodies, inputs):
            forward = self.forwards.forward

            def replacing(*args, **options):
                if self.at == 8:
                    plain = type(module.second).forward
                    module.second.forward = lambda x: called.append(self.at) or plain(module.second, x)
                return forward(*args, **options)

            self.forwards.forward = replacing
            return super().serve(bodies, inputs)

    run = trace_of(tmp_path, "for step in tracer.iter[:]:\n    model.first.output[:] += vector\nx = model.second")
    engine = Replacing(module, [0, 10], [14, 2])
    run(Collecting(engine), [torch.randn(1, 4), torch.randn(1, 4)], torch.ones(4), 1, [])
    assert called == list(range(8, 14))
    assert "forward" in vars(module.second) and not hasattr(module.second.forward, "args")
    assert not any("forward" in vars(part) for part in module.modules() if part is not module.second)


def test_an_error_in_a_round_is_its_requests_own_with_its_line(module, tmp_path, alike):
    body = """
        kept = nnsight.save([])
        for step in tracer.iter[:]:
            kept.append(vector[step] + model.first.output)
    """
    saved = both(module, tmp_path, body, steps=[3, 11, 12, 4])
    assert [type(one.get("failed")).__name__ for one in saved] == ["NoneType", "IndexError", "IndexError", "NoneType"]
    assert len(saved[0]["kept"]) == 3 and len(saved[3]["kept"]) == 4
    assert alike


def test_what_fits_one_row_of_each_request_in_one_round_may_not_in_the_next(module, tmp_path, alike):
    body = """
        table = vector[:, None] * vector
        for step in tracer.iter[:]:
            model.first.output[:] += table[: 1 + step // 5]
    """
    # As many rows as there are requests are to be added in the last step: that is the error of each.
    saved = both(module, tmp_path, body, prompts=[torch.randn(1, 4)] * 2, steps=[6, 6])
    assert [type(one["failed"]).__name__ for one in saved] == ["RuntimeError"] * 2
    assert alike


def test_of_requests_that_are_served_together_one_may_fail_in_a_round(module, tmp_path, alike):
    body = """
        kept = nnsight.save([])
        for step in tracer.iter[:]:
            kept.append(model.first.output.view(-1)[:4])
            kept.append(model.first.output.view(4 + 0 * step))
    """
    saved = both(module, tmp_path, body, steps=STEPS)
    failed = [type(one.get("failed")).__name__ for one in saved]
    assert failed == ["RuntimeError", "NoneType", "RuntimeError", "RuntimeError"]  # their prompts are longer than a row
    assert alike


def test_a_site_that_comes_no_more_is_missed_in_that_step(alike):
    engine = ToyEngine(Seldom(lambda count: count < 7), steps=12)
    model = Served(engine)
    with pytest.raises(nnsight.MissedProviderError, match="step 6"):
        with model.trace(torch.ones(1, 4)) as tracer:
            kept = nnsight.save([])
            for _ in tracer.iter[:]:
                kept.append(model.seldom.output)
    assert len(alike) == 5
    assert not engine.forwards.at_output and not engine.forwards.runs and not engine.forwards.tapped


def test_a_round_without_end_is_ended(alike):
    engine = ToyEngine(Network(), steps=6, turn_seconds=0.2)
    model = Served(engine)
    with pytest.raises(nnsight.NNsightError, match=r"had its turn for more than 0\.2 s"):
        with model.trace(torch.ones(1, 4)) as tracer:
            for step in tracer.iter[:]:
                x = model.first.output
                for _ in range(step // 3 * 10**12 + 1):
                    x = x + 1
    assert len(alike) == 3 and not engine.forwards.runs


def test_who_only_edits_is_lent_no_copies_and_who_keeps_gets_memory_of_its_own(monkeypatch, alike):
    copied = []
    take_back = Loan.take_back
    monkeypatch.setattr(Loan, "take_back", lambda self: copied.extend(self._copies) or take_back(self))
    torch.manual_seed(0)
    module, x = Network(), torch.randn(1, 4)
    engine = ToyEngine(module, steps=9)
    model = Served(engine)
    with model.trace(x) as tracer:
        for _ in tracer.iter[:]:
            model.first.output[:] += 1
        end = nnsight.save(tracer.result)
    assert not copied and len(alike) == 8
    with model.trace(x) as tracer:
        kept = nnsight.save([])
        for _ in tracer.iter[:]:
            kept.append(model.first.output)
    assert not copied and len(alike) == 16  # nothing that could have to be given back
    with model.trace(x) as tracer:
        edited = nnsight.save([])
        for _ in tracer.iter[:]:
            model.first.output[:] += 1
            edited.append(model.first.output)
        again = nnsight.save(tracer.result)
    assert [tuple(mine.shape) for _, mine, _ in copied] == [(1, 4)] * 8
    for found in (kept, edited):
        assert len({one.untyped_storage().data_ptr() for one in found}) == 9
        assert all(one.untyped_storage().nbytes() == 16 and not one.is_inference() for one in found)
    wanted, plain, first = x, [], []
    with torch.no_grad():
        for _ in range(9):
            first.append(module.first(wanted) + 1)
            wanted = first[-1] + module.second(torch.tanh(first[-1]))
        for _ in range(9):
            plain.append(module.first(x))
            x = module(x)
    torch.testing.assert_close([end, again], [wanted] * 2)
    torch.testing.assert_close([kept, edited], [plain, first])


def test_where_a_layout_looks_before_it_tells_rows_are_lent_the_usual_way(alike):
    class Looking:
        """Rows along dimension 0, which it finds out by looking at what lies at a place."""

        def __init__(self, total):
            self.total, self.plain = total, PlainLayout(total)

        def look(self, value, path):
            self.looked = path

        def take(self, value, rows, path):
            assert self.looked == path
            return self.plain.take(value, rows, path)

        def whole(self, value, rows, path):
            return None

        def join(self, value, pieces, path):
            return self.plain.join(value, pieces, path)

    class Other(ToyEngine):
        def _compute(self, where, x):
            with self.forwards.forward(where, Looking(len(x)), even=len(x) == len(where)):
                return self.module(x)

    torch.manual_seed(0)
    module, x = Deep(), torch.randn(1, 4)
    found = []
    for engine in (Other(module, steps=6), ToyEngine(module, steps=6)):
        model = Served(engine)
        with model.trace(x) as tracer:
            kept = nnsight.save([])
            for _ in tracer.iter[:]:
                value = model.pair.output[0]
                value[:] *= 2
                kept.append(value)
        found.append(kept)
    assert [way for _, way in alike] == ["usual"] * 5 + ["loan"] * 5
    torch.testing.assert_close(*found, rtol=0, atol=0)


def test_nothing_is_held_when_the_requests_are_over(module):
    engine = ToyEngine(module, steps=8)
    model = Served(engine)
    made = []
    admit = Forwards.admit
    engine.forwards.admit = lambda run: made.append(weakref.ref(run)) or admit(engine.forwards, run)
    with model.trace(torch.ones(1, 4)) as tracer:
        for _ in tracer.iter[:]:
            model.first.output[:] += 1
    with model.trace(torch.ones(1, 4)) as tracer:
        kept = nnsight.save([])
        for _ in tracer.iter[:]:
            kept.append(model.first.output)
    engine.where = {}
    gc.collect()
    assert engine.forwards._steady is None
    assert len(kept) == 8 and len(made) == 2 and all(one() is None for one in made)


def test_a_step_that_is_not_even_is_one_like_any_other(module, alike):
    class Uneven(ToyEngine):
        def _compute(self, where, x):
            with self.forwards.forward(where, PlainLayout(len(x))):
                return self.module(x)

    for engine in (Uneven(module, steps=6), ToyEngine(module, steps=6)):
        model = Served(engine)
        with model.trace(torch.ones(1, 4)) as tracer:
            kept = nnsight.save([])
            for _ in tracer.iter[:]:
                kept.append(model.first.output)
        assert len(kept) == 6
        assert len(alike) == (0 if isinstance(engine, Uneven) else 5)


def test_it_is_worth_while_to_let_taps_rest_after_some_forwards_only():
    assert steady._SOME > 2
