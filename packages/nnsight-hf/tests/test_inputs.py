"""The forms in which an input can be given: each means the same as the token ids that are passed to transformers."""

from __future__ import annotations

import numpy
import pytest
import torch
from checkpoints import LONG, MIDDLE, SHORT, alone, hidden, ids, tokenizer
from transformers import BatchEncoding

import nnsight
from nnsight_hf.oracle import zoo
from nnsight_hf.padding import room

ROUNDING = {"rtol": 1e-4, "atol": 1e-4}


@pytest.fixture
def logits(gpt2):
    def logits(*given, **kwargs) -> torch.Tensor:
        with gpt2.trace(*given, **kwargs):
            return gpt2.output.logits

    return logits


ONE = ids(LONG)
FORMS = {
    "a string": (LONG,),
    "a list of one": ([LONG],),
    "a tuple of one": ((LONG,),),
    "a list of ids": (ONE,),
    "a list of lists of ids": ([ONE],),
    "a tensor [positions]": (torch.tensor(ONE),),
    "a tensor [rows, positions]": (torch.tensor([ONE]),),
    "a list of tensors": ([torch.tensor(ONE)],),
    "a list of numbers that are tensors": (list(torch.tensor(ONE)),),
    "a narrow type": (torch.tensor(ONE, dtype=torch.int32),),
    "an array": (numpy.array([ONE]),),
    "a dict": ({"input_ids": torch.tensor([ONE])},),
    "a dict of lists": ({"input_ids": ONE, "attention_mask": [1] * len(ONE)},),
    "what a tokenizer gives": (tokenizer()(LONG, return_tensors="pt"),),
    "what a tokenizer gives by default": (tokenizer()(LONG),),
}


@pytest.mark.parametrize("given", FORMS.values(), ids=FORMS)
def test_every_form_means_the_same(logits, plain_gpt2, given) -> None:
    torch.testing.assert_close(logits(*given), alone(plain_gpt2, LONG), **ROUNDING)


BOTH = [ids(SHORT), ids(LONG)]
RAGGED = {
    "lists": (BOTH,),
    "tensors": ([torch.tensor(row) for row in BOTH],),
    "arrays": ([numpy.array(row) for row in BOTH],),
    "a dict": ({"input_ids": BOTH},),
    "a dict with masks": ({"input_ids": BOTH, "attention_mask": [[1] * len(row) for row in BOTH]},),
    "what a tokenizer gives": (tokenizer()([SHORT, LONG]),),
    "what a tokenizer pads on the right": (tokenizer()([SHORT, LONG], padding=True, return_tensors="pt"),),
}


@pytest.mark.parametrize("given", RAGGED.values(), ids=RAGGED)
def test_rows_of_different_lengths_are_as_they_are_alone(logits, plain_gpt2, given) -> None:
    got = logits(*given)
    on_the_right = (
        "right" in str(given) or isinstance(given[0], BatchEncoding) and torch.is_tensor(given[0]["input_ids"])
    )
    short = got[0, :2] if on_the_right else got[0, -2:]
    torch.testing.assert_close(short, alone(plain_gpt2, SHORT)[0], **ROUNDING)
    torch.testing.assert_close(got[1:], alone(plain_gpt2, LONG), **ROUNDING)


def test_keywords_alone(logits, plain_gpt2) -> None:
    want = alone(plain_gpt2, LONG)
    torch.testing.assert_close(logits(input_ids=torch.tensor([ONE])), want, **ROUNDING)
    torch.testing.assert_close(logits(input_ids=ONE, attention_mask=None), want, **ROUNDING)
    embeds = plain_gpt2.get_input_embeddings()(torch.tensor([ONE]))
    torch.testing.assert_close(logits(inputs_embeds=embeds), want, **ROUNDING)
    torch.testing.assert_close(logits(inputs_embeds=embeds[0]), want, **ROUNDING)


def test_embeddings_share_a_batch(gpt2, plain_gpt2) -> None:
    embed = plain_gpt2.get_input_embeddings()
    with gpt2.trace() as tracer:
        with tracer.invoke(inputs_embeds=embed(torch.tensor([ids(SHORT)]))):
            short = gpt2.output.logits
        with tracer.invoke(inputs_embeds=embed(torch.tensor([ONE]))):
            long = gpt2.output.logits
    torch.testing.assert_close(short[:, -2:], alone(plain_gpt2, SHORT), **ROUNDING)
    torch.testing.assert_close(long, alone(plain_gpt2, LONG), **ROUNDING)


def test_a_mask_of_the_users_hides_what_it_hides(logits, plain_gpt2) -> None:
    got = logits(["the the cat", MIDDLE.replace(" big", "")], attention_mask=[[0, 1, 1], [1, 1, 1]])
    torch.testing.assert_close(got[:1, 1:], alone(plain_gpt2, SHORT), **ROUNDING)


