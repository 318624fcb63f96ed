"""Generation: the tokens are transformers' own, each prompt's as it would be alone, and every step can be looked into."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch
from checkpoints import LAYERS, LONG, MIDDLE, SHORT, alone, continued, hidden, ids, tokenizer
from transformers import GenerationConfig, MaxLengthCriteria, StoppingCriteriaList

import nnsight

ROUNDING = {"rtol": 1e-4, "atol": 1e-4}
STEPS = 5
#: No early end, so that every row has all steps.
ALL = {"max_new_tokens": STEPS, "min_new_tokens": STEPS, "do_sample": False}


def after_prompt(tokens: torch.Tensor, text: str) -> list[int]:
    """The tokens behind a prompt, in a row that has padding before it."""
    row = tokens[0].tolist()
    start = row.index(ids(text)[0])
    assert row[start : start + len(ids(text))] == ids(text) and set(row[:start]) <= {0}
    return row[start + len(ids(text)) :]


# -- every architecture ----------------------------------------------------------------------------------------------


def test_one_prompt(model, plain) -> None:
    want = continued(plain, LONG, **ALL)
    with model.generate(LONG, **ALL) as tracer:
        output = model.generator.output
        result = tracer.result
    assert torch.equal(output, want) and torch.equal(result, want)
    assert torch.equal(model.generate(LONG, **ALL), want)


def test_prompts_of_different_lengths_continue_as_they_do_alone(model, plain) -> None:
    with model.generate(**ALL) as tracer:
        with tracer.invoke(SHORT):
            short = model.generator.output
        with tracer.invoke([LONG, MIDDLE]):
            others = tracer.result
        with tracer.invoke():
            everything = tracer.result
    assert after_prompt(short, SHORT) == after_prompt(continued(plain, SHORT, **ALL), SHORT)
    assert after_prompt(others[:1], LONG) == after_prompt(continued(plain, LONG, **ALL), LONG)
    assert after_prompt(others[1:], MIDDLE) == after_prompt(continued(plain, MIDDLE, **ALL), MIDDLE)
    assert torch.equal(everything, torch.cat([short, others]))


def test_the_logits_of_every_step_are_those_of_the_text_so_far(model, plain) -> None:
    text = continued(plain, SHORT, **ALL)[0]
    with torch.no_grad():
        whole = plain(text[None]).logits[0]
    with model.generate(SHORT, **ALL) as tracer:
        seen = []
        for _ in tracer.iter[:]:
            seen.append(model.output.logits[0, -1])
    assert len(seen) == STEPS
    torch.testing.assert_close(torch.stack(seen), whole[1:-1], **ROUNDING)


def test_a_step_of_one_prompt_in_a_batch(model, plain, kind) -> None:
    def logits(text: str) -> Any:
        with model.generate(text, **ALL) as tracer:
            for _ in tracer.iter[2]:
                hidden(model.get(LAYERS[kind])[0].output)[:] *= 3
            return tracer.result

    with model.generate(**ALL) as tracer:
        with tracer.invoke(SHORT):
            for _ in tracer.iter[2]:
                hidden(model.get(LAYERS[kind])[0].output)[:] *= 3
            edited = tracer.result
        with tracer.invoke(LONG):
            steps = []
            for _ in tracer.iter[:]:
                steps.append(model.output.logits[:, -1])
            other = tracer.result
    assert after_prompt(edited, SHORT) == after_prompt(logits(SHORT), SHORT)
    assert after_prompt(other, LONG) == after_prompt(continued(plain, LONG, **ALL), LONG)
    assert [int(step.argmax()) for step in steps] != [] and {tuple(step.shape[:1]) for step in steps} == {(1,)}


@pytest.mark.parametrize(
    "options", [{"num_beams": 3}, {"num_beams": 4, "num_return_sequences": 2}], ids=["3", "4 of which 2"]
)
def test_beams_of_every_prompt_are_its_own(model, plain, options) -> None:
    count = options.get("num_return_sequences", 1)
    with model.generate(**ALL, **options) as tracer:
        with tracer.invoke(SHORT):
            first = model.output.logits.shape[0]
            short = tracer.result
        with tracer.invoke(LONG):
            long = model.generator.output
    assert first == options["num_beams"] and len(short) == len(long) == count
    for text, got in ((SHORT, short), (LONG, long)):
        want = continued(plain, text, **ALL, **options)
        assert [after_prompt(row[None], text) for row in got] == [after_prompt(row[None], text) for row in want]


# -- once ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def steering(plain_gpt2) -> Any:
    """How transformers continues a text when the first block's output is scaled in some steps."""

    def steering(text: str, factor: float, steps: Any = range(STEPS), **options: Any) -> torch.Tensor:
        at = iter(range(99))

        def hook(module: Any, given: Any, output: Any) -> Any:
            if next(at) not in steps:
                return None
            return (output[0] * factor, *output[1:]) if isinstance(output, tuple) else output * factor

        handle = plain_gpt2.transformer.h[0].register_forward_hook(hook)
        try:
            return continued(plain_gpt2, text, **(ALL | options))
        finally:
            handle.remove()

    return steering


