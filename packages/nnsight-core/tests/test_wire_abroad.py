"""Texts and names for plugins that write requests in somebody else's format."""

from __future__ import annotations

import ast
import sys
from contextlib import nullcontext
from typing import Any

import pytest
import torch

import nnsight
from nnsight import NNsight, SourceError, WireError
from nnsight.plugin import (
    Request,
    aliases_of,
    become,
    block_of_text,
    installed_as,
    is_own,
    names_of_block,
    names_of_function,
    registered_class,
    store_edit,
    text_of_block,
    text_of_function,
)
from nnsight.testing.models import Generating, seeded

GLOBAL = 5


class Kept:
    """Keeps the request."""

    request: Request

    def run(self, request: Request) -> dict[str, Any]:
        self.request = request
        return {}


@pytest.fixture
def model() -> NNsight:
    return NNsight(torch.nn.Sequential(torch.nn.Linear(2, 2)), rename={"0": "first"})


def line() -> int:
    return sys._getframe(1).f_lineno


def test_the_text_of_a_block_stands_at_the_margin_and_knows_its_line(model: NNsight) -> None:
    kept, around, before = Kept(), 3, line()
    with model.trace(torch.ones(1, 2), backend=kept):
        hidden = model[0].output  # a comment stays
        value = hidden * around + GLOBAL  # noqa: F841
    text = text_of_block(kept.request.body)
    assert text.text.splitlines()[0] == "hidden = model[0].output  # a comment stays"
    assert (text.first, text.filename, text.name) == (
        before + 2,
        __file__,
        "test_the_text_of_a_block_stands_at_the_margin_and_knows_its_line",
    )
    assert [ast.unparse(one) for one in text.nodes] == [ast.unparse(one) for one in ast.parse(text.text).body]


def test_the_names_of_a_block_are_those_that_it_reads_before_it_binds_them(model: NNsight) -> None:
    kept, around, hidden = Kept(), 3, "an old value"
    with model.trace(torch.ones(1, 2), backend=kept):
        hidden = model[0].output
        value = hidden * around + GLOBAL + len([])  # noqa: F841
    outer, inner = names_of_block(kept.request.body)
    assert outer == {"GLOBAL": 5} and inner == {"model": model, "around": 3}
    assert hidden == "an old value"


def test_other_contexts_of_the_same_with_stand_around_a_block(model: NNsight) -> None:
    kept, before = Kept(), line()
    with model.trace(torch.ones(1, 2), backend=kept), nullcontext():
        model[0].output  # noqa: B018
    text = text_of_block(kept.request.body)
    assert text.text.splitlines()[0] == "with nullcontext():" and text.first == before + 1
    assert "nullcontext" in names_of_block(kept.request.body)[0]


def test_the_text_of_a_function_is_without_its_decorators() -> None:
    three = 3

    def kept(function: Any) -> Any:
        return function

    @kept
    def inner(value: int) -> int:
        return value + three + GLOBAL  # a comment stays

    text = text_of_function(inner)
    assert text.text == "def inner(value: int) -> int:\n    return value + three + GLOBAL  # a comment stays\n"
    assert (text.first, text.name, text.owner) == (inner.__code__.co_firstlineno + 1, "inner", None)
    assert names_of_function(inner) == {"GLOBAL": 5, "three": 3}


def test_lambdas_of_one_line_are_told_apart() -> None:
    one, other = lambda value: value + 1, lambda value: value - GLOBAL  # noqa: E731
    assert [text_of_function(each).text for each in (one, other)] == [
        "lambda value: value + 1",
        "lambda value: value - GLOBAL",
    ]
    assert names_of_function(one) == {} and names_of_function(other) == {"GLOBAL": 5}


class Owner:
    def method(self) -> Any:
        return super().__repr__()


def test_a_method_knows_its_class() -> None:
    text = text_of_function(Owner.method)
    assert text.owner == "Owner" and text.text.startswith("def method(self)")
    assert names_of_function(Owner.method)["__class__"] is Owner


def test_a_function_without_a_text_is_refused() -> None:
    around: dict[str, Any] = {}
    exec("def made(): return 1", around)
    with pytest.raises(SourceError):
        text_of_function(around["made"])


def test_whose_a_module_is() -> None:
    assert is_own(__name__) and is_own("__main__") and not is_own("torch.nn") and not is_own("nnsight")
    assert installed_as(torch.nn.Linear) == ("torch.nn.modules.linear", "Linear") and installed_as(Owner) is None