def test_positions_of_the_users_are_taken(logits, plain_gpt2) -> None:
    with torch.no_grad():
        want = plain_gpt2(torch.tensor([[5, 6]]), position_ids=torch.tensor([[7, 3]])).logits
    torch.testing.assert_close(logits([5, 6], position_ids=[7, 3]), want, **ROUNDING)


def test_labels_of_a_batch_are_not_counted_where_there_is_padding(gpt2, plain_gpt2) -> None:
    with gpt2.trace() as tracer:
        with tracer.invoke(SHORT, labels=ids(SHORT)):
            pass
        with tracer.invoke(LONG, labels=ids(LONG)):
            pass
        with tracer.invoke():
            loss = gpt2.output.loss
    with torch.no_grad():
        each = [plain_gpt2(torch.tensor([row]), labels=torch.tensor([row])).loss * (len(row) - 1) for row in BOTH]
    torch.testing.assert_close(loss, sum(each) / sum(len(row) - 1 for row in BOTH), **ROUNDING)


def losses_alone(plain: torch.nn.Module) -> list[torch.Tensor]:
    with torch.no_grad():
        return [plain(torch.tensor([row]), labels=torch.tensor([row])).loss for row in BOTH]


def test_the_loss_of_an_invoke_is_what_it_is_alone(gpt2, plain_gpt2) -> None:
    with gpt2.trace() as tracer:
        with tracer.invoke(SHORT, labels=ids(SHORT)):
            short = gpt2.output.loss
        with tracer.invoke(LONG, labels=ids(LONG)):
            long, result = gpt2.output.loss, tracer.result.loss
        with tracer.invoke():
            loss = gpt2.output.loss
    want = losses_alone(plain_gpt2)
    torch.testing.assert_close(torch.stack([short, long]), torch.stack(want), **ROUNDING)
    torch.testing.assert_close(result, long)
    assert not torch.isclose(loss, short) and not torch.isclose(loss, long)


def test_the_gradient_of_an_invokes_loss_is_what_it_is_alone(gpt2, plain_gpt2) -> None:
    block = gpt2.transformer.h[0]
    with gpt2.trace(LONG, labels=ids(LONG)):
        state = hidden(block.output)
        with gpt2.output.loss.backward():
            want = state.grad
    with gpt2.trace() as tracer:
        with tracer.invoke(SHORT, labels=ids(SHORT)):
            pass
        with tracer.invoke(LONG, labels=ids(LONG)):
            state = hidden(block.output)
            with gpt2.output.loss.backward():
                got = state.grad
    torch.testing.assert_close(got, want, **ROUNDING)


def test_an_output_is_written_with_the_loss_that_was_read(gpt2, plain_gpt2) -> None:
    def traced(change) -> torch.Tensor:
        with gpt2.trace() as tracer:
            with tracer.invoke(SHORT, labels=ids(SHORT)):
                output = gpt2.output
                change(output)
                gpt2.output = output
            with tracer.invoke(LONG, labels=ids(LONG)):
                pass
            with tracer.invoke():
                return_value = gpt2.output
        return return_value

    def logits(output) -> None:
        output.logits = output.logits * 0

    changed = traced(logits)
    assert not changed.logits[0].any() and changed.logits[1].any()

    def loss(output) -> None:
        output.loss = output.loss * 2

    with pytest.raises(nnsight.RowsError, match="wrote its loss"):
        traced(loss)


def test_a_loss_with_another_part_is_shared() -> None:
    model = nnsight.LanguageModel(zoo.module("mixtral"))
    losses = {}
    with model.trace(output_router_logits=True) as tracer:
        for row in BOTH:
            with tracer.invoke(row, labels=row):
                losses[len(row)] = model.output.loss
        with tracer.invoke():
            loss = model.output.loss
    assert all(torch.equal(one, loss) for one in losses.values())


def test_losses_in_a_scan(gpt2) -> None:
    with gpt2.scan() as tracer:
        with tracer.invoke(SHORT, labels=ids(SHORT)):
            shape = gpt2.output.loss.shape
        with tracer.invoke(LONG, labels=ids(LONG)):
            pass
    assert shape == ()


def test_options_for_the_tokenizer(gpt2, plain_gpt2, logits) -> None:
    got = logits(LONG, truncation=True, max_length=3)
    torch.testing.assert_close(got, alone(plain_gpt2, LONG)[:, :3], **ROUNDING)
    with gpt2.trace() as tracer:
        with tracer.invoke(LONG, truncation=True, max_length=2):
            cut = gpt2.output.logits
        with tracer.invoke(LONG):
            whole = gpt2.output.logits
    torch.testing.assert_close(cut[:, -2:], alone(plain_gpt2, "a small"), **ROUNDING)
    torch.testing.assert_close(whole, alone(plain_gpt2, LONG), **ROUNDING)


