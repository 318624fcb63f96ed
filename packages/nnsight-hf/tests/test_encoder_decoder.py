"""Encoder-decoder models: invokes of different lengths on either side share a forward, and get what they get alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from checkpoints import LONG, MIDDLE, SHORT, ids, tokenizer

import nnsight

ROUNDING = {"rtol": 1e-4, "atol": 1e-4}
TEXTS = {SHORT: [5, 6, 7, 8], LONG: [9, 10], MIDDLE: [11, 12, 13]}
ALL = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False}


def _bart() -> Any:
    """Learned positions."""
    return transformers.BartConfig(
        vocab_size=26, d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4,
        decoder_attention_heads=4, encoder_ffn_dim=48, decoder_ffn_dim=48, max_position_embeddings=64, pad_token_id=0,
        bos_token_id=1, eos_token_id=2, decoder_start_token_id=2, forced_eos_token_id=None,
    )  # fmt: skip


def _t5() -> Any:
    """Relative positions."""
    return transformers.T5Config(
        vocab_size=26, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, pad_token_id=0, eos_token_id=2,
        decoder_start_token_id=0, feed_forward_proj="gated-gelu",
    )  # fmt: skip


@pytest.fixture(scope="module", params=[_bart, _t5], ids=["bart", "t5"])
def plain(request: pytest.FixtureRequest) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = transformers.AutoModelForSeq2SeqLM.from_config(request.param()).eval()
        with torch.no_grad():
            for parameter in module.parameters():
                if parameter.dim() > 1:
                    parameter.normal_(std=0.3)
    return module


@pytest.fixture(scope="module")
def model(plain: Any) -> Any:
    return nnsight.LanguageModel(plain, tokenizer=tokenizer())


def alone(plain: Any, text: str, **more: Any) -> Any:
    with torch.no_grad():
        return plain(torch.tensor([ids(text)]), **{name: torch.tensor([value]) for name, value in more.items()})


@pytest.mark.parametrize("given", ["decoder_input_ids", "labels"])
def test_sides_of_different_lengths(model, plain, given) -> None:
    logits, own = {}, {}
    with model.trace() as tracer:
        for text, row in TEXTS.items():
            with tracer.invoke(text, **{given: row}):
                logits[text], own[text] = model.output.logits, model.output.loss
        with tracer.invoke():
            loss = model.output.loss
    losses = []
    for text, row in TEXTS.items():
        want = alone(plain, text, **{given: row})
        torch.testing.assert_close(logits[text][:, : len(row)], want.logits, **ROUNDING)
        if given == "labels":
            torch.testing.assert_close(own[text], want.loss, **ROUNDING)
        losses.append(0 if want.loss is None else want.loss * len(row))
    if given == "labels":
        torch.testing.assert_close(loss, sum(losses) / sum(map(len, TEXTS.values())), **ROUNDING)


def test_labels_as_long_as_the_input(model, plain) -> None:
    rows = {SHORT: [5, 6, 7, 8], MIDDLE: [11, 12]}
    losses = {}
    with model.trace() as tracer:
        for text, row in rows.items():
            with tracer.invoke(text, labels=row):
                losses[text] = model.output.loss
        with tracer.invoke():
            loss = model.output.loss
    wants = {text: alone(plain, text, labels=row).loss for text, row in rows.items()}
    for text, want in wants.items():
        torch.testing.assert_close(losses[text], want, **ROUNDING)
    torch.testing.assert_close(loss, (wants[SHORT] * 4 + wants[MIDDLE] * 2) / 6, **ROUNDING)


def test_where_the_tokens_of_the_decoder_lie(model, plain) -> None:
    with model.trace() as tracer:
        for text, row in TEXTS.items():
            with tracer.invoke(text, decoder_input_ids=row):
                if text == LONG:
                    tokens = tracer.tokens
                    last = model.output.logits[:, tokens.decoder.last]
                    own = tokens.decoder.own(model.output.logits)
                    state = tokens.own(model.output.encoder_last_hidden_state)
    want = alone(plain, LONG, decoder_input_ids=TEXTS[LONG])
    torch.testing.assert_close(last, want.logits[:, -1], **ROUNDING)
    torch.testing.assert_close(own, want.logits, **ROUNDING)
    torch.testing.assert_close(state, want.encoder_last_hidden_state, **ROUNDING)


def test_embeddings_for_either_side(model, plain) -> None:
    embed = plain.get_input_embeddings()
    logits = {}
    with torch.no_grad(), model.trace() as tracer:
        for text, row in TEXTS.items():
            with tracer.invoke(
                inputs_embeds=embed(torch.tensor(ids(text))), decoder_inputs_embeds=embed(torch.tensor([row]))
            ):
                logits[text] = model.output.logits
    with torch.no_grad():
        for text, row in TEXTS.items():
            want = plain(
                inputs_embeds=embed(torch.tensor([ids(text)])), decoder_inputs_embeds=embed(torch.tensor([row]))
            )
            torch.testing.assert_close(logits[text][:, : len(row)], want.logits, **ROUNDING)


def test_ragged_rows_of_one_input(model, plain) -> None:
    with model.trace([SHORT, LONG], decoder_input_ids=[TEXTS[SHORT], TEXTS[LONG]]) as tracer:
        tokens, logits = tracer.tokens, model.output.logits
    for number, text in enumerate([SHORT, LONG]):
        want = alone(plain, text, decoder_input_ids=TEXTS[text]).logits
        torch.testing.assert_close(tokens.row(number).decoder.own(logits), want, **ROUNDING)


def test_an_edit_of_the_decoder_stays_with_its_row(model, plain) -> None:
    decoder = model.get("model.decoder.layers" if hasattr(plain, "model") else "decoder.block")
    with model.trace(SHORT, decoder_input_ids=TEXTS[SHORT]):
        first = decoder[0].output
        (first if isinstance(first, torch.Tensor) else first[0])[:, 1] = 0
        want = model.output.logits
    with model.trace() as tracer:
        with tracer.invoke(LONG, decoder_input_ids=TEXTS[LONG]):
            other = model.output.logits
        with tracer.invoke(SHORT, decoder_input_ids=TEXTS[SHORT]):
            first = decoder[0].output
            (first if isinstance(first, torch.Tensor) else first[0])[:, tracer.tokens.decoder[1]] = 0
            got = model.output.logits
    torch.testing.assert_close(got, want, **ROUNDING)
    torch.testing.assert_close(other[:, :2], alone(plain, LONG, decoder_input_ids=TEXTS[LONG]).logits, **ROUNDING)


@pytest.mark.parametrize(
    "options",
    [{}, {"num_beams": 3}, {"num_beams": 4, "num_return_sequences": 2}, {"do_sample": True, "num_return_sequences": 2}],
    ids=["greedy", "beams", "beams of which two", "samples"],
)
def test_generation(model, plain, options) -> None:
    encoder = model.get("model.encoder" if hasattr(plain, "model") else "encoder")
    results, states, steps = {}, {}, {}
    with model.generate(**{**ALL, **options}) as tracer:
        for text in TEXTS:
            with tracer.invoke(text):
                states[text] = tracer.tokens.own(encoder.output[0])
                steps[text] = model.output.logits
                results[text] = tracer.result
    count = options.get("num_return_sequences", 1)
    entries = options.get("num_beams", count)
    for text in TEXTS:
        assert results[text].shape[0] == count and steps[text].shape[0] == entries
        with torch.no_grad():
            state = plain.get_encoder()(torch.tensor([ids(text)])).last_hidden_state
        assert states[text].shape[0] == 1, "the encoder's rows are not repeated for the beams"
        torch.testing.assert_close(states[text], state, **ROUNDING)
        if "do_sample" not in options:
            want = plain.generate(torch.tensor([ids(text)]), **{**ALL, **options})
            assert torch.equal(results[text], want)


def test_prefixes_of_different_lengths_are_refused(model, plain) -> None:
    with pytest.raises(nnsight.RowsError, match="decoder"):
        with model.generate(**ALL) as tracer:
            for text, row in TEXTS.items():
                with tracer.invoke(text, decoder_input_ids=row):
                    tracer.result
    with model.generate(**ALL) as tracer:
        for text in TEXTS:
            with tracer.invoke(text, decoder_input_ids=[2, 5]):
                result = tracer.result
    want = plain.generate(torch.tensor([ids(MIDDLE)]), decoder_input_ids=torch.tensor([[2, 5]]), **ALL)
    assert torch.equal(result, want)
