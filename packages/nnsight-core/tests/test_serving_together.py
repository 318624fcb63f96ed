"""Requests whose bodies are alike are served together, and what each of them gets is what it gets alone, bit for bit."""

from __future__ import annotations

import random
import textwrap

import pytest
import torch
from batching_engine import Batching, Deep, both
from toy_engine import Served

import nnsight
from nnsight._core.serving import group, plan, rounds
from nnsight._core.serving.joint import Joint


@pytest.fixture
def module():
    torch.manual_seed(0)
    return Deep()


@pytest.fixture
def groups(monkeypatch):
    """How many requests each group had that was made."""
    made = []
    init = group.GroupRun.__init__

    def counted(self, forwards, members):
        made.append(len(members))
        init(self, forwards, members)

    monkeypatch.setattr(group.GroupRun, "__init__", counted)
    return made


#: Bodies that are served together from their first statement on, and to the end of their loop.
TOGETHER = {
    "steer in place": """
        for step in tracer.iter[:]:
            model.first.output[:] += vector
            kept = model.second.output.save()
    """,
    "steer by assignment": """
        for step in tracer.iter[:]:
            model.first.output = model.first.output + scale * vector
        kept = nnsight.save(tracer.result)
    """,
    "keep every step": """
        kept = nnsight.save([])
        for step in tracer.iter[:]:
            kept.append(model.first.output)
            kept.append((step, model.layers[1].output.save()))
    """,
    "one read": "kept = model.layers[0].output.save()",
    "two reads": "a = model.first.output.save()\nb = model.second.output.save()",
    "a tuple": """
        kept = [].save()
        for step in tracer.iter[1:]:
            a, b, c = model.pair.output
            a *= 2
            b[..., 1] = 0
            kept.append(a - b)
            kept.append(c)
    """,
    "parts of a tuple": """
        kept = [].save()
        for step in tracer.iter[:]:
            model.pair.output[0][:] += vector
            kept.append(model.pair.output[1])
            model.pair.output[0][:, 1] = step
            if step > 1:
                kept.append(model.pair.output[0] - model.pair.output[1])
    """,
    "parts of a tuple, and then all": """
        kept = [].save()
        for step in tracer.iter[:]:
            model.pair.output[0][:] *= 2
            kept.append(model.pair.output[2])
            if step == 1:
                a, b, c = model.pair.output
                kept.append(a - b)
    """,
    "replace a tuple": """
        kept = [].save()
        for step in tracer.all():
            a, b, c = model.pair.output
            model.pair.output = (a * 2, b + vector, c)
            kept.append(model.pair.output[1])
    """,
    "all layers": """
        kept = {}
        kept.save()
        for step in tracer.iter[:3]:
            for i, layer in enumerate(model.layers):
                kept[i + 2] = layer.input
                layer.output[:] *= 0.5
                layer.output += 1
                kept[i] = layer.output
            for i in range(4, 6):
                kept[i] = model.second.input
    """,
    "inputs": """
        for step in tracer.iter[:]:
            model.second.input = model.second.input * scale
            kept = model.second.input.save()
    """,
    "by step": """
        kept = nnsight.save([])
        count = 0
        for step in tracer.iter[:]:
            count += 1
            if step == 1:
                model.first.output[:] = 0
            elif step > 3 and not step == 5:
                continue
            kept.append(model.second.output / count)
    """,
    "only one step": """
        for step in tracer.iter[2]:
            kept = model.first.output.clone().save()
    """,
    "some steps": """
        kept = nnsight.save(list())
        for step in tracer.iter[[0, 2]]:
            kept.append(model.first.output[:, 1:3].float())
    """,
    "leave the loop": """
        kept = nnsight.save([])
        for step in tracer.iter[:]:
            kept.append(model.first.output)
            if step == 1:
                break
    """,
    "stop": """
        kept = nnsight.save([])
        for step in tracer.iter[:]:
            kept.append(model.first.output)
            if step == 2:
                tracer.stop()
    """,
    "each by itself": """
        kept = nnsight.save([])
        for step in tracer.iter[:]:
            value = model.first.output
            kept.append(value[0])
            kept.append(value[-1] + value.mean(-1, keepdim=True).max())
            kept.append(value.softmax(-1).sum(dim=0))
            kept.append(value.norm().item() * 2)
            last = value[-1:]
            last += 1
            kept.append(value.topk(2)[0])
            kept.append(2 - value)
            kept.append(vector - value)
            kept.append(vector / value)
            kept.append(value ** 2)
            value.view(-1)[:] *= 2
    """,
    "the rest by itself": """
        kept = nnsight.save([])
        for step in tracer.iter[:]:
            kept.append(model.first.output)
        number = len(kept)
        for value in kept:
            value += number
        last = nnsight.save(str(tracer.result.shape))
    """,
    "the rest in the same step": """
        first = model.first.output.save()
        model.first.output[:] += vector
        second = (model.second.output @ vector).save()
        model.second.output[:] = first.sum() + len(first)
        end = nnsight.save(tracer.result)
    """,
    "the rest in the same step after a loop": """
        for step in tracer.iter[0:1]:
            first = model.first.output.save()
            if step == 0:
                break
        second = (model.second.output @ vector).save()
    """,
    "two loops": """
        kept = nnsight.save([])
        for step in tracer.iter[:2]:
            kept.append(model.second.output * step)
        for step in tracer.iter[2:]:
            number = step + 1
            kept.append(model.first.input * number)
            kept.append(model.layers[0].output)
    """,
    "several names": """
        kept, other = nnsight.save([]), nnsight.save(list())
        for step in tracer.iter[:]:
            value, number = model.first.output, step * 2
            kept.append(value)
            other.append(value[:, 1:] * number)
            value, more = value + 1, value
            other.append(more - value)
    """,
    "aliases": """
        first = model.first.output.save()
        again = nnsight.save([])
        again.append(first)
        again.append(first[:, 0])
        first += 1
        model.second.output
        first *= 3
    """,
}


