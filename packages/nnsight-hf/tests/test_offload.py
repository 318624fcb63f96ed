"""Weights that accelerate keeps on the disk or moves in and out: traces see real tensors all the same."""

from __future__ import annotations

from typing import Any

import accelerate
import checkpoints
import pytest
import torch
from checkpoints import LONG, SHORT, alone, hidden

from nnsight import LanguageModel

CLOSE = {"rtol": 1e-4, "atol": 1e-4}
TOP = {"transformer.wte": "cpu", "transformer.wpe": "cpu", "transformer.ln_f": "cpu", "lm_head": "cpu"}
MAPS: dict[str, Any] = {
    "all on the disk": {"": "disk"},
    "one layer": {**TOP, "transformer.h.0": "cpu", "transformer.h.1": "disk"},
    "first layers": {
        **TOP,
        "transformer.wte": "disk",
        "lm_head": "disk",
        "transformer.h.0": "disk",
        "transformer.h.1": "cpu",
    },
    "cpu": "cpu",
    "auto": "auto",
}


@pytest.fixture(params=list(MAPS))
def offloaded(request: pytest.FixtureRequest, gpt2_folder: str, tmp_path: Any) -> Any:
    return LanguageModel(gpt2_folder, device_map=MAPS[request.param], offload_folder=tmp_path)


def test_reads_and_writes_equal_hooks(offloaded, plain_gpt2) -> None:
    kept: dict[str, torch.Tensor] = {}
    handle = plain_gpt2.transformer.h[1].mlp.c_fc.register_forward_hook(lambda m, i, o: kept.update(out=o))
    alone(plain_gpt2, LONG)
    handle.remove()
    handle = plain_gpt2.transformer.h[1].mlp.register_forward_hook(lambda m, i, o: o * 2)
    changed = alone(plain_gpt2, LONG)
    handle.remove()
    with torch.no_grad(), offloaded.trace(LONG):
        inner = offloaded.transformer.h[1].mlp.c_fc.output
        offloaded.transformer.h[1].mlp.output = offloaded.transformer.h[1].mlp.output * 2
        block = hidden(offloaded.transformer.h[1].output)
        got = offloaded.output.logits
    assert block.device.type == got.device.type == "cpu"
    torch.testing.assert_close(inner, kept["out"], **CLOSE)
    torch.testing.assert_close(got, changed, **CLOSE)


def test_several_invokes_and_generation(offloaded, plain_gpt2) -> None:
    with torch.no_grad(), offloaded.trace() as tracer:
        with tracer.invoke(LONG):
            first = offloaded.lm_head.output[:, -1].save()
        with tracer.invoke(SHORT):
            second = offloaded.lm_head.output[:, -1].save()
    torch.testing.assert_close(first, alone(plain_gpt2, LONG)[:, -1], **CLOSE)
    torch.testing.assert_close(second, alone(plain_gpt2, SHORT)[:, -1], **CLOSE)
    tokens = offloaded.generate(SHORT, max_new_tokens=3, do_sample=False)
    want = checkpoints.continued(plain_gpt2, SHORT, max_new_tokens=3, do_sample=False)
    assert torch.equal(tokens, want)


def test_relies_on_weights_map_parameters_are_read_where_they_lie(offloaded, plain_gpt2) -> None:
    offloaded.dispatch()
    for name in ("transformer.wte", "transformer.h.0.mlp.c_fc", "transformer.h.1.ln_1"):
        got = offloaded.get(name).weight
        torch.testing.assert_close(got, plain_gpt2.get_submodule(name).weight.data, check_device=True)
    torch.testing.assert_close(offloaded.transformer.h[1].mlp.c_fc.bias, plain_gpt2.transformer.h[1].mlp.c_fc.bias.data)


def test_before_the_weights_are_there_parameters_have_none(gpt2_folder) -> None:
    assert LanguageModel(gpt2_folder).transformer.wte.weight.is_meta


def test_a_ready_module_that_accelerate_offloads(plain_gpt2, tmp_path) -> None:
    module = accelerate.cpu_offload(checkpoints.module("gpt2"), execution_device=torch.device("cpu"))
    model = LanguageModel(module, tokenizer=checkpoints.tokenizer())
    with torch.no_grad(), model.trace(LONG):
        got = model.output.logits
    torch.testing.assert_close(got, alone(plain_gpt2, LONG), **CLOSE)
    weight = model.transformer.h[0].mlp.c_fc.weight
    torch.testing.assert_close(weight, plain_gpt2.transformer.h[0].mlp.c_fc.weight.data)


def test_between_runs_the_forwards_of_accelerate_are_back(gpt2_folder, tmp_path) -> None:
    model = LanguageModel(gpt2_folder, device_map={"": "disk"}, offload_folder=tmp_path, dispatch=True)
    part = model._module.transformer.h[0].mlp.c_fc
    before = part.forward
    with torch.no_grad(), model.trace(SHORT):
        model.transformer.h[0].mlp.c_fc.output
    assert part.forward is before and part._parameters["weight"].is_meta


def test_relies_on_hf_hook_a_scan_after_the_weights_are_there_needs_none_of_them(offloaded, plain_gpt2) -> None:
    offloaded.dispatch()
    with offloaded.scan(LONG):
        shape = offloaded.lm_head.output.shape
    assert shape == alone(plain_gpt2, LONG).shape
    with torch.no_grad(), offloaded.trace(LONG):
        got = offloaded.lm_head.output
    torch.testing.assert_close(got, alone(plain_gpt2, LONG), **CLOSE)
