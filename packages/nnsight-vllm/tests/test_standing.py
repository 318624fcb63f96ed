"""Edits that are installed on the engine by name, against transformers with hooks of the same effect."""

from __future__ import annotations

import pytest
import torch
from plain_tokens import hooked, tokens_of

import nnsight
from nnsight_vllm.errors import PromptTooLongError, StandingError
from nnsight_vllm.model import VLLM

GREEDY = {"temperature": 0, "max_tokens": 5, "ignore_eos": True}
PROMPTS = [[5, 6, 7, 8], [9, 10], list(range(4, 64))]


@pytest.fixture(scope="module")
def vector():
    return torch.randn(128, generator=torch.Generator().manual_seed(3)) * 4


@pytest.fixture
def steered(gpt2, vector):
    model = gpt2.served
    with model.edit() as steered:
        model.transformer.h[1].output[:] += vector
    return steered


@pytest.fixture(autouse=True)
def nothing_stays(gpt2):
    yield
    for name in gpt2.served.installed:
        gpt2.served.uninstall(name)


def wanted(gpt2, vector):
    with hooked(gpt2.plain.transformer.h[1], lambda output: output + vector):
        return [tokens_of(gpt2.plain, prompt, 5) for prompt in PROMPTS]


def given(outputs):
    return [list(output.outputs[0].token_ids) for output in outputs]


def test_requests_that_ask_for_an_edit_have_it_in_every_step_and_others_do_not(gpt2, steered, vector):
    model = gpt2.served
    model.install("calm", steered)
    with_it, without = wanted(gpt2, vector), [tokens_of(gpt2.plain, prompt, 5) for prompt in PROMPTS]
    assert with_it != without
    with model.trace() as tracer:
        got = nnsight.save([None] * 6)
        for number, prompt in enumerate(PROMPTS * 2):
            with tracer.invoke(prompt, standing="calm" if number < 3 else [], **GREEDY):
                got[number] = list(tracer.result.outputs[0].token_ids)
    assert got == with_it + without
    assert given(model.generate(PROMPTS, standing=["calm"], **GREEDY)) == with_it
    assert given(model.generate(PROMPTS, **GREEDY)) == without


def test_an_edit_for_every_request_is_in_every_request_until_it_is_removed(gpt2, steered, vector):
    model = gpt2.served
    without = given(model.generate(PROMPTS, **GREEDY))
    model.install("calm", steered, every=True)
    assert model.installed["calm"].every
    assert given(model.generate(PROMPTS, **GREEDY)) == wanted(gpt2, vector)
    with model.trace(PROMPTS[0], **GREEDY):
        after = model.transformer.h[1].output.save()
    ids = torch.tensor([PROMPTS[0]])
    with torch.no_grad():
        plain = gpt2.plain(ids, output_hidden_states=True).hidden_states[2][0]
    torch.testing.assert_close(after, plain + vector, atol=1e-4, rtol=1e-4)
    model.uninstall("calm")
    assert given(model.generate(PROMPTS, **GREEDY)) == without


def test_edits_are_made_in_the_order_in_which_they_are_asked_for(gpt2, vector):
    model = gpt2.served
    with model.edit() as moved:
        model.transformer.h[1].output[:] += vector
    with model.edit() as doubled:
        model.transformer.h[1].output = model.transformer.h[1].output * 2
    model.install("moved", moved)
    model.install("doubled", doubled)
    for names, change in (
        (["moved", "doubled"], lambda output: (output + vector) * 2),
        (["doubled", "moved"], lambda output: output * 2 + vector),
    ):
        with hooked(gpt2.plain.transformer.h[1], change):
            plain = tokens_of(gpt2.plain, PROMPTS[0], 5)
        assert given(model.generate([PROMPTS[0]], standing=names, **GREEDY)) == [plain]