@pytest.mark.parametrize("name", TOGETHER)
def test_what_a_body_gets_is_what_it_gets_alone(name, module, groups, tmp_path):
    saved = both(module, tmp_path, TOGETHER[name])
    assert groups == [4]
    assert any(saved) and not any("failed" in one for one in saved)


@pytest.mark.parametrize("name", TOGETHER)
def test_requests_that_end_at_once_part_in_one_go(name, module, groups, tmp_path):
    saved = both(module, tmp_path, TOGETHER[name], steps=[3] * 4, ends_at_once=True)
    assert groups == [4]
    assert any(saved) and not any("failed" in one for one in saved)


@pytest.mark.parametrize("name", ["keep every step", "steer by assignment", "replace a tuple", "the rest by itself"])
def test_requests_join_later_and_plain_ones_run_along(name, module, groups, tmp_path):
    prompts = [torch.randn(n, 4) for n in (3, 1, 2, 5, 1, 2)]
    both(
        module, tmp_path, TOGETHER[name], prompts=prompts, begins=[0, 1, 0, 1, 2, 1], steps=[4, 2, 6, 1, 5, 3], plain=3
    )
    assert groups == [2, 3]  # the one that begins alone is by itself


@pytest.mark.parametrize("name", ["keep every step", "steer by assignment", "by step", "all layers"])
def test_a_request_that_is_left_out_of_a_forward_goes_on_by_itself(name, module, groups, tmp_path):
    both(module, tmp_path, TOGETHER[name], pauses={(1, 0), (2, 2), (3, 2)})
    assert groups == [4]


@pytest.mark.parametrize("name", ["keep every step", "one read", "aliases", "only one step"])
def test_what_a_body_has_saved_can_be_looked_at_while_it_runs(name, module, groups, tmp_path):
    both(module, tmp_path, TOGETHER[name], looks=[(0, 0), (0, 2), (1, 0), (2, 0), (2, 2), (3, 1)])
    assert groups == [4]


@pytest.mark.parametrize(
    ("body", "parts"),
    [
        ("model.pair.output[0][:] += vector\nx = model.pair.output[0].save()", 1),
        ("x = (model.pair.output[1] * model.pair.output[0]).save()", 2),
        ("a, b, c = model.pair.output\nx = a.save()", 3),
        ("x = model.pair.output[0].save()\ny = model.pair.output", 3),
        ("x = model.pair.output[0].save()\nmodel.pair.output = model.pair.output", 3),
        ("number = 1\nx = model.pair.output[number].save()", 3),
    ],
)
def test_of_what_lies_at_a_place_the_parts_are_copied_that_a_body_may_have(body, parts, module, tmp_path, monkeypatch):
    copied = []
    lend = Joint._lend
    monkeypatch.setattr(Joint, "_lend", lambda self, tensor: (copied.append(tensor), lend(self, tensor))[1])
    both(module, tmp_path, body, steps=[2] * 4)
    assert len(copied) == parts


def test_what_is_kept_is_each_requests_own(module, groups, tmp_path):
    saved = both(module, tmp_path, TOGETHER["keep every step"])
    lists = [one["kept"] for one in saved]
    assert groups == [4] and len({id(kept) for kept in lists}) == 4
    lists[0][0].fill_(7)
    assert not any((kept[0] == 7).any() for kept in lists[1:])


