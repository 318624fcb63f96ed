"""Several threads that use one engine in this process, and its end and beginning."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import checkpoints
import pytest
import torch

from nnsight import VLLM

GREEDY = {"temperature": 0, "ignore_eos": True, "max_tokens": 4}


def test_threads_trace_and_generate_at_once_and_each_gets_what_is_its_own(llama):
    model, plain = llama.served, llama.plain

    def ask(number):
        ids = [5 + number, 17]
        with model.trace(ids, **GREEDY) as tracer:
            hidden = sum(model.model.layers[1].output).save()
            tokens = tracer.result.outputs[0].token_ids.save()
        again = model.generate(ids, **GREEDY).outputs[0].token_ids
        return ids, hidden, list(tokens), list(again)

    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(ask, range(18)))
    for ids, hidden, tokens, again in found:
        prompt, seen = torch.tensor([ids]), []
        with torch.no_grad():
            out = plain.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=4, do_sample=False)
            hook = plain.model.layers[1].register_forward_hook(lambda module, args, out, seen=seen: seen.append(out[0]))
            plain(prompt)
        hook.remove()
        torch.testing.assert_close(hidden, seen[0], atol=1e-4, rtol=1e-4)
        assert tokens == again == out[0, 2:].tolist()


def test_an_engine_that_was_shut_down_starts_again(pair):
    with pair("gpt2", num_gpu_blocks_override=20).served as model:
        first = model.generate([5, 6], **GREEDY).outputs[0].token_ids
        assert model.dispatched
        model.shutdown()
        assert not model.dispatched
        assert list(model.generate([5, 6], **GREEDY).outputs[0].token_ids) == list(first)
    assert not model.dispatched
    model.shutdown()


def test_an_engine_that_is_shut_down_leaves_the_others_of_this_process_as_they_are(pair, llama):
    before = llama.served.generate([5, 6], **GREEDY).outputs[0].token_ids
    other = pair("gpt2", num_gpu_blocks_override=20).served
    with llama.served.trace([5, 6], **GREEDY):
        layer = llama.served.model.layers[1].output[0].save()
    other.dispatch()
    other.shutdown()
    with llama.served.trace([5, 6], **GREEDY):
        again = llama.served.model.layers[1].output[0].save()
    assert torch.equal(layer, again)
    assert list(llama.served.generate([5, 6], **GREEDY).outputs[0].token_ids) == list(before)


def test_a_tree_without_weights_holds_no_group_of_processes(tmp_path):
    # A fork of this process would wait for ever where it frees one.
    checkpoints.save(tmp_path, checkpoints.mixtral())
    model = VLLM(str(tmp_path), dtype="float32", max_model_len=256)
    assert "experts" in dict(model.model.layers[0].block_sparse_moe._module.named_children())
    held = [value for module in model._module.modules() for value in vars(module).values()]
    assert not [value for value in held if isinstance(value, torch.distributed.ProcessGroup)]


def test_there_are_two_modes(llama):
    with pytest.raises(ValueError, match="'sync' or 'async', not 'later'"):
        VLLM(str(llama.folder), mode="later")