def test_an_edit_in_some_steps(gpt2, steering) -> None:
    with gpt2.generate(LONG, **ALL) as tracer:
        for step in tracer.iter[:]:
            if step in (1, 3):
                hidden(gpt2.transformer.h[0].output)[:] *= -2
        output = gpt2.generator.output
    assert torch.equal(output, steering(LONG, -2, (1, 3)))


def test_a_stored_edit_is_replayed_in_each_step(gpt2, steering, plain_gpt2) -> None:
    with gpt2.edit() as steered:
        hidden(gpt2.transformer.h[0].output)[:] *= -2
    with steered.generate(LONG, **ALL):
        output = steered.generator.output
    assert torch.equal(output, steering(LONG, -2))
    assert torch.equal(steered.generate(LONG, **ALL), output)
    assert torch.equal(gpt2.generate(LONG, **ALL), continued(plain_gpt2, LONG, **ALL))


def test_sampling_with_a_seed(gpt2, plain_gpt2) -> None:
    options = {"max_new_tokens": STEPS, "min_new_tokens": STEPS, "do_sample": True, "temperature": 2.0}
    torch.manual_seed(5)
    want = continued(plain_gpt2, LONG, **options)
    torch.manual_seed(5)
    with gpt2.generate(LONG, **options) as tracer:
        steps = [gpt2.output.logits for _ in tracer.iter[:]]
        output = tracer.result
    assert torch.equal(output, want) and len(steps) == STEPS


def test_several_samples_of_every_prompt(gpt2) -> None:
    options = {**ALL, "do_sample": True, "num_return_sequences": 3}
    with gpt2.generate(**options) as tracer:
        with tracer.invoke(SHORT):
            hidden_states = hidden(gpt2.transformer.h[0].output)
            tokens = gpt2.generator.streamer.output
            short = tracer.result
        with tracer.invoke([LONG, LONG]):
            long = tracer.result
    assert len(hidden_states) == 3 and tokens.tolist() == short[:, -STEPS].tolist()
    assert [after_prompt(row[None], SHORT)[:0] for row in short] == [[]] * 3
    assert len(long) == 6 and {tuple(row[: len(ids(LONG))].tolist()) for row in long} == {tuple(ids(LONG))}


def test_the_streamer_gives_the_tokens_of_each_step(gpt2, plain_gpt2) -> None:
    with gpt2.generate(**ALL) as tracer:
        with tracer.invoke(SHORT):
            short = [gpt2.generator.streamer.output for _ in tracer.iter[:]]
        with tracer.invoke(LONG):
            long = [gpt2.generator.streamer.output for _ in tracer.iter[1:3]]
    assert torch.cat(short).tolist() == after_prompt(continued(plain_gpt2, SHORT, **ALL), SHORT)
    assert torch.cat(long).tolist() == after_prompt(continued(plain_gpt2, LONG, **ALL), LONG)[1:3]


def test_a_streamer_of_the_users_is_told_too(gpt2) -> None:
    class Collecting:
        def __init__(self) -> None:
            self.put_in: list[Any] = []

        def put(self, value: torch.Tensor) -> None:
            self.put_in.append(value.tolist())

        def end(self) -> None:
            self.put_in.append("end")

    streamer = Collecting()
    with gpt2.generate(SHORT, **ALL, streamer=streamer) as tracer:
        tokens = [gpt2.generator.streamer.output.tolist() for _ in tracer.iter[:]]
    assert streamer.put_in == [[ids(SHORT)], *tokens, "end"]


