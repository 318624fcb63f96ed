"""Engines that would leave bodies out, and requests for which there is never room, are refused at once and in words."""

from __future__ import annotations

import checkpoints
import pytest
import torch
from engines import OPTIONS
from families import Family

import nnsight
from nnsight import VLLM
from nnsight_vllm.errors import EngineOptionError, PromptTooLongError
from nnsight_vllm.standard import AbsentNameError


@pytest.mark.parametrize(
    ("option", "says"),
    [
        ({"speculative_config": {"method": "ngram", "num_speculative_tokens": 2}}, "speculative decoding"),
        ({"kv_transfer_config": {"kv_connector": "X", "kv_role": "kv_both"}}, "another engine"),
        ({"data_parallel_size": 2}, "share the inputs out"),
        ({"decode_context_parallel_size": 2}, "several devices"),
        ({"enable_dbo": True}, "two halves"),
        ({"scheduler_cls": "some.Scheduler"}, "brings along"),
    ],
)
def test_options_that_would_leave_bodies_out_are_refused_before_anything_is_loaded(option, says):
    with pytest.raises(EngineOptionError, match=says) as caught:
        VLLM("no/such-model", **option)
    assert next(iter(option)) in str(caught.value)


def test_models_that_draw_no_tokens_are_refused(tmp_path):
    checkpoints.save(tmp_path, checkpoints.llama())
    with pytest.raises(EngineOptionError, match="`LanguageModel`"):
        VLLM(str(tmp_path), runner="pooling", **OPTIONS)


def test_a_traced_prompt_that_never_fits_into_a_step_is_refused_and_a_plain_one_is_cut(pair):
    served, _, _ = pair("llama", max_num_batched_tokens=64)
    with pytest.raises(PromptTooLongError, match="max_num_batched_tokens=65"):
        with served.trace([5] * 65, max_tokens=2):
            served.logits.output.save()
    assert len(served.generate([5] * 65, max_tokens=2, ignore_eos=True).outputs[0].token_ids) == 2
    with served.trace([5] * 64, max_tokens=100, ignore_eos=True) as tracer:
        result = tracer.result.save()
    assert len(result.outputs[0].token_ids) == 100
    # A cache without room for the longest request, in which one could wait for ever, is refused by vLLM itself.
    with pytest.raises(ValueError, match="max_model_len"):
        pair("llama", num_gpu_blocks_override=4).served.dispatch()


def test_models_that_compute_numbers_while_they_are_built_are_explored_and_served(tmp_path):
    family = Family(
        "bloom",
        "BloomForCausalLM",
        "BloomConfig",
        {"vocab_size": 96, "hidden_size": 128, "n_layer": 3, "n_head": 4, "pad_token_id": 0, "eos_token_id": 2},
        layers="transformer.h",
    )
    plain = checkpoints.save(tmp_path, family.make())
    model = VLLM(str(tmp_path), **OPTIONS)
    assert all(parameter.is_meta for parameter in model._module.parameters())
    with model.trace([10, 11, 12], max_tokens=1, temperature=0):
        stream = model.transformer.h[1].output.save()
    seen = []
    plain.transformer.h[1].register_forward_hook(lambda module, args, output: seen.append(output))
    with torch.no_grad():
        plain(torch.tensor([[10, 11, 12]]))
    got = seen[0] if isinstance(seen[0], torch.Tensor) else seen[0][0]
    torch.testing.assert_close(stream, got[0], rtol=1e-2, atol=2e-3)  # two approximations of one activation
    with pytest.raises(AbsentNameError, match="before the trace"):
        with model.trace([10, 11, 12], max_tokens=1):
            model.standard.layers_output[1].save()
    names = model.standard
    with model.trace([10, 11, 12], max_tokens=1):
        parts = nnsight.save([names.layers_input[1], names.attentions_output[1], names.mlps_output[1]])
        same = model.standard.layers_output[1].save()
    torch.testing.assert_close(same[0], stream)
    torch.testing.assert_close(sum(parts), same, rtol=1e-4, atol=1e-4)
    model.shutdown()