@pytest.mark.parametrize(
    ("options", "tokens"),
    [
        ({"padding": True}, [[3]]),
        ({"padding": "max_length", "max_length": 5}, [[3]]),
        ({"pad_to_multiple_of": 4}, [[3]]),
        ({"return_tensors": "pt"}, [[3]]),
        ({"text_pair": "dog"}, [[3, "dog"]]),
    ],
)
def test_more_options_for_the_tokenizer(gpt2, plain_gpt2, options, tokens) -> None:
    with gpt2.trace("the cat sat", **options) as tracer:
        own = tracer.tokens.own(gpt2.output.logits)
        width = tracer.tokens.mask.shape[1]
    whole = "the cat sat" + (" dog" if "text_pair" in options else "")
    torch.testing.assert_close(own, alone(plain_gpt2, whole), **ROUNDING)
    assert width == {"padding": 5 if "max_length" in options else 3, "pad_to_multiple_of": 4}.get(
        next(iter(options)), len(whole.split())
    )


def test_words_that_are_split_already(logits, plain_gpt2) -> None:
    want = alone(plain_gpt2, LONG)
    torch.testing.assert_close(logits(LONG.split(), is_split_into_words=True), want, **ROUNDING)
    got = logits([LONG.split(), SHORT.split()], is_split_into_words=True)
    torch.testing.assert_close(got[:1], want, **ROUNDING)


@pytest.mark.parametrize(
    ("given", "options", "message"),
    [
        (LONG, {"padding_side": "right"}, "`padding_side=`.*cannot be given with an input.*by hand"),
        (LONG, {"return_offsets_mapping": True}, "`return_offsets_mapping=`"),
        (ONE, {"truncation": True, "max_length": 2}, "`truncation=`.*tokens already"),
        ({"input_ids": ONE}, {"add_special_tokens": False}, "tokens already"),
        (LONG, {"add_generation_prompt": True}, "belongs to a conversation"),
    ],
)
def test_options_that_would_do_nothing_are_refused(gpt2, given, options, message) -> None:
    with pytest.raises(TypeError, match=message):
        with gpt2.trace(given, **options):
            pass
    with pytest.raises(TypeError, match="give it to each invoke|belongs to the tokenizer|cannot be given"):
        with gpt2.trace(truncation=True) as tracer:
            with tracer.invoke(LONG):
                pass


# -- conversations ---------------------------------------------------------------------------------------------------

TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'user' %}the {% else %}it {% endif %}{{ m.content }}"
    "{% if not (loop.last and continue_final_message) %} </s> {% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ opening or 'it' }}{% endif %}"
)
ASKED = [{"role": "user", "content": "small cat"}]
ANSWERED = [*ASKED, {"role": "assistant", "content": "was old"}]


@pytest.fixture
def chat(plain_gpt2):
    speaks = tokenizer()
    speaks.chat_template = TEMPLATE
    return nnsight.LanguageModel(plain_gpt2, tokenizer=speaks)


@pytest.mark.parametrize(
    ("given", "options", "texts"),
    [
        (ASKED, {}, ["the small cat </s> it"]),
        ([ASKED], {}, ["the small cat </s> it"]),
        ([ASKED, ANSWERED], {}, ["the small cat </s> it", "the small cat </s> it was old"]),
        (ANSWERED, {"add_generation_prompt": True}, ["the small cat </s> it was old </s> it"]),
        (ASKED, {"add_generation_prompt": False}, ["the small cat </s>"]),
        (ASKED, {"chat_template_kwargs": {"opening": "then"}}, ["the small cat </s> then"]),
        (ASKED, {"chat_template": "{{ messages[0].content }}"}, ["small cat"]),
        (ASKED, {"truncation": True, "max_length": 2}, ["the small"]),
    ],
)
def test_a_conversation_is_a_row(chat, plain_gpt2, given, options, texts) -> None:
    with chat.trace() as tracer:
        with tracer.invoke(LONG):
            pass
        with tracer.invoke(given, **options):
            tokens, got = tracer.tokens, chat.output.logits
    assert len(got) == len(texts)
    for number, text in enumerate(texts):
        torch.testing.assert_close(tokens.row(number).own(got), alone(plain_gpt2, text), **ROUNDING)


def test_a_conversation_needs_a_template(gpt2) -> None:
    with pytest.raises(ValueError, match="no chat template"):
        with gpt2.trace(ASKED):
            pass