def test_a_write_to_the_streamers_copy_is_refused(gpt2) -> None:
    with pytest.raises(AttributeError, match="read only"):
        with gpt2.generate(SHORT, **ALL):
            gpt2.generator.streamer.output[:] = 3
    with pytest.raises(AttributeError, match="change the logits"):
        with gpt2.generate(SHORT, **ALL):
            gpt2.generator.streamer.output = torch.tensor([3])


def test_the_result_can_be_replaced(gpt2) -> None:
    with gpt2.generate(SHORT, **ALL) as tracer:
        gpt2.generator.output = gpt2.generator.output[:, :1]
        result = tracer.result
    assert result.tolist() == [ids(SHORT)[:1]]


def end_after(plain: torch.nn.Module, text: str, steps: int) -> int:
    """A token that ends the continuation of a text after so many steps."""
    tokens = after_prompt(continued(plain, text, **ALL), text)
    assert tokens[steps - 1] not in tokens[: steps - 1]
    return tokens[steps - 1]


def test_an_early_end_of_text_is_the_end_of_an_open_loop(gpt2, plain_gpt2) -> None:
    end = end_after(plain_gpt2, LONG, 2)
    options = {"max_new_tokens": STEPS, "do_sample": False, "eos_token_id": end}
    with warnings.catch_warnings():
        warnings.simplefilter("error", nnsight.NNsightWarning)
        with gpt2.generate(LONG, **options) as tracer:
            steps = []
            for step in tracer.iter[:]:
                steps.append(step)
                gpt2.output
            output = gpt2.generator.output
    assert steps == [0, 1] and output[0, -1] == end and output.shape[1] == len(ids(LONG)) + 2


def test_a_loop_that_outruns_the_text_says_so(gpt2, plain_gpt2) -> None:
    options = {"max_new_tokens": STEPS, "do_sample": False, "eos_token_id": end_after(plain_gpt2, LONG, 2)}
    with pytest.warns(nnsight.UnmetSiteWarning, match="2 steps"):
        with gpt2.generate(LONG, **options) as tracer:
            steps = [step for step in tracer.iter[:4] if gpt2.output is not None]
            output = tracer.result
    assert steps == [0, 1] and output.shape[1] == len(ids(LONG)) + 2


def test_a_row_that_ends_early_is_padded_while_others_go_on(gpt2, plain_gpt2) -> None:
    end = end_after(plain_gpt2, LONG, 2)
    options = {"max_new_tokens": STEPS, "do_sample": False, "eos_token_id": end}
    with gpt2.generate(**options) as tracer:
        with tracer.invoke(LONG):
            long = tracer.result
        with tracer.invoke(SHORT):
            steps = [gpt2.output.logits[0, -1] for _ in tracer.iter[:]]
            short = tracer.result
    tail = after_prompt(continued(plain_gpt2, SHORT, **options), SHORT)
    assert after_prompt(long, LONG)[:2][-1] == end and set(after_prompt(long, LONG)[2:]) <= {0}
    assert after_prompt(short, SHORT)[: len(tail)] == tail and len(steps) == len(after_prompt(short, SHORT))


def test_inputs_by_keyword(gpt2, plain_gpt2) -> None:
    want = continued(plain_gpt2, LONG, **ALL)
    assert torch.equal(gpt2.generate(input_ids=torch.tensor([ids(LONG)]), **ALL), want)
    with gpt2.generate(input_ids=ids(LONG), attention_mask=[1] * len(ids(LONG)), **ALL) as tracer:
        output = tracer.result
    assert torch.equal(output, want)
    embeds = plain_gpt2.get_input_embeddings()(torch.tensor([ids(LONG)]))
    with gpt2.generate(inputs_embeds=embeds, **ALL) as tracer:
        output = tracer.result
    assert output[0, -STEPS:].tolist() == want[0, -STEPS:].tolist()


def test_a_generation_config(gpt2, plain_gpt2) -> None:
    config = GenerationConfig(max_new_tokens=STEPS, num_beams=2, num_return_sequences=2, pad_token_id=0, eos_token_id=2)
    with gpt2.generate(generation_config=config) as tracer:
        with tracer.invoke(SHORT):
            short = tracer.result
        with tracer.invoke(SHORT):
            rows = gpt2.output.logits.shape[0]
            again = tracer.result
    assert rows == 2 and torch.equal(short, again)
    assert torch.equal(short, continued(plain_gpt2, SHORT, generation_config=config))