#: Bodies that may do more than is known to be the same: each runs by itself, from its first statement on.
ALONE = {
    "a branch on data": """
        for step in tracer.iter[:]:
            if model.first.output.sum() > 0:
                model.first.output[:] = 0
        kept = nnsight.save(tracer.result)
    """,
    "random numbers": """
        for step in tracer.iter[:]:
            model.first.output[:] += torch.rand(4) * 0
        kept = nnsight.save(tracer.result)
    """,
    "a list of all": """
        for step in tracer.iter[:]:
            seen.append(model.first.output)
        kept = nnsight.save(tracer.result)
    """,
    "a function": """
        for step in tracer.iter[:]:
            change(model.first.output)
        kept = nnsight.save(tracer.result)
    """,
    "print": """
        for step in tracer.iter[:]:
            print(model.first.output, end="")
        kept = nnsight.save(tracer.result)
    """,
    "the result in the loop": """
        for step in tracer.iter[:]:
            kept = model.first.output.save()
            tracer.result
    """,
    "the shape": """
        for step in tracer.iter[:]:
            kept = nnsight.save(model.first.output.shape[0])
    """,
    "an outer tensor is edited": """
        for step in tracer.iter[:]:
            vector += model.first.output[0] * 0
        kept = nnsight.save(tracer.result)
    """,
    "a name is a tensor's": """
        mine = vector
        for step in tracer.iter[:]:
            model.first.output[:] += mine
            mine += 1
        kept = nnsight.save(tracer.result)
    """,
    "a comprehension": """
        kept = nnsight.save([layer.output for layer in model.layers])
    """,
    "a try": """
        try:
            kept = model.first.output.save()
        except ValueError:
            pass
    """,
    "an attribute": """
        for step in tracer.iter[:]:
            holder.value = model.first.output
        kept = nnsight.save(tracer.result)
    """,
    "a matrix product": """
        for step in tracer.iter[:]:
            kept = (model.first.output @ vector).save()
    """,
    "a name that may not be bound": """
        for step in tracer.iter[:]:
            if step > 0:
                model.first.output[:] += before
            before = model.first.output.clone()
        kept = nnsight.save(tracer.result)
    """,
    "a list goes elsewhere": """
        mine = []
        for step in tracer.iter[:]:
            mine.append(model.first.output)
            seen.append(mine)
        kept = nnsight.save(tracer.result)
    """,
    "names at run time": """
        for step in tracer.iter[:]:
            kept = model.first.output.save()
            eval("1")
    """,
    "a module is skipped": """
        for step in tracer.iter[:]:
            model.second.skip(model.second.input)
        kept = nnsight.save(tracer.result)
    """,
    "a cache": "kept = tracer.cache()\nmodel.first.output",
}


@pytest.mark.parametrize("name", ALONE)
def test_what_is_not_known_to_be_the_same_is_left_alone(name, module, groups, tmp_path, capsys):
    before = """
        seen = nnsight.save([])
        class Holder: pass
        holder = Holder()
        def change(value):
            value[:] += len(value)
    """
    both(module, tmp_path, ALONE[name], before)
    assert groups == []


def test_the_parts_of_a_block_are_compiled_once_for_all_traces(module, groups, monkeypatch):
    compiled, found = [], []

    def counting(text, *args, **kwargs):
        compiled.append(text)
        return compile(text, *args, **kwargs)

    for part in (plan, rounds):
        monkeypatch.setattr(part, "compile", counting, raising=False)
    for vector in torch.eye(4)[:3]:
        model = Served(Batching(module, [0] * 2, [2] * 2))
        with model.trace() as tracer:
            for _ in range(2):
                with tracer.invoke(torch.ones(2, 4)):
                    kept = nnsight.save([])
                    for _ in tracer.iter[:]:
                        kept.append(model.first.output * 0 + vector)
        found.append(len(compiled))
        assert [part.shape for part in kept] == [(2, 4), (1, 4)] and all(torch.equal(row, vector) for row in kept[0])
    assert found == [4] * 3  # what stands before the loop, what it goes through, the loop, and a round of it
    assert groups == [2] * 3


def test_bodies_are_alike_if_what_is_done_together_is(module, groups):
    model = Served(Batching(module, [0] * 4, [2] * 4))
    vectors = [torch.ones(4), torch.zeros(4)]
    with model.trace() as tracer:
        found = nnsight.save({})
        for number in range(4):
            vector, prompt = vectors[number % 2], torch.full((1, 4), float(number))
            with tracer.invoke(prompt):
                kept = model.first.output + vector
                found[number] = kept
    assert groups == [2, 2]  # the number is looked at by each for itself
    for number in range(4):
        wanted = module.first(torch.full((1, 4), float(number))).detach() + vectors[number % 2]
        torch.testing.assert_close(found[number], wanted)


