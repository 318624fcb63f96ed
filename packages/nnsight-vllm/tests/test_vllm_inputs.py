"""What a request is made of: prompts as users have them, options, several continuations; and what is refused."""

from __future__ import annotations

import checkpoints
import pytest
import torch

import nnsight
from nnsight import VLLM, NoInputError
from nnsight_vllm import sampling

TEXT = "w1 w2 w3"
IDS = [5, 6, 7]


@pytest.fixture(scope="module")
def model(llama):
    return llama.served


def drawn(model, *inputs, **options):
    """The tokens of a traced request."""
    with model.trace(*inputs, **{"temperature": 0, "max_tokens": 3, **options}) as tracer:
        tokens = tracer.result.outputs[0].token_ids.save()
    return list(tokens)


def expected(pair, ids, count=3):
    given = torch.tensor([ids])
    made = pair.plain.generate(given, attention_mask=torch.ones_like(given), max_new_tokens=count, do_sample=False)
    return made[0, len(ids) :].tolist()


def test_a_prompt_can_be_text_ids_or_what_a_tokenizer_returned(llama, model):
    import numpy

    padded = [0, *IDS]
    prompts = [
        model.tokenizer(TEXT),
        model.tokenizer(TEXT, return_tensors="pt"),
        {"input_ids": torch.tensor([padded]), "attention_mask": torch.tensor([[0, 1, 1, 1]])},
        {"prompt": TEXT},
        {"prompt_token_ids": IDS},
        *(IDS, tuple(IDS), [IDS], range(5, 8)),
        *(torch.tensor(IDS), torch.tensor([IDS]), numpy.array(IDS), list(numpy.array(IDS))),
    ]
    assert list(model.tokenizer(TEXT).input_ids) == [5, 6, 7]
    wanted = expected(llama, IDS)
    for prompt in (TEXT, *prompts):
        assert drawn(model, prompt) == wanted, prompt
    assert drawn(model, input_ids=[padded], attention_mask=[[0, 1, 1, 1]]) == wanted
    assert drawn(model, [*IDS, 0], attention_mask=torch.tensor([1, 1, 1, 0])) == wanted


def test_a_plain_call_gives_one_output_for_one_prompt_and_a_list_for_several(llama, model):
    one, other = expected(llama, IDS), expected(llama, [9, 8])
    assert list(model.generate(TEXT, temperature=0, max_tokens=3).outputs[0].token_ids) == one
    enc = model.tokenizer([TEXT, "w5 w4"], padding=True, return_tensors="pt")
    assert enc.attention_mask.tolist() != [[1, 1, 1]] * 2
    for prompts in ([IDS, [9, 8]], [TEXT, "w5 w4"], [{"prompt": TEXT}, {"prompt_token_ids": [9, 8]}], enc, dict(enc)):
        outputs = model.generate(prompts, temperature=0, max_tokens=3)
        assert [list(output.outputs[0].token_ids) for output in outputs] == [one, other]
    outputs = model.generate(**enc, temperature=0, max_tokens=3)
    assert [list(output.outputs[0].token_ids) for output in outputs] == [one, other]
    with model.generate(TEXT, temperature=0, max_tokens=3) as tracer:  # at the head of a `with` it is a trace
        tokens = tracer.result.outputs[0].token_ids.save()
    assert list(tokens) == one