def test_more_tokens_than_a_model_has_positions(gpt2, plain_gpt2) -> None:
    limit = plain_gpt2.config.n_positions
    with pytest.raises(ValueError, match=f"{limit + 1} tokens, and GPT2LMHeadModel has learned {limit} positions"):
        with gpt2.trace([5] * (limit + 1)):
            pass
    with gpt2.trace([5] * limit):
        logits = gpt2.output.logits
    assert logits.shape[1] == limit


def test_no_padding_token_is_needed(plain_gpt2) -> None:
    bare = tokenizer(pad=None)
    model = nnsight.LanguageModel(plain_gpt2, tokenizer=bare)
    with model.trace([SHORT, LONG]):
        logits = model.output.logits
    torch.testing.assert_close(logits[:1, -2:], alone(plain_gpt2, SHORT), **ROUNDING)
    assert bare.pad_token is None, "a tokenizer of the user's is left as it is"


def test_a_tokenizer_that_pads_on_the_right_does_no_harm(plain_gpt2) -> None:
    model = nnsight.LanguageModel(plain_gpt2, tokenizer=tokenizer(side="right"))
    with model.trace([SHORT, LONG]):
        last = model.output.logits[:, -1]
    want = torch.cat([alone(plain_gpt2, SHORT)[:, -1], alone(plain_gpt2, LONG)[:, -1]])
    torch.testing.assert_close(last, want, **ROUNDING)


def test_a_model_without_tokenizer_takes_ids_and_no_text(plain_gpt2) -> None:
    model = nnsight.LanguageModel(plain_gpt2)
    with model.trace(BOTH):
        logits = model.output.logits
    torch.testing.assert_close(logits[1:], alone(plain_gpt2, LONG), **ROUNDING)
    with pytest.raises(ValueError, match="no tokenizer.*pass `tokenizer=`"):
        with model.trace(LONG):
            pass


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ("", ValueError, "'' is empty"),
        (["the cat", ""], ValueError, "'' is empty"),
        ([], ValueError, "empty"),
        ([[]], ValueError, "empty"),
        (torch.empty(1, 0, dtype=torch.long), ValueError, "empty"),
        ({"attention_mask": [1]}, ValueError, "`input_ids` or `inputs_embeds`"),
        (3.5, TypeError, "whole numbers"),
        (torch.rand(1, 3), TypeError, "whole numbers"),
        (torch.zeros(1, 2, 3, dtype=torch.long), TypeError, "of shape"),
        (object(), TypeError, "an input is a string"),
        (["the", 3], TypeError, "an input is a string"),
        ([["a"], ["b", "c"]], TypeError, "an input is a string"),
    ],
)
def test_what_is_no_input_is_refused(gpt2, given, error, message) -> None:
    with pytest.raises(error, match=message):
        with gpt2.trace(given):
            pass


def test_two_inputs_are_no_batch(gpt2) -> None:
    with pytest.raises(TypeError, match="a list for several prompts"):
        with gpt2.trace(SHORT, LONG):
            pass


def test_an_argument_that_only_one_invoke_gives_is_refused(gpt2) -> None:
    with pytest.raises(ValueError, match="invoke 1 has no `labels`"):
        with gpt2.trace() as tracer:
            with tracer.invoke(SHORT, labels=ids(SHORT)):
                pass
            with tracer.invoke(LONG):
                pass
    with pytest.raises(ValueError, match="differ in `output_hidden_states`"):
        with gpt2.trace() as tracer:
            with tracer.invoke(SHORT, output_hidden_states=True):
                pass
            with tracer.invoke(LONG, output_hidden_states=False):
                pass


def test_what_a_tokenizer_adds_for_other_models_is_left_out(gpt2, plain_gpt2) -> None:
    # GPT-2 would embed token types as words. Where a model takes none, its generation refuses them.
    model = nnsight.LanguageModel(plain_gpt2, tokenizer=tokenizer())
    encoded = tokenizer()(LONG, return_tensors="pt", return_token_type_ids=True)
    assert "token_type_ids" in encoded
    with model.trace(LONG):
        logits = model.output.logits
    torch.testing.assert_close(logits, alone(plain_gpt2, LONG), **ROUNDING)


@pytest.mark.parametrize("architecture", ["gpt2", "opt", "roberta", "bart", "openai-gpt", "xlm"])
def test_the_positions_that_a_model_has_learned_are_those_it_takes(architecture) -> None:
    module = zoo.module(architecture)
    most = room(module)
    assert most is not None
    with torch.no_grad():
        module(torch.full((1, most), 5))
        with pytest.raises((IndexError, RuntimeError)):
            module(torch.full((1, most + 1), 5))


@pytest.mark.parametrize("architecture", ["llama", "mpt", "mamba", "gptj"])
def test_a_model_that_counts_positions_in_another_way_has_no_such_limit(architecture) -> None:
    assert room(zoo.module(architecture)) is None