def test_a_result_with_more_than_tokens(gpt2, plain_gpt2) -> None:
    options = {**ALL, "return_dict_in_generate": True, "output_scores": True, "num_beams": 2}
    with gpt2.generate(**options) as tracer:
        with tracer.invoke(SHORT):
            short = tracer.result
        with tracer.invoke(LONG):
            long = tracer.result
    want = continued(plain_gpt2, LONG, **options)
    assert long.sequences.shape == (1, len(ids(LONG)) + STEPS) and short.sequences.shape == long.sequences.shape
    torch.testing.assert_close(long.sequences_scores, want.sequences_scores, **ROUNDING)
    torch.testing.assert_close(long.scores[0], want.scores[0], **ROUNDING)


def test_the_beams_of_a_result_are_counted_as_they_are_alone(gpt2, plain_gpt2) -> None:
    options = {**ALL, "return_dict_in_generate": True, "output_scores": True, "num_beams": 3, "num_return_sequences": 2}
    with gpt2.generate(**options) as tracer:
        with tracer.invoke([SHORT, SHORT]):
            tracer.result
        with tracer.invoke(LONG):
            long = tracer.result
        with tracer.invoke():
            everything = tracer.result
    want = continued(plain_gpt2, LONG, **options)
    assert torch.equal(long.beam_indices, want.beam_indices)
    assert torch.equal(everything.beam_indices[4:], long.beam_indices + 6)
    scores = [plain_gpt2.compute_transition_scores(r.sequences, r.scores, r.beam_indices) for r in (long, want)]
    torch.testing.assert_close(*scores, **ROUNDING)
    with gpt2.generate(**options) as tracer:
        with tracer.invoke(SHORT):
            pass
        with tracer.invoke(LONG):
            tracer.result = tracer.result
        with tracer.invoke():
            again = tracer.result
    assert torch.equal(again.beam_indices[2:], want.beam_indices + 3), "written back, they count the whole batch again"


def test_stopping_criteria(gpt2) -> None:
    length = len(ids(SHORT)) + 3
    with gpt2.generate(
        SHORT, max_new_tokens=9, stopping_criteria=StoppingCriteriaList([MaxLengthCriteria(length)])
    ) as tracer:
        output = tracer.result
    assert output.shape[1] <= length


def test_a_static_cache(gpt2, plain_gpt2) -> None:
    with gpt2.generate(LONG, **ALL, cache_implementation="static") as tracer:
        steps = [gpt2.output.logits[0, -1] for _ in tracer.iter[:]]
        output = tracer.result
    assert torch.equal(output, continued(plain_gpt2, LONG, **ALL)) and len(steps) == STEPS


def test_a_static_cache_of_several_prompts(gpt2, plain_gpt2) -> None:
    with gpt2.generate(**ALL, cache_implementation="static") as tracer:
        with tracer.invoke(LONG):
            long = tracer.result
        with tracer.invoke(SHORT):
            steps = [gpt2.output.logits[0, -1].argmax() for _ in tracer.iter[:]]
            short = tracer.result
    assert after_prompt(long, LONG) == after_prompt(continued(plain_gpt2, LONG, **ALL), LONG)
    assert after_prompt(short, SHORT) == after_prompt(continued(plain_gpt2, SHORT, **ALL), SHORT) == steps


@pytest.mark.timeout(600)  # quanto may have to be compiled
def test_a_quantised_cache(quanto, gpt2, plain_gpt2) -> None:
    options = {**ALL, "cache_implementation": "quantized", "cache_config": {"backend": "quanto", "nbits": 4}}
    with gpt2.generate(LONG, **options) as tracer:
        steps = [gpt2.output.logits[0, -1].argmax() for _ in tracer.iter[:]]
        output = tracer.result
    assert torch.equal(output, continued(plain_gpt2, LONG, **options)) and steps == output[0, -STEPS:].tolist()


def another(plain: torch.nn.Module) -> torch.nn.Module:
    """A model that mostly guesses what `plain` will say."""
    guesses = copy.deepcopy(plain)
    with torch.no_grad():
        for parameter in guesses.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    return guesses