@pytest.mark.parametrize("tokenwise", [False, True])
def test_what_is_computed_of_a_prompt_is_shared_with_requests_of_the_same_tokenwise_edits_only(
    gpt2, steered, vector, tokenwise
):
    model, prompt = gpt2.served, [list(range(10, 90))]
    with hooked(gpt2.plain.transformer.h[1], lambda output: output + vector):
        moved = [tokens_of(gpt2.plain, prompt[0], 5)]
    plain = [tokens_of(gpt2.plain, prompt[0], 5)]
    assert given(model.generate(prompt, **GREEDY)) == plain  # now its prefix is in the cache
    assert model.generate(prompt, **GREEDY)[0].num_cached_tokens
    model.install("calm", steered, tokenwise=tokenwise)
    cached = []
    for _ in range(2):
        outputs = model.generate(prompt, standing="calm", **GREEDY)
        assert given(outputs) == moved
        cached.append(outputs[0].num_cached_tokens)
    assert cached[0] == 0 and bool(cached[1]) == tokenwise
    with model.edit() as other:
        model.transformer.h[1].output[:] -= vector
    model.install("calm", other, tokenwise=tokenwise)
    with hooked(gpt2.plain.transformer.h[1], lambda output: output - vector):
        assert given(model.generate(prompt, standing="calm", **GREEDY)) == [tokens_of(gpt2.plain, prompt[0], 5)]
    assert given(model.generate(prompt, **GREEDY)) == plain


def test_several_samples_of_one_request_all_have_its_edit(gpt2, steered, vector):
    model = gpt2.served
    model.install("calm", steered)
    sampling = {"n": 3, "top_k": 1, "max_tokens": 5, "ignore_eos": True}
    (output,) = model.generate([PROMPTS[2]], standing="calm", **sampling)
    with hooked(gpt2.plain.transformer.h[1], lambda output: output + vector):
        plain = tokens_of(gpt2.plain, PROMPTS[2], 5)
    assert [list(one.token_ids) for one in output.outputs] == [plain] * 3


def test_an_error_of_an_edit_ends_its_own_request_with_its_type_and_line(gpt2):
    model = gpt2.served
    with model.edit() as broken:
        if model.transformer.h[0].output.shape[0] == 1:
            raise LookupError("too short")
    model.install("broken", broken)
    with pytest.raises(LookupError, match="too short") as caught:
        model.generate(PROMPTS[0], standing="broken", **GREEDY)
    assert "raise LookupError" in "".join(getattr(caught.value, "__notes__", ["raise LookupError"]))
    with pytest.raises(LookupError, match="too short"):
        with model.trace(PROMPTS[0], standing="broken", **GREEDY):
            model.logits.output.save()
    assert given(model.generate(PROMPTS, **GREEDY)) == [tokens_of(gpt2.plain, prompt, 5) for prompt in PROMPTS]


def test_a_name_that_is_not_installed_is_refused_before_the_request_is_made(gpt2, steered):
    model = gpt2.served
    model.install("calm", steered)
    with pytest.raises(StandingError, match="No edit 'angry' is installed on this engine; there are: 'calm'"):
        model.generate(PROMPTS[0], standing="angry", **GREEDY)
    with pytest.raises(StandingError, match="No edit 'angry'"):
        with model.trace(PROMPTS[0], standing=["calm", "angry"], **GREEDY):
            model.logits.output.save()
    with pytest.raises(StandingError, match="No edit 'angry'"):
        model.uninstall("angry")
    with pytest.raises(ValueError, match="has no edits"):
        model.install("none", model)


def test_a_prompt_that_an_edit_could_not_see_whole_is_refused(gpt2, steered, vector):
    narrow = VLLM(
        str(gpt2.folder),
        dtype="float32",
        max_model_len=256,
        max_num_batched_tokens=64,
        max_num_seqs=4,
        block_size=32,
        num_gpu_blocks_override=20,
        enable_chunked_prefill=True,
    )
    prompt = [number % 80 + 4 for number in range(150)]
    with narrow.edit() as edited:
        narrow.transformer.h[1].output[:] += vector
    narrow.install("whole", edited)
    narrow.install("rows", edited, tokenwise=True)
    with pytest.raises(PromptTooLongError, match="150 tokens, and the engine takes 64"):
        narrow.generate(prompt, standing="whole", **GREEDY)
    with hooked(gpt2.plain.transformer.h[1], lambda output: output + vector):
        plain = tokens_of(gpt2.plain, prompt, 5)
    assert given([narrow.generate(prompt, standing="rows", **GREEDY)]) == [plain]


def test_edits_can_be_installed_from_a_file(gpt2, steered, vector, tmp_path):
    model, file = gpt2.served, tmp_path / "calm.edit"
    steered.save_edits(file)
    model.install("calm", file)
    assert given(model.generate(PROMPTS, standing="calm", **GREEDY)) == wanted(gpt2, vector)
    (tmp_path / "other").write_bytes(b"nothing of ours")
    with pytest.raises(StandingError, match="no edits"):
        model.install("other", tmp_path / "other")
    assert list(model.installed) == ["calm"]
