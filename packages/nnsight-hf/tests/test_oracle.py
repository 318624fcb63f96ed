"""Every architecture of causal language models: the oracle's checks, and that they can fail."""

from __future__ import annotations

import importlib.metadata
import warnings
from typing import Any

import pytest
import torch
import transformers
from packaging.version import Version

from nnsight_hf.oracle import checks, table, zoo
from nnsight_hf.oracle.exceptions import FAILS, PADDED, UNBUILT
from nnsight_hf.oracle.run import Answer, ask

#: What is known is known of this one.
KNOWN = Version(importlib.metadata.version("transformers")).release[:2] == (5, 23)


@pytest.fixture
def quiet():
    """Let transformers say nothing of its warnings, and for the other tests of this process as much as before."""
    before = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    yield
    transformers.logging.set_verbosity(before)


@pytest.mark.skipif(not KNOWN, reason="the exceptions are listed for transformers 5.23")
@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize("architecture", zoo.architectures())
def test_every_architecture(architecture: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        answer = ask(architecture)
    assert answer.news() == []


@pytest.mark.skipif(not KNOWN, reason="the exceptions are listed for transformers 5.23")
def test_at_least_95_of_100_pass_everything() -> None:
    assert set(UNBUILT) | set(FAILS) <= set(zoo.architectures())
    built = len(zoo.architectures()) - len(UNBUILT)
    assert (built - len(FAILS)) / built >= 0.95


def broken(architecture: str, monkeypatch: pytest.MonkeyPatch, name: str, value: Any) -> Any:
    model = checks.wrap(zoo.module(architecture))
    monkeypatch.setattr(type(model), name, value)
    return model


def test_a_batch_without_positions_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    model = broken("gpt2", monkeypatch, "_forward", lambda self, **kwargs: self._module(**kwargs))
    verdict = checks.check(model, "batched")
    assert verdict.kind == "fails" and "off by" in verdict.why
    assert checks.check(model, "trace").kind == "holds"


def test_a_generation_of_other_tokens_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def generate(self: Any, *given: Any, **kwargs: Any) -> Any:
        return torch.zeros(1, 13, dtype=torch.long)

    assert checks.check(broken("gpt2", monkeypatch, "generate", generate), "generate").kind == "fails"


def test_rows_that_are_mixed_up_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    from nnsight_hf.rows import ProbedLayout

    take = ProbedLayout.take
    monkeypatch.setattr(ProbedLayout, "take", lambda self, value, rows, path: take(self, value, (0, rows[1]), path))
    model = checks.wrap(zoo.module("gpt2"))
    assert checks.check(model, "batched").kind == "fails" and checks.check(model, "edit").kind == "fails"


def test_an_edit_without_effect_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "_edit", lambda output: output)
    assert checks.check(checks.wrap(zoo.module("gpt2")), "edit").why == "the edit changes nothing"


def test_wrong_shapes_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    model = checks.wrap(zoo.module("gpt2"))
    scan = type(model).scan
    monkeypatch.setattr(type(model), "scan", lambda self, prompt: scan(self, prompt[:-1]))
    assert checks.check(model, "scan").kind == "fails"


def test_an_input_that_differs_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    value = checks.value

    def wrong(model: Any, site: Any) -> Any:
        given = value(model, site)
        return ((given[0][0] / 2,), {}) if site == ("lm_head", "inputs") else given

    monkeypatch.setattr(checks, "value", wrong)
    assert "lm_head.inputs" in checks.check(checks.wrap(zoo.module("gpt2")), "trace").why


def test_absent_names_are_shown_as_such() -> None:
    verdict = checks.check(checks.wrap(zoo.module("bart")), "names")
    assert verdict.kind == "lacks" and "normalises the sum" in verdict.why


def test_values_that_padding_spoils_are_still_those_that_are_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    for architecture in PADDED:
        monkeypatch.setattr(checks, "PADDED", {})
        assert checks.check(checks.wrap(zoo.module(architecture)), "batched").kind == "fails"


def test_a_refusal_is_shown_as_one() -> None:
    answer = ask("bart", ["together"])
    assert answer.verdicts["together"].kind == "refused" and answer.passes
    assert "Generate from each in a run of its own" in answer.verdicts["together"].why


def test_news_are_told_both_ways() -> None:
    fails, holds = checks.Verdict("fails", "off"), checks.Verdict("holds")
    assert Answer("gpt2", None, {"scan": fails}).news() == ["scan: off"]
    assert Answer("dbrx", None, {"scan": fails}).news() == []
    assert Answer("dbrx", None, {"scan": holds}).news() == ["scan holds, and is listed as one that fails"]
    assert Answer("gpt2", "no").news() == ["cannot be built any more: no"] and Answer("blt", "no").news() == []
    assert Answer("blt").news() == ["can be built, and is listed as one that cannot"]


def test_the_page_names_every_exception() -> None:
    page = table.page(
        [Answer("gpt2", None, {name: checks.Verdict("holds") for name in checks.CHECKS}), Answer("blt", "x")]
    )
    assert (
        "\n2 architectures, 1 can be built, 1 fail no check (100.0%); of these, 1 are refused nothing and lack no name.\n"
        in page
    )
    assert all(f"`{name}`" in page for name in (*FAILS, *PADDED, *UNBUILT)) and "| `gpt2` | ✓ |" in page