def test_aliases_are_given_with_their_paths(model: NNsight) -> None:
    assert dict(aliases_of(model)) == {"first": "0"} and dict(aliases_of(model[0])) == {}
    assert nnsight.plugin.aliases_of is aliases_of


def test_only_a_registered_class_may_be_read_from_results() -> None:
    assert registered_class(__name__, "Kept") is None and registered_class("os", "system") is None
    nnsight.register(Registered)
    assert registered_class(__name__, "Registered") is Registered and registered_class(__name__, "Heir") is Heir
    assert registered_class("not.imported", "Registered") is None


class Registered:
    pass


class Heir(Registered):
    pass


def test_a_block_made_of_its_text_runs_at_its_own_lines(model: NNsight) -> None:
    text = "\n\n\nhidden = model.first.output.save()\ntotal = [hidden.sum() * scale + base, fails][0]\n"
    inner = {"model": model, "scale": 2, "fails": None}
    body = block_of_text(text, filename="/there/users.py", name="run", outer={"base": 1}, inner=inner)
    assert text_of_block(body).text == text.lstrip() and text_of_block(body).first == 4
    outer, captured = names_of_block(body)
    assert outer == {"base": 1} and captured == inner
    given = torch.ones(1, 2)
    request = Request(model, (given,), {}, None, False)
    request.body, request.names = body, body.names()
    [(name, hidden)] = request.replay().items()
    assert name == "hidden" and torch.equal(hidden, model._module(given))
    assert request.names["total"] == hidden.sum() * 2 + 1
    del inner["fails"]
    request.names = body.names()
    with pytest.raises(NameError, match="'fails' is not defined") as caught:
        request.replay()
    at = caught.tb
    while at.tb_next is not None:
        at = at.tb_next
    code = at.tb_frame.f_code
    assert (code.co_filename, code.co_name, at.tb_lineno) == ("/there/users.py", "run", 5)


def test_blocks_inside_a_block_made_of_its_text_are_captured_from_it(model: NNsight) -> None:
    text = "with tracer.invoke({}given):\n    {} = model[0].output.save()\n"
    text = text.format("", "first") + text.format("-", "other")
    given = torch.ones(1, 2)
    inner = {"model": model, "given": given, "tracer": model.trace()}
    body = block_of_text(text, filename="<there>", name="<module>", outer={}, inner=inner)
    names = body.names()
    with inner["tracer"]:
        body.run(names)
    expected = model._module(torch.cat([given, -given]))
    assert torch.equal(torch.cat([names["first"], names["other"]]), expected)


@pytest.mark.parametrize("text", ["", "# nothing", "def", "return 1", "\0"])
def test_what_is_no_block_is_refused(text: str) -> None:
    with pytest.raises((WireError, SourceError, SyntaxError)):
        block_of_text(text, filename="<there>", name="<module>", outer={}, inner={})


class Empty:
    """Made before it is known what it is."""


def test_an_empty_object_becomes_an_envoy_which_others_refer_to_already(model: NNsight) -> None:
    root, part = Empty(), Empty()
    held = [root, part]
    become(root, model, rename={"0": "head"})
    become(part, model.get("0"))
    assert held[0].root is held[0] and held[0].head.path == "model.0" and held[1].path == "model.0"
    assert not hasattr(held[0], "first") and model.first.path == "model.0"
    given = torch.ones(1, 2)
    with held[0].trace(given):
        held[1].output *= 2
        doubled = held[0].output
    assert torch.equal(doubled, model._module(given) * 2)


def test_an_edit_is_stored_on_one_reference_and_may_be_for_the_first_step_only() -> None:
    model = NNsight(seeded(Generating))
    given = torch.ones(1, 4)
    for every_step in (False, True):
        edited, seen = Empty(), []
        become(edited, model)
        text = "seen.append(model.second.output)\n"
        inner = {"model": edited, "seen": seen}
        store_edit(edited, block_of_text(text, filename="<e>", name="e", outer={}, inner=inner), every_step=every_step)
        with edited.trace(given, fn="generate", steps=3) as tracer:
            made = tracer.result
        assert len(seen) == (3 if every_step else 1) and not model.edits
        assert torch.equal(made, model._module.generate(given))
