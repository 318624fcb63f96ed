"""Where an invoke's own tokens lie: the same expression finds a token whatever the padding before it or behind it."""

from __future__ import annotations

from typing import Any

import pytest
import tokenizers
import torch
from checkpoints import LONG, MIDDLE, SHORT, alone, hidden, ids, tokenizer
from transformers import AutoModelForSeq2SeqLM, BartConfig, PreTrainedTokenizerFast

import nnsight
from nnsight_hf.spelling import spell
from nnsight_hf.tokens import Tokens

ROUNDING = {"rtol": 1e-4, "atol": 1e-4}
TWICE = "the cat sat on the mat"


@pytest.fixture(scope="module")
def encoder_decoder() -> Any:
    """A model that is padded on the right."""
    config = BartConfig(
        vocab_size=40, d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4, decoder_attention_heads=4,
        encoder_ffn_dim=48, decoder_ffn_dim=48, max_position_embeddings=64, pad_token_id=0, bos_token_id=1, eos_token_id=2,
        decoder_start_token_id=2, forced_eos_token_id=None,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = AutoModelForSeq2SeqLM.from_config(config).eval()
    return nnsight.LanguageModel(module, tokenizer=tokenizer())


def test_the_last_token_by_number_and_by_text(gpt2, plain_gpt2) -> None:
    got: dict[str, Any] = {}
    with gpt2.trace() as tracer:
        with tracer.invoke(SHORT) as invoke:
            got["last"] = gpt2.output.logits[:, invoke.tokens.last]
        with tracer.invoke(LONG):
            got["third"] = gpt2.output.logits[:, tracer.tokens[2]]
        with tracer.invoke(MIDDLE):
            got["very"] = gpt2.output.logits[:, tracer.tokens.find("very")]
            got["it was"] = gpt2.output.logits[:, tracer.tokens[:2]]
    torch.testing.assert_close(got["last"], alone(plain_gpt2, SHORT)[:, -1], **ROUNDING)
    torch.testing.assert_close(got["third"], alone(plain_gpt2, LONG)[:, 2], **ROUNDING)
    torch.testing.assert_close(got["very"], alone(plain_gpt2, MIDDLE)[:, 2], **ROUNDING)
    torch.testing.assert_close(got["it was"], alone(plain_gpt2, MIDDLE)[:, :2], **ROUNDING)


def test_the_same_in_a_model_that_is_padded_on_the_right(encoder_decoder) -> None:
    encoder = encoder_decoder.model.encoder
    want = {}
    for text in (SHORT, LONG):
        with encoder_decoder.trace(text, decoder_input_ids=torch.tensor([[2, 5]])):
            want[text] = encoder.output[0]
    with encoder_decoder.trace() as tracer:
        with tracer.invoke(SHORT, decoder_input_ids=torch.tensor([[2, 5]])):
            tokens = tracer.tokens
            last, own = encoder.output[0][:, tokens.last], tokens.own(encoder.output[0])
            started = tokens.decoder.ids.tolist()
        with tracer.invoke(LONG, decoder_input_ids=torch.tensor([[2, 5]])):
            house = encoder.output[0][:, tracer.tokens.find("house")]
    torch.testing.assert_close(last, want[SHORT][:, -1], **ROUNDING)
    torch.testing.assert_close(own, want[SHORT], **ROUNDING)
    torch.testing.assert_close(house, want[LONG][:, -1], **ROUNDING)
    assert started == [[2, 5]]


def test_its_own_tokens_and_no_padding(gpt2, plain_gpt2) -> None:
    with gpt2.trace() as tracer:
        with tracer.invoke(SHORT):
            tokens = tracer.tokens
            own = tokens.own(gpt2.output.logits)
        with tracer.invoke([MIDDLE, SHORT]):
            both = tracer.tokens.own(gpt2.output.logits)
            short = tracer.tokens.row(1).own(gpt2.output.logits)
        with tracer.invoke(LONG):
            pass
    torch.testing.assert_close(own, alone(plain_gpt2, SHORT), **ROUNDING)
    torch.testing.assert_close(both[:1], alone(plain_gpt2, MIDDLE), **ROUNDING)
    torch.testing.assert_close(short, alone(plain_gpt2, SHORT), **ROUNDING)
    assert tokens.mask.tolist() == [[0] * 6 + [1] * 2] and tokens.ids.tolist() == [[0] * 6 + ids(SHORT)]
    assert tokens.positions.tolist() == [[0] * 6 + [0, 1]] and tokens.lengths == [2]
    assert [text.strip() for text in tokens.strings[0]] == SHORT.split()


def test_attention_without_padding(plain_gpt2, gpt2_folder) -> None:
    model = nnsight.LanguageModel(gpt2_folder, attn_implementation="eager")
    with model.trace(SHORT, output_attentions=True):
        want = model.output.attentions[0]
    with model.trace(output_attentions=True) as tracer:
        with tracer.invoke(SHORT):
            got = tracer.tokens.own(model.output.attentions[0], dim=(2, 3))
        with tracer.invoke(LONG):
            pass
    torch.testing.assert_close(got, want, **ROUNDING)


def test_an_edit_at_a_token(gpt2, plain_gpt2) -> None:
    block = gpt2.transformer.h[0]
    with gpt2.trace(TWICE):
        hidden(block.output)[:, 2] = 0
        want = gpt2.output.logits
    with gpt2.trace() as tracer:
        with tracer.invoke(TWICE):
            hidden(block.output)[:, tracer.tokens.find("sat")] = 0
            by_text = tracer.tokens.own(gpt2.output.logits)
        with tracer.invoke(LONG):
            other = gpt2.output.logits
    torch.testing.assert_close(by_text, want, **ROUNDING)
    torch.testing.assert_close(other, alone(plain_gpt2, LONG), **ROUNDING)
    with gpt2.trace() as tracer:
        with tracer.invoke(TWICE):
            tracer.tokens.own(hidden(block.output))[:, 2] = 0
            by_view = tracer.tokens.own(gpt2.output.logits)
        with tracer.invoke(LONG):
            pass
    torch.testing.assert_close(by_view, want, **ROUNDING)


def test_a_sibling_asks_where_anothers_tokens_lie(gpt2) -> None:
    with gpt2.trace() as tracer:
        with tracer.invoke(SHORT) as clean:
            state = hidden(gpt2.transformer.h[0].output)
        with tracer.invoke(LONG) as other:
            hidden(gpt2.transformer.h[0].output)[:, other.tokens.find("dog")] = state[:, clean.tokens.find("cat")]
            places = clean.tokens.find("cat"), other.tokens.find("dog")
            same = torch.equal(hidden(gpt2.transformer.h[0].output)[:, 2], state[:, -1])
    assert places == (7, 2) and same


def test_one_input_of_several_rows(gpt2, plain_gpt2) -> None:
    with gpt2.trace([SHORT, TWICE]) as tracer:
        tokens = tracer.tokens
        logits = gpt2.output.logits
        second, cat = logits[tokens.each[1]], logits[tokens.each.find("cat")]
        last = logits[:, tokens.last]
    want = torch.cat([alone(plain_gpt2, text)[:, 1] for text in (SHORT, TWICE)])
    torch.testing.assert_close(second, want, **ROUNDING)
    torch.testing.assert_close(cat, want, **ROUNDING)
    torch.testing.assert_close(last, logits[:, -1])
    with pytest.raises(ValueError, match=r"token 1 lies at different positions in the rows.*5, 1.*tokens\.each"):
        tokens[1]
    with pytest.raises(ValueError, match="different positions"):
        tokens.find("cat")
    with pytest.raises(IndexError, match="row 0 has 2 tokens, and no token 4"):
        tokens.each[4]
    assert tokens.row(1).find("cat") == 1 and tokens.row(0).find("cat") == 5


def test_the_whole_batch(gpt2) -> None:
    with gpt2.trace() as tracer:
        with tracer.invoke(SHORT):
            pass
        with tracer.invoke(MIDDLE):
            pass
        with tracer.invoke():
            lengths = tracer.tokens.lengths
            by_row = gpt2.output.logits[tracer.tokens.each[0]]
    assert lengths == [2, 4] and by_row.shape[0] == 2


def test_a_text_that_stands_several_times(gpt2) -> None:
    with gpt2.trace(TWICE) as tracer:
        tokens = tracer.tokens
        gpt2.output
    assert tokens.find("the", occurrence=0) == 0 and tokens.find("the", occurrence=-1) == 4
    assert tokens.span("sat on") == slice(2, 4) and tokens.find("sat on") == 3
    with pytest.raises(ValueError, match="'the' stands 2 times.*occurrence="):
        tokens.find("the")
    with pytest.raises(ValueError, match="no occurrence 2"):
        tokens.find("the", occurrence=2)
    with pytest.raises(ValueError, match="'dog' does not stand in row 0, whose tokens are"):
        tokens.find("dog")
    with pytest.raises(ValueError, match="empty"):
        tokens.find("")


def test_in_a_generation(gpt2) -> None:
    options = {"max_new_tokens": 3, "min_new_tokens": 3, "do_sample": False}
    with gpt2.generate(**options) as tracer:
        with tracer.invoke(SHORT):
            chosen = []
            for _ in tracer.iter[:]:
                chosen.append(int(gpt2.output.logits[0, tracer.tokens.last].argmax()))
            tokens, short = tracer.tokens, tracer.result
        with tracer.invoke(LONG):
            pass
    assert chosen == short[0, -3:].tolist() and short[0, tokens.find("cat")] == ids("cat")[0]
    with gpt2.generate(SHORT, **options) as tracer:
        with pytest.raises(ValueError, match="the input has 2 positions, and dimension 1"):
            for _ in tracer.iter[:]:
                tracer.tokens.own(gpt2.output.logits)


def test_beams_share_the_places_of_their_prompt(gpt2) -> None:
    options = {"max_new_tokens": 3, "min_new_tokens": 3, "do_sample": False, "num_beams": 3}
    with gpt2.generate(**options) as tracer:
        with tracer.invoke(SHORT):
            tokens = tracer.tokens
            embedded = gpt2.transformer.wte.output[:, tokens.find("cat")]
        with tracer.invoke(LONG):
            pass
    assert embedded.shape == (3, 32) and torch.equal(embedded[0], gpt2._module.transformer.wte.weight[ids("cat")[0]])
    with pytest.raises(ValueError, match="up to 3 rows here"):
        tokens.each.last
    with pytest.raises(ValueError, match="an invoke of its own"):
        tokens.row(0).own(torch.zeros(3, 8))


def test_in_a_scan(gpt2) -> None:
    with gpt2.scan([SHORT, TWICE]) as tracer:
        at = tracer.tokens.each.find("cat")
        shape = gpt2.output.logits[at].shape
        lengths, positions = tracer.tokens.lengths, tracer.tokens.positions.tolist()
    assert shape == (2, 26) and lengths == [2, 6] and positions == [[0, 0, 0, 0, 0, 1], list(range(6))]


def test_embeddings_and_models_without_tokenizer(plain_gpt2) -> None:
    model = nnsight.LanguageModel(plain_gpt2)
    embeds = plain_gpt2.get_input_embeddings()(torch.tensor([ids(LONG)]))
    with model.trace(inputs_embeds=embeds) as tracer:
        tokens = tracer.tokens
        model.output
    assert tokens[3] == 3 and tokens.ids is None
    with pytest.raises(ValueError, match="given as embeddings"):
        tokens.find("dog")
    with model.trace(ids(LONG)) as tracer:
        tokens = tracer.tokens
        model.output
    with pytest.raises(ValueError, match="no tokenizer"):
        tokens.find("dog")


def test_after_the_run(gpt2) -> None:
    with gpt2.trace() as tracer:
        with tracer.invoke(SHORT) as invoke:
            asked = invoke.tokens
    assert invoke.tokens is asked
    with gpt2.trace(SHORT) as tracer:
        pass
    with pytest.raises(nnsight.NoTraceError, match="inside the block"):
        tracer.tokens


# -- what tokens say -------------------------------------------------------------------------------------------------


def byte_level() -> Any:
    """A tokenizer of single bytes, as GPT-2's is without merges."""
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    model = tokenizers.models.BPE({letter: number for number, letter in enumerate(alphabet)}, [])
    made = tokenizers.Tokenizer(model)
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=made)


