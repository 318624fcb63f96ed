"""Bars: for what takes long, in every kind of generation, and never a change of what is generated."""

from __future__ import annotations

import builtins
import contextlib
from typing import Any

import pytest
import torch
import tqdm.auto
import transformers

from nnsight import LanguageModel
from nnsight_hf import progress

PROMPT = "The Eiffel Tower is in the city of"


class Bar:
    """In place of tqdm's: keeps what it is told."""

    made: list[Bar] = []

    def __init__(self, **options: Any) -> None:
        self.options = options
        self.moves: list[int] = []
        self.closed = False
        Bar.made.append(self)

    def update(self, by: int) -> None:
        self.moves.append(by)

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def bars(monkeypatch: pytest.MonkeyPatch) -> list[Bar]:
    monkeypatch.setattr(tqdm.auto, "tqdm", Bar)
    monkeypatch.setattr(Bar, "made", [])
    return Bar.made


@pytest.fixture(scope="module")
def toy_model() -> Any:
    return LanguageModel("nnsight/toy-landmarks", dispatch=True)


@pytest.fixture(scope="module")
def plain(toy_model: Any) -> Any:
    return toy_model._model


@pytest.mark.parametrize(
    "options",
    [{}, {"num_beams": 3}, {"num_beams": 2, "num_return_sequences": 2}, {"use_cache": False}],
    ids=lambda options: "-".join(options) or "greedy",
)
def test_each_step_moves_the_bar_and_changes_nothing(toy_model, plain, bars, options):
    ids = toy_model.tokenizer(PROMPT, return_tensors="pt")
    expected = plain.generate(**ids, max_new_tokens=5, min_new_tokens=5, **options)
    tokens = toy_model.generate(PROMPT, max_new_tokens=5, min_new_tokens=5, progress=True, **options)
    assert torch.equal(tokens, expected)
    (bar,) = bars
    assert bar.moves == [1] * 5 and bar.closed and bar.options["total"] == 5 and bar.options["delay"] == 0


def test_a_bar_over_a_traced_generation_with_invokes(toy_model, bars):
    with toy_model.generate(max_new_tokens=3, min_new_tokens=3, progress=True) as tracer:
        with tracer.invoke(PROMPT):
            for step in tracer.iter[:]:
                last = step
        with tracer.invoke("The Louvre is in"):
            pass
    assert last == 2 and bars[0].moves == [1, 1, 1] and bars[0].closed


def test_criteria_of_the_user_still_stop(toy_model, bars):
    class AtTwo(transformers.StoppingCriteria):
        def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
            return torch.full((len(input_ids),), input_ids.shape[1] >= 10)

    tokens = toy_model.generate(PROMPT, max_new_tokens=9, stopping_criteria=[AtTwo()], progress=True)
    assert tokens.shape[1] == 10 and sum(bars[0].moves) == 2


def test_the_bar_is_taken_off_when_the_generation_fails(toy_model, bars):
    with pytest.raises(ZeroDivisionError):
        with toy_model.generate(PROMPT, max_new_tokens=5, progress=True) as tracer:
            for step in tracer.iter[:]:
                toy_model.lm_head.output
                1 / (1 - step)
    assert bars[0].closed and len(bars[0].moves) == 1


def test_without_being_asked_it_is_shown_to_somebody_who_waits(toy_model, bars, monkeypatch):
    toy_model.generate(PROMPT, max_new_tokens=1)
    assert bars == []  # a script
    monkeypatch.setattr(builtins, "__IPYTHON__", True, raising=False)
    toy_model.generate(PROMPT, max_new_tokens=1)
    assert [bar.options["delay"] for bar in bars] == [progress.PATIENCE]
    toy_model.generate(PROMPT, max_new_tokens=1, progress=False)
    assert len(bars) == 1


def test_a_trace_refuses_it(toy_model):
    with pytest.raises(TypeError, match="`progress` belongs to a generation"):
        with toy_model.trace(PROMPT, progress=True):
            toy_model.lm_head.output


def test_a_quick_load_shows_nothing_and_a_long_one_its_bar(capfd, monkeypatch):
    LanguageModel("nnsight/toy-landmarks", dispatch=True)
    assert "Loading" not in capfd.readouterr().err
    monkeypatch.setattr(progress, "PATIENCE", 0)
    assert transformers.utils.logging.is_progress_bar_enabled(), "another test switched them off for the process"
    LanguageModel("nnsight/toy-landmarks", dispatch=True)
    assert "Loading" in capfd.readouterr().err


def test_relies_on_set_tqdm_hook(monkeypatch):
    """transformers.utils.logging.set_tqdm_hook: takes a hook, gives back the one before, and calls it for each bar."""
    logging = transformers.utils.logging
    seen: list[dict[str, Any]] = []

    def mine(bar: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        seen.append(kwargs)
        return bar(*args, **kwargs)

    assert logging.set_tqdm_hook(mine) is None
    try:
        with contextlib.suppress(KeyError):
            with progress.patient():
                list(logging.tqdm([1, 2]))
                raise KeyError
        assert seen == [{"delay": progress.PATIENCE}]
        list(logging.tqdm([1]))
        assert seen[1:] == [{}]
    finally:
        assert logging.set_tqdm_hook(None) is mine