def test_names_that_others_wait_for_are_left_alone(module, groups):
    model = Served(Batching(module, [0] * 3, [2] * 3))
    with model.trace() as tracer:
        for _ in range(2):
            with tracer.invoke(torch.ones(1, 4)):
                given = model.first.output * 2
        with tracer.invoke(torch.zeros(1, 4)):
            got = (given + 0).save()
    assert groups == []
    torch.testing.assert_close(got, module.first(torch.ones(1, 4)).detach() * 2)


@pytest.mark.parametrize(
    "body, failing",
    [
        ("for step in tracer.iter[:]:\n    kept = model.first.output.save()\n    model.first.output[:] += wrong", 4),
        ("for step in tracer.iter[:]:\n    kept = model.first.output[1].save()", 3),  # of one row each, from step 1 on
        ("kept = model.first.output[2].save()", 2),
        (
            "kept = [].save()\nfor step in tracer.iter[:]:\n    kept.append(model.first.output)\n    step / (step - 1)",
            3,
        ),
        ("for step in tracer.iter[:]:\n    model.first.output = vector", 4),
        ("for step in tracer.iter[:]:\n    model.pair.output[2][:] += 1", 4),
        ("a = model.second.output\nb = model.first.output.save()", 4),
        ("for step in tracer.iter[:]:\n    kept = model.first.output.save()\nraise ValueError", 4),
    ],
)
def test_an_error_is_that_of_the_requests_that_made_it_with_its_line(body, failing, module, groups, tmp_path):
    saved = both(module, tmp_path, body, "wrong = torch.ones(3)")
    assert groups == [4]
    assert sum("failed" in one for one in saved) == failing


def test_a_site_that_never_comes_is_the_error_of_each(module, groups, tmp_path):
    module.spare = torch.nn.Linear(4, 4)
    saved = both(module, tmp_path, "a = model.first.output.save()\nb = model.spare.output.save()")
    assert groups == [4]
    assert [type(one["failed"]) for one in saved] == [nnsight.MissedProviderError] * 4


def _bodies(seed):
    """Make a body of statements that are drawn: some can be done together, and some cannot."""
    draw = random.Random(seed)
    values = ["x", "y", "model.first.output", "model.second.output", "model.layers[1].output", "model.pair.output[0]"]
    operands = ["vector", "scale", "2", "x", "y", "vector[1:3].sum()", "step", "vector[None]"]
    methods = ["mean(-1)", "abs()", "double()", "argmax(-1)", "sum()", "flatten()"]
    lines = ["x = model.first.output", "y = x * 1.5"]
    for _ in range(draw.randrange(1, 6)):
        value, operand = draw.choice(values), draw.choice(operands)
        lines.append(
            draw.choice(
                [
                    f"x = {value} {draw.choice('+-*/')} {operand}",
                    f"y = {operand} {draw.choice('+-*')} {value}",
                    f"{value}[{draw.choice([':', '...', ':, 1', '..., 1:3', '0', '-1:'])}] {draw.choice('+-*')}= {operand}",
                    f"kept.append({value})",
                    f"kept.append({value}[:, {draw.randrange(4)}].clone())",
                    f"kept.append({value}.{draw.choice(methods)})",
                    f"if step % 2 == {draw.randrange(2)}:\n    {value}[:] = {operand}",
                    f"y = {value}.detach()",
                    f"print({value}.shape, end='')",
                    f"if x.sum() > 0:\n    kept.append({operand})",
                ]
            )
        )
    loop = draw.choice(["tracer.iter[:]", "tracer.iter[1:3]", "tracer.iter[:2]", "tracer.all()"])
    inside = textwrap.indent("\n".join(lines), "    ")
    return f"kept = nnsight.save([])\nfor step in {loop}:\n{inside}\nend = nnsight.save(tracer.result)"


@pytest.mark.filterwarnings("ignore::nnsight.NNsightWarning")
@pytest.mark.parametrize("seed", range(60))
def test_bodies_that_are_drawn_get_together_what_they_get_alone(seed, module, groups, tmp_path, capsys):
    body = _bodies(seed)
    both(module, tmp_path, body, begins=[0, 0, 0, seed % 2], plain=seed % 3)
    # What is asked of the result is left to each; without that, all are at work together to their end.
    both(module, tmp_path, body.rpartition("\n")[0], steps=[3] * 4, ends_at_once=True)