@pytest.mark.parametrize("wrapped", [False, True], ids=["a module", "a language model"])
def test_assisted_decoding_checks_several_tokens_in_a_step(gpt2, plain_gpt2, wrapped, tmp_path) -> None:
    helper: Any = another(plain_gpt2)
    if wrapped:
        helper.save_pretrained(tmp_path)
        helper = nnsight.LanguageModel(str(tmp_path), tokenizer=tokenizer())
    with gpt2.generate(LONG, **ALL, assistant_model=helper) as tracer:
        checked, chosen = [], []
        for _ in tracer.iter[:]:
            checked.append(gpt2.output.logits.shape[1])
            chosen += gpt2.generator.streamer.output[0].tolist()
        output = tracer.result
    assert torch.equal(output, continued(plain_gpt2, LONG, **ALL))
    assert len(checked) < STEPS and max(checked) > 1, "a step is a forward, and checks what was guessed"
    assert chosen == output[0, -STEPS:].tolist()


def test_guesses_from_the_prompt(gpt2, plain_gpt2) -> None:
    options = {**ALL, "prompt_lookup_num_tokens": 2}
    with gpt2.generate(LONG, **options) as tracer:
        hidden(gpt2.transformer.h[0].output)
        output = tracer.result
    assert torch.equal(output, continued(plain_gpt2, LONG, **ALL))
    with pytest.raises(ValueError, match="batch_size = 1"):  # transformers' own words
        with gpt2.generate(**options) as tracer:
            with tracer.invoke(LONG):
                tracer.result
            with tracer.invoke(SHORT):
                pass


def test_an_edit_in_assisted_decoding_is_of_the_model_and_not_of_its_helper(gpt2, plain_gpt2, steering) -> None:
    with gpt2.edit() as steered:
        hidden(gpt2.transformer.h[0].output)[:] *= -2
    with steered.generate(LONG, **ALL, assistant_model=another(plain_gpt2)) as tracer:
        output = tracer.result
    assert torch.equal(output, steering(LONG, -2))


def test_step_by_step_with_next(gpt2, plain_gpt2) -> None:
    with gpt2.generate(SHORT, **ALL) as tracer:
        first = gpt2.output.logits[0, -1].argmax()
        tracer.next()
        second = gpt2.output.logits[0, -1].argmax()
        third = gpt2.lm_head.next().output[0, -1].argmax()
    assert [int(first), int(second), int(third)] == after_prompt(continued(plain_gpt2, SHORT, **ALL), SHORT)[:3]


def test_stopping_a_generation(gpt2) -> None:
    with gpt2.generate(SHORT, **ALL) as tracer:
        seen = []
        for step in tracer.iter[:]:
            seen.append(gpt2.transformer.wte.output.shape[1])
            if step == 1:
                tracer.stop()
    assert seen == [2, 1]


def test_a_generation_without_input_is_refused(gpt2) -> None:
    with pytest.raises(nnsight.NoInputError):
        gpt2.generate(max_new_tokens=2)


@pytest.mark.parametrize(
    "options",
    [{"max_new_tokens": 3}, {"do_sample": True, "temperature": 0.5}, {"stopping_criteria": []}, {"num_beams": 2}],
)
def test_options_of_a_generation_are_refused_in_a_trace(gpt2, options) -> None:
    name = next(iter(options))
    with pytest.raises(TypeError, match=f"`{name}`.*belongs to a generation.*model.generate"):
        with gpt2.trace(SHORT, **options):
            gpt2.output
    with pytest.raises(TypeError, match=name):
        with gpt2.trace() as tracer:
            with tracer.invoke(SHORT, **options):
                gpt2.output
    with pytest.raises(TypeError, match=name):
        with gpt2.trace(**options) as tracer:
            with tracer.invoke(SHORT):
                gpt2.output
    with pytest.raises(TypeError, match=name):
        with gpt2.scan(SHORT, **options):
            gpt2.output


def test_options_that_a_forward_heeds_are_taken(gpt2, plain_gpt2) -> None:
    with gpt2.trace(SHORT, use_cache=False, output_attentions=False, logits_to_keep=1) as tracer:
        result = tracer.result
    assert result.past_key_values is None
    torch.testing.assert_close(result.logits, alone(plain_gpt2, SHORT)[:, -1:], **ROUNDING)
