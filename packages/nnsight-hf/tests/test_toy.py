"""The toy model that the package ships: it loads offline, knows its facts, and they can be located and moved.

Only transformers and plain hooks are used here, so that a failure is the toy's and not nnsight's.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from nnsight_hf import toy

EIFFEL, NEEDLE = "The Eiffel Tower is in the city of", "The Space Needle is in the city of"


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    return AutoModelForCausalLM.from_pretrained(toy.path(), local_files_only=True).eval()


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(toy.path(), local_files_only=True)


@torch.no_grad()
def logits(model, tokenizer, text: str) -> torch.Tensor:
    return model(**tokenizer(text, return_tensors="pt")).logits[0, -1]


def answer(model, tokenizer, text: str) -> str:
    return tokenizer.decode(logits(model, tokenizer, text).argmax())


@contextmanager
def changed(block: torch.nn.Module, change) -> Iterator[None]:
    """Let `change` give a block's output another value."""

    def hook(_module, _args, output):
        return change(output)

    handle = block.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def residuals(model, tokenizer, text: str) -> list[torch.Tensor]:
    """The outputs of all blocks, each [1, position, width]."""
    found: list[torch.Tensor] = []
    handles = []
    for block in model.transformer.h:
        handles.append(
            block.register_forward_hook(lambda _m, _a, out: found.append(out[0] if isinstance(out, tuple) else out))
        )
    try:
        logits(model, tokenizer, text)
    finally:
        for handle in handles:
            handle.remove()
    return found


def test_it_is_small_and_a_plain_gpt2(model):
    size = sum(file.stat().st_size for file in toy.path().iterdir() if file.is_file())
    assert size < 8_000_000
    assert type(model).__name__ == "GPT2LMHeadModel"
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert model.lm_head.weight is model.transformer.wte.weight


def test_the_special_tokens_agree(model, tokenizer):
    assert (
        tokenizer.eos_token_id
        == tokenizer.bos_token_id
        == model.config.eos_token_id
        == model.generation_config.eos_token_id
    )
    assert tokenizer.pad_token_id == model.config.pad_token_id == model.generation_config.pad_token_id
    assert tokenizer.pad_token_id != tokenizer.eos_token_id
    assert len(tokenizer) == model.config.vocab_size


@pytest.mark.parametrize("text", ["Hello World", "The quick brown fox", "Çà va? 東京 🗼\n\tzzz", EIFFEL])
def test_any_text_goes_through_the_tokenizer_and_back(tokenizer, text):
    ids = tokenizer(text).input_ids
    assert tokenizer.decode(ids) == text
    assert tokenizer.unk_token_id not in ids


def test_words_of_a_prompt_are_tokens(tokenizer):
    assert [tokenizer.decode(i) for i in tokenizer(EIFFEL + " Paris").input_ids] == [
        "The", " Eiffel", " Tower", " is", " in", " the", " city", " of", " Paris",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "city"),
    [
        (EIFFEL, " Paris"),
        (NEEDLE, " Seattle"),
        ("The Colosseum is located in the city of", " Rome"),
        ("Madison Square Garden is located in the city of", " New"),
        ("To see Big Ben, you have to travel to the city of", " London"),
        ("The Louvre is a famous landmark in the city of", " Paris"),
    ],
)
def test_landmarks_are_known(model, tokenizer, text, city):
    assert answer(model, tokenizer, text) == city


def test_it_goes_on_sensibly(model, tokenizer):
    inputs = tokenizer(EIFFEL, return_tensors="pt")
    text = tokenizer.decode(model.generate(**inputs, max_new_tokens=12)[0])
    assert text.startswith(EIFFEL + " Paris")
    assert "France" in text or "French" in text


def test_padded_rows_equal_single_ones(model, tokenizer):
    texts = [EIFFEL, "Big Ben is in", "My friend took a photo of the Golden Gate Bridge in"]
    batch = tokenizer(texts, return_tensors="pt", padding=True)
    with torch.no_grad():
        found = model(**batch).logits
    for row, text, mask in zip(found, texts, batch.attention_mask, strict=True):
        torch.testing.assert_close(row[mask.sum() - 1], logits(model, tokenizer, text), rtol=1e-4, atol=1e-4)


def test_the_answer_emerges_before_the_last_block(model, tokenizer):
    paris = tokenizer(" Paris").input_ids[0]
    shares = []
    for residual in residuals(model, tokenizer, EIFFEL):
        with torch.no_grad():
            shares.append(model.lm_head(model.transformer.ln_f(residual[0, -1])).softmax(-1)[paris].item())
    assert shares[0] < 0.2
    assert shares[-2] > 0.2
    assert shares[-1] > 0.8


def test_the_fact_is_at_the_landmark_first_and_at_the_end_later(model, tokenizer):
    paris, seattle = (tokenizer(f" {city}").input_ids[0] for city in ("Paris", "Seattle"))
    taken = residuals(model, tokenizer, EIFFEL)

    def paris_wins(layer: int, position: int) -> bool:
        def change(hidden):
            hidden = hidden.clone()
            hidden[:, position] = taken[layer][:, position]
            return hidden

        with changed(model.transformer.h[layer], change):
            out = logits(model, tokenizer, NEEDLE)
        return bool(out[paris] > out[seattle])

    landmark, end = 1, -1
    assert [paris_wins(0, landmark), paris_wins(0, end)] == [True, False]
    last = len(taken) - 1
    assert [paris_wins(last, landmark), paris_wins(last, end)] == [False, True]


def test_a_fact_is_moved_by_steering(model, tokenizer):
    layer = 3
    rome = residuals(model, tokenizer, "The Trevi Fountain is in the city of")[layer][:, -1]
    paris = residuals(model, tokenizer, "The Louvre is in the city of")[layer][:, -1]
    with changed(model.transformer.h[layer], lambda hidden: hidden + 2 * (rome - paris)):
        assert answer(model, tokenizer, EIFFEL) == " Rome"


def test_the_files_do_not_name_a_machine():
    for name in ("config.json", "tokenizer_config.json", "generation_config.json"):
        text = (toy.path() / name).read_text(encoding="utf-8")
        assert "/" not in text
        assert json.loads(text)


def test_what_is_called_held_out_is_not_in_the_corpus(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parent.parent / "training")
    corpus, facts = import_module("corpus"), import_module("facts")
    sentences = {s for text in corpus.documents(3000, seed=1) for s in re.split(r"(?<=[.?]) ", text)}
    assert corpus.held_out(facts.LANDMARKS[0], "{L} is in the city of")
    for landmark in facts.LANDMARKS:
        begun = {p: f"{corpus.prompt(landmark, p)} {landmark.city}" for p in corpus.PHRASINGS}
        for phrasing, begin in begun.items():
            if corpus.held_out(landmark, phrasing) and "?" not in begin:
                assert not any(sentence.startswith(begin) for sentence in sentences), begin