@pytest.mark.parametrize(
    ("prompt", "error", "message"),
    [
        ("", ValueError, "empty"),
        ([], ValueError, "at least one token"),
        ({"input_ids": [4, 5], "attention_mask": [0, 0]}, ValueError, "at least one token"),
        ([5, 96], ValueError, "96 is out of vocabulary"),
        ([-1], ValueError, "-1 is out of vocabulary"),
        ([5] * 300, ValueError, "maximum context length is 256"),
        ([TEXT, TEXT], ValueError, "Give each an invoke of its own"),
        (torch.ones(2, 3, dtype=int), ValueError, "Give each an invoke of its own"),
        ([1.5], TypeError, "integers, and one is 1.5"),
        (torch.ones(3), TypeError, "integers, and one is 1.0"),
        ([True, False], TypeError, "integers, and one is True"),
        (b"abc", TypeError, "not bytes"),
        (None, TypeError, "not NoneType"),
        (7, TypeError, "not int"),
        ({"words": 1}, TypeError, "must contain text, tokens, or embeddings"),
        ([{"role": "user", "content": "w1"}], ValueError, "no chat template"),
        ({"prompt_embeds": torch.zeros(3, 128)}, ValueError, "enable-prompt-embeds"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_what_is_no_prompt_is_refused_and_the_engine_goes_on(llama, model, prompt, error, message):
    with pytest.raises(error, match=message):
        drawn(model, prompt)
    if not isinstance(prompt, list) or not prompt or not isinstance(prompt[0], str):  # which `generate` takes as two
        if not torch.is_tensor(prompt) or prompt.dim() == 1:
            with pytest.raises(error, match=message):
                model.generate(prompt)
    assert drawn(model, IDS) == expected(llama, IDS)


def test_a_bad_request_among_good_ones_ends_the_trace_and_leaves_nothing_behind(llama, model):
    with pytest.raises(ValueError, match="900 is out of vocabulary") as caught:
        with model.trace(temperature=0, max_tokens=3) as tracer:
            with tracer.invoke(IDS):
                first = model.logits.output.save()
            with tracer.invoke([5, 900]):
                second = model.logits.output.save()
    assert "the prompt {" in str(caught.value)
    assert not model.__dict__["_engine"].engine.has_unfinished_requests()
    assert drawn(model, IDS) == expected(llama, IDS)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"max_token": 3}, TypeError, "did you mean 'max_tokens'"),
        ({"prompt": TEXT}, TypeError, r"model.trace\(prompt\)"),
        ({"do_sample": True}, TypeError, "temperature=0"),
        ({"logits_processors": []}, TypeError, "model.logits.output"),
        ({"output_kind": 1}, TypeError, "whole result"),
        ({"max_tokens": -1}, ValueError, "at least 1"),
        ({"max_tokens": "many"}, TypeError, "does not take max_tokens='many'"),
        ({"max_tokens": 3, "max_new_tokens": 3}, TypeError, "both were given"),
        ({"temperature": -1.0}, ValueError, "non-negative"),
        ({"n": 0}, ValueError, "at least 1"),
        ({"allowed_token_ids": [500]}, ValueError, "out-of-vocab"),
        ({"sampling_params": 3}, TypeError, "not int"),
        ({"attention_mask": [1, 1, 1]}, TypeError, "belongs to token ids"),
    ],
    ids=str,
)
def test_options_that_mean_nothing_are_refused(model, options, error, message):
    with pytest.raises(error, match=message):
        with model.trace(TEXT, **options):
            model.logits.output.save()
    if "attention_mask" not in options:
        with pytest.raises(error, match=message):
            with model.trace(**options) as tracer:
                with tracer.invoke(TEXT):
                    model.logits.output.save()


def test_options_are_those_of_vllm_and_each_invoke_may_have_its_own(model):
    from vllm import SamplingParams

    with model.trace(temperature=0, max_tokens=3, ignore_eos=True) as tracer:
        with tracer.invoke(TEXT):
            first = tracer.result.save()
        with tracer.invoke(TEXT, max_tokens=5):
            second = tracer.result.save()
        with tracer.invoke(TEXT, max_new_tokens=2, logprobs=2):
            third = tracer.result.save()
    tokens = [list(result.outputs[0].token_ids) for result in (first, second, third)]
    assert [len(one) for one in tokens] == [3, 5, 2] and tokens[1][:3] == tokens[0] and tokens[1][:2] == tokens[2]
    assert first.outputs[0].logprobs is None and len(third.outputs[0].logprobs) == 2
    given = SamplingParams(temperature=0, max_tokens=7, ignore_eos=True)
    with model.trace(TEXT, sampling_params=given, max_tokens=4) as tracer:
        fourth = tracer.result.save()
    with model.trace(max_tokens=9) as tracer:
        with tracer.invoke(TEXT, sampling_params=given):  # says all, and is nearer
            fifth = tracer.result.save()
    assert len(fifth.outputs[0].token_ids) == 7
    assert list(fourth.outputs[0].token_ids)[:3] == tokens[0] and len(fourth.outputs[0].token_ids) == 4
    assert given.max_tokens == 7


def test_options_that_were_said_before_mean_the_same_and_belong_to_one_request(model):
    from vllm import SamplingParams

    options = {"temperature": 0, "max_tokens": 3, "seed": 5}
    first, second = sampling.sampling(options), sampling.sampling(dict(options))
    assert first == second == SamplingParams(**options, skip_clone=True)
    first._all_stop_token_ids.add(7)
    first.max_tokens, first.extra_args = 9, {"mine": 1}
    assert sampling.sampling(options) == second
    assert [one.seed for one in sampling.samples(sampling.sampling({**options, "temperature": 1.0, "n": 2}))] == [5, 6]
    # Numbers that are equal need not be the same to vLLM.
    assert sampling.sampling({"logprobs": 1}).logprobs == 1 and sampling.sampling({"temperature": 1}) is not None
    with pytest.raises(TypeError, match="no option 'max_token'"):
        sampling.sampling({"max_token": 3})


def test_what_an_engine_adds_to_a_request_is_not_in_the_next_one(llama, model):
    options = {"temperature": 0, "max_tokens": 3, "ignore_eos": False}
    assert drawn(model, IDS, **options) == drawn(model, IDS, **options)
    assert not sampling.sampling(options)._all_stop_token_ids


def test_a_trace_without_an_input_says_so(model):
    with pytest.raises(NoInputError, match="no input, so nothing runs"):
        with model.trace(temperature=0) as tracer:
            tracer.result.save()