def pieces_with_spaces() -> Any:
    """A tokenizer that drops the space of the first word, as Llama's does."""
    words = ["<unk>", "▁The", "▁city", "▁of", "▁Par", "is", "▁Paris", "▁"]
    made = tokenizers.Tokenizer(tokenizers.models.Unigram([(word, -float(n)) for n, word in enumerate(words)], 0))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    made.decoder = tokenizers.decoders.Metaspace()
    return PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>")


@pytest.mark.parametrize("text", ["a b", "né 東京 is", "🎉", "\ufffd"])
def test_characters_of_several_tokens(text: str) -> None:
    tokenizer = byte_level()
    row = tokenizer(text)["input_ids"]
    spelling = spell(tokenizer, row)
    assert spelling.text == text and len(spelling.shown) == len(row)
    for at, letter in enumerate(text):
        if text.count(letter) == 1:
            before = len(text[:at].encode())
            assert spelling.find(letter, None, 0) == slice(before, before + len(letter.encode()))


def test_a_word_behind_a_space_and_one_of_two_pieces() -> None:
    tokenizer = pieces_with_spaces()
    row = tokenizer.convert_tokens_to_ids(["▁The", "▁city", "▁of", "▁Par", "is"])
    tokens = Tokens(torch.ones(1, 7).index_fill(1, torch.tensor([0, 1]), 0), torch.tensor([[0, 0, *row]]), tokenizer)
    assert tokens.strings == [["The", " city", " of", " Par", "is"]]
    assert tokens.find("city") == 3 and tokens.span("Paris") == slice(5, 7) and tokens.find("Paris") == 6


def test_a_mask_of_the_users_with_a_hole_in_it() -> None:
    tokens = Tokens(torch.tensor([[1, 0, 1, 1]]), torch.tensor([[5, 6, 7, 8]]))
    assert tokens[1] == 2 and tokens.last == -1 and tokens[1:] == slice(2, 4)
    with pytest.raises(ValueError, match="next to each other"):
        tokens[:2]
