"""Quantisation: by name and by configuration, what is reported, and what is refused."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import checkpoints
import pytest
import torch
import transformers
from checkpoints import LONG, SHORT, alone, ids
from transformers import AutoModelForCausalLM

from nnsight import LanguageModel, LoadError

PACKAGES = {"int8": "bitsandbytes", "nf4": "bitsandbytes", "fp4": "bitsandbytes", "int4": "optimum", "fp8": "torchao"}
BITS = {"int8": 8, "nf4": 4, "fp4": 4, "int4": 4, "fp8": 8}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A checkpoint whose sizes all methods take."""
    config = transformers.LlamaConfig(
        vocab_size=len(checkpoints.TOKENS),
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=1,
        num_attention_heads=4,
    )
    folder = tmp_path_factory.mktemp("base")
    torch.manual_seed(1)
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    checkpoints.tokenizer().save_pretrained(folder)
    return str(folder)


@pytest.mark.timeout(600)  # quanto may have to be compiled
@pytest.mark.parametrize("name", list(PACKAGES))
def test_a_quantisation_by_name_is_reported_and_traced(base, name, request) -> None:
    if importlib.util.find_spec(PACKAGES[name]) is None:
        pytest.skip(f"{PACKAGES[name]} is not installed")
    if PACKAGES[name] == "optimum":
        request.getfixturevalue("quanto")
    model = LanguageModel(base, dtype=name)
    with pytest.raises(LoadError, match=r"dispatch\(\).quantization"):
        _ = model.quantization
    before = [path for path, _ in model.named_modules()]
    layer = model.model.layers[0].mlp
    with torch.no_grad(), model.trace() as tracer:
        with tracer.invoke(LONG):
            seen = layer.down_proj.output.save()
            first = model.output.logits.save()
        with tracer.invoke(SHORT):
            layer.down_proj.output = layer.down_proj.output * 0
            second = model.output.logits.save()
    assert [path for path, _ in model.named_modules()] == before

    # The same by hooks on the same module.
    kept: dict[str, torch.Tensor] = {}
    part = model._module.get_submodule("model.layers.0.mlp.down_proj")
    handle = part.register_forward_hook(lambda m, i, o: kept.update(out=o))
    want = alone(model._module, LONG)
    handle.remove()
    close = {"rtol": 1e-3, "atol": 2e-2}  # int8 rounds what comes in by the largest of a row
    torch.testing.assert_close(seen, kept["out"], **close)
    torch.testing.assert_close(first, want, **close)
    handle = part.register_forward_hook(lambda m, i, o: o * 0)
    torch.testing.assert_close(second[:, -len(ids(SHORT)) :], alone(model._module, SHORT), **close)
    handle.remove()

    report = model.quantization
    plain = AutoModelForCausalLM.from_pretrained(base)
    linear = {path for path, module in plain.named_modules() if isinstance(module, torch.nn.Linear)}
    assert set(report.modules) == linear - {"lm_head"} and report.kept == ("lm_head",)
    assert BITS[name] <= report.bits <= BITS[name] * 1.4
    whole = sum(parameter.numel() * parameter.element_size() for parameter in plain.parameters())
    assert report.bytes < whole / 2 and str(len(report.modules)) in str(report)
    assert not torch.allclose(first, alone(plain, LONG), rtol=0, atol=1e-6), "quantised is not the same"
    assert (first - alone(plain, LONG)).abs().max() < 0.5 * alone(plain, LONG).abs().max()


@pytest.mark.parametrize("first", ["run", "scan"])
def test_weights_that_a_layer_puts_in_another_order_survive_a_scan(base, first) -> None:
    """Where the processor multiplies bfloat16 by itself, layers of four bits repack their weights at their first run."""
    pytest.importorskip("bitsandbytes")
    model = LanguageModel(base, dtype="nf4", dispatch=True)
    plain = LanguageModel(base, dtype="nf4", dispatch=True)
    with torch.no_grad():
        want = plain._module(torch.tensor([ids(LONG)])).logits
        if first == "run":
            with model.trace(LONG):
                model.output.logits
        with model.scan(LONG):
            shape = model.output.logits.shape
        with model.trace(LONG):
            got = model.output.logits
    assert shape == got.shape
    torch.testing.assert_close(got, want)


def test_a_quantisation_by_configuration(base) -> None:
    pytest.importorskip("bitsandbytes")
    config = transformers.BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=["lm_head", "down_proj"])
    report = LanguageModel(base, quantization_config=config, dispatch=True).quantization
    assert report is not None and report.method == "bitsandbytes"
    assert report.kept == ("model.layers.0.mlp.down_proj", "lm_head")


def test_what_is_not_quantised_reports_nothing(base) -> None:
    assert LanguageModel(base, dispatch=True).quantization is None


def test_names_that_are_none(base) -> None:
    with pytest.raises(ValueError, match="dtype='int2' is not known.*int8, int4, nf4, fp4, fp8"):
        LanguageModel(base, dtype="int2")
    with pytest.raises(TypeError, match="give one of them"):
        LanguageModel(base, dtype="int8", quantization_config=transformers.BitsAndBytesConfig(load_in_4bit=True))
    with pytest.raises(TypeError, match="cannot be quantised while they load"):
        LanguageModel(transformers.LlamaConfig(), dtype="int8")


def test_a_missing_package_is_named(base, monkeypatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"bitsandbytes.*pip install 'nnsight-hf\[quantization\]'"):
        LanguageModel(base, dtype="int8")


@pytest.mark.skipif(torch.cuda.is_available(), reason="here it runs as it is")
def test_relies_on_validate_environment_a_checkpoint_is_not_dequantised_silently(base, tmp_path) -> None:
    blocks = 128
    plain = AutoModelForCausalLM.from_pretrained(base)
    weights = {}
    for name, tensor in plain.state_dict().items():
        if "proj" in name:
            rows, columns = tensor.shape
            weights[name] = tensor.to(torch.float8_e4m3fn)
            weights[name.replace("weight", "weight_scale_inv")] = torch.ones(rows // blocks, columns // blocks)
        else:
            weights[name] = tensor.clone()
    import safetensors.torch

    safetensors.torch.save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    said = json.loads(Path(base, "config.json").read_text())
    said["quantization_config"] = {"quant_method": "fp8", "weight_block_size": [blocks, blocks]}
    (tmp_path / "config.json").write_text(json.dumps(said))
    checkpoints.tokenizer().save_pretrained(tmp_path)
    model = LanguageModel(tmp_path)
    with pytest.raises(LoadError, match=r"several times as large.*FineGrainedFP8Config\(dequantize=True\)"):
        model.dispatch()
    assert not model.dispatched and model.model.layers[0].mlp.down_proj.out_features == 128
    asked = LanguageModel(
        tmp_path, quantization_config=transformers.FineGrainedFP8Config(dequantize=True), dispatch=True
    )
    assert asked.quantization is None
    got = asked._module.get_parameter("model.layers.0.mlp.up_proj.weight").float()
    torch.testing.assert_close(got, weights["model.layers.0.mlp.up_proj.weight"].float())


def test_a_quantisation_is_part_of_the_identity(base) -> None:
    pytest.importorskip("bitsandbytes")
    plain, eight, four = (LanguageModel(base, **said).identity for said in ({}, {"dtype": "int8"}, {"dtype": "nf4"}))
    assert len({plain, eight, four}) == 3 and eight.startswith(plain)
    assert LanguageModel(base, quantization_config=transformers.BitsAndBytesConfig(load_in_8bit=True)).identity == eight