def test_a_body_runs_once_for_each_continuation_and_its_names_are_lists(model):
    options = {"n": 3, "temperature": 1.0, "seed": 7, "max_tokens": 4, "ignore_eos": True}
    with model.trace(TEXT, **options) as tracer:
        logits = nnsight.save([])
        for _ in tracer.iter[:]:
            logits.append(model.logits.output[0])
        result = tracer.result.save()
    plain = model.generate(TEXT, **options)
    assert [list(one.outputs[0].token_ids) for one in result] == [list(one.token_ids) for one in plain.outputs]
    assert len({tuple(one.token_ids) for one in plain.outputs}) > 1  # they differ, so their order is seen
    assert [len(one) for one in logits] == [4, 4, 4]
    # Each saw its own: the first step is that of one prompt, and what follows depends on what was drawn.
    torch.testing.assert_close(logits[0][0], logits[1][0])
    for own, one in zip(logits, plain.outputs):
        with model.trace([*IDS, *one.token_ids[:3]], temperature=0, max_tokens=1):
            last = model.logits.output[0].save()
        torch.testing.assert_close(own[3], last, atol=1e-4, rtol=1e-4)


def test_a_conversation_is_made_tokens_by_the_template_of_the_model(llama, tmp_path):
    checkpoints.save(tmp_path, checkpoints.llama())
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m['content'] }} {% endfor %}{% if add_generation_prompt %}w9{% endif %}"
    )
    tokenizer.save_pretrained(tmp_path)
    model = VLLM(str(tmp_path), dtype="float32", max_model_len=64, block_size=32, num_gpu_blocks_override=10)
    said = [{"role": "user", "content": TEXT}]
    assert drawn(model, said) == expected(llama, [5, 6, 7, 13])
    said = [*said, {"role": "assistant", "content": "w4"}]  # which is continued
    assert list(model.generate(said, temperature=0, max_tokens=3).outputs[0].token_ids) == expected(llama, [5, 6, 7, 8])


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    """An engine that takes adapters and embeddings, a plain model, and one with the adapter in its weights."""
    import peft

    folder, adapter = tmp_path_factory.mktemp("base"), tmp_path_factory.mktemp("adapter")
    plain = checkpoints.save(folder, checkpoints.llama())
    config = peft.LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj", "o_proj", "down_proj"])
    made = peft.get_peft_model(plain, config)
    torch.manual_seed(3)
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if "lora" in name:
                parameter.normal_(0, 0.3)
    made.save_pretrained(adapter)
    merged = made.merge_and_unload().eval()
    options = {"dtype": "float32", "max_model_len": 64, "block_size": 32, "num_gpu_blocks_override": 10}
    # On a CPU vLLM gives requests without an adapter that of the last place, so one stays empty.
    served = VLLM(str(folder), enable_lora=True, max_lora_rank=8, max_loras=2, enable_prompt_embeds=True, **options)
    return served, type(merged).from_pretrained(folder).eval(), merged, str(adapter)


def test_a_request_with_an_adapter_is_that_of_the_merged_weights_and_its_neighbour_is_not(tuned):
    from vllm.lora.request import LoRARequest

    model, plain, merged, adapter = tuned
    with model.trace(temperature=0, max_tokens=1) as tracer:
        with tracer.invoke(IDS, lora_request=LoRARequest("style", 1, adapter)):
            hidden = model.model.layers[2].mlp.output.save()
            with_adapter = model.logits.output.save()
            result = tracer.result.save()
        with tracer.invoke(IDS):
            without = model.logits.output.save()
    seen = []
    hook = merged.model.layers[2].mlp.register_forward_hook(lambda module, args, output: seen.append(output[0]))
    with torch.no_grad():
        wanted = merged(torch.tensor([IDS])).logits[0, -1:]
        hook.remove()
        torch.testing.assert_close(with_adapter, wanted, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(without, plain(torch.tensor([IDS])).logits[0, -1:], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(hidden, seen[0], atol=1e-4, rtol=1e-4)
    assert not torch.allclose(with_adapter, without, atol=0.1)
    assert (result.lora_request.lora_name, result.lora_request.lora_path) == ("style", adapter)


def test_a_prompt_can_be_embeddings(tuned):
    model, plain, *_ = tuned
    embeds = plain.get_input_embeddings()(torch.tensor(IDS)).detach()
    with model.trace({"prompt_embeds": embeds}, temperature=0, max_tokens=2) as tracer:
        given = model.model.layers[0].inputs.save()
        logits = model.logits.output.save()
    hidden = next(
        value for value in (*given[0], *given[1].values()) if torch.is_tensor(value) and value.is_floating_point()
    )
    torch.testing.assert_close(hidden, embeds)
    with torch.no_grad():
        wanted = plain(torch.tensor([IDS])).logits[0, -1:]
    torch.testing.assert_close(logits, wanted, atol=1e-4, rtol=1e-4)
