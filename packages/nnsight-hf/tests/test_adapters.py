"""Adapters of peft: where they lie in the tree, what they change, and what is refused."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import checkpoints
import pytest
import safetensors.torch
import torch
from checkpoints import LONG, SHORT, alone, hidden, ids
from transformers import AutoModelForCausalLM

from nnsight import LanguageModel, LoadError

peft = pytest.importorskip("peft")

CLOSE = {"rtol": 1e-4, "atol": 1e-4}
PLACE = "model.layers.0.self_attn.q_proj"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    return checkpoints.save(tmp_path_factory.mktemp("base"), "llama")


def adapted(base: str, seed: int) -> Any:
    """The model with an adapter that changes something, by peft alone."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
        return peft.get_peft_model(AutoModelForCausalLM.from_pretrained(base), config).eval()


@pytest.fixture(scope="module")
def saved(base: str, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folders = [str(tmp_path_factory.mktemp("adapter")) for _ in range(2)]
    for seed, folder in enumerate(folders):
        adapted(base, seed).save_pretrained(folder)
    return folders


def with_adapter(base: str, folder: str) -> torch.nn.Module:
    return peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), folder).eval()


def logits(model: LanguageModel, text: str = LONG) -> torch.Tensor:
    with torch.no_grad(), model.trace(text):
        return model.output.logits


def changed(folder: str, target: Path, change: Any) -> str:
    """Copy an adapter with other weights."""
    shutil.copytree(folder, target, dirs_exist_ok=True)
    file = target / "adapter_model.safetensors"
    safetensors.torch.save_file(change(safetensors.torch.load_file(file)), file)
    return str(target)


def paths(model: LanguageModel) -> list[str]:
    return [path for path, _ in model.named_modules()]


def test_an_adapter_at_construction_is_in_the_tree_before_the_weights_and_equals_peft(base, saved) -> None:
    model = LanguageModel(base, peft=saved[0])
    assert not model.dispatched and {p.device.type for p in model._module.parameters()} == {"meta"}
    before, layer = paths(model), model.get(PLACE)
    assert f"model.{PLACE}.lora_A.default" in before
    with model.scan(SHORT):
        assert layer.lora_A.default.output.shape == (1, len(ids(SHORT)), 4)
    torch.testing.assert_close(logits(model), alone(with_adapter(base, saved[0]), LONG), **CLOSE)
    assert paths(model) == before and model.get(PLACE) is layer
    assert not torch.allclose(logits(model), alone(AutoModelForCausalLM.from_pretrained(base), LONG), **CLOSE)


@pytest.mark.parametrize("early", [True, False], ids=["before", "after"])
def test_an_adapter_loaded_before_or_after_the_weights(base, saved, early) -> None:
    model = LanguageModel(base)
    layer = model.get(PLACE)
    if not early:
        logits(model)
    model.load_adapter(saved[1])
    assert model.dispatched is not early and layer.lora_A.default.out_features == 4
    torch.testing.assert_close(logits(model), alone(with_adapter(base, saved[1]), LONG), **CLOSE)
    with model.disable_adapter():
        plain = logits(model)
    torch.testing.assert_close(plain, alone(AutoModelForCausalLM.from_pretrained(base), LONG), **CLOSE)
    torch.testing.assert_close(logits(model), alone(with_adapter(base, saved[1]), LONG), **CLOSE)
    model.unload_adapter()
    assert paths(model) == paths(LanguageModel(base)) and type(layer._module) is torch.nn.Linear
    torch.testing.assert_close(logits(model), plain)


def test_several_adapters_by_name(base, saved) -> None:
    model = LanguageModel(base, peft={"one": saved[0], "two": saved[1]})
    wants = [alone(with_adapter(base, folder), LONG) for folder in saved]
    torch.testing.assert_close(logits(model), wants[0], **CLOSE)
    model.set_adapter("two")
    torch.testing.assert_close(logits(model), wants[1], **CLOSE)
    model.unload_adapter("one")
    torch.testing.assert_close(logits(model), wants[1], **CLOSE)
    assert list(model.get(PLACE).lora_A._module) == ["two"]
    with pytest.raises(ValueError, match="has an adapter `two` already"):
        model.load_adapter(saved[0], "two")


def test_of_two_adapters_the_last_loaded_is_active_early_and_late(base, saved) -> None:
    want = alone(with_adapter(base, saved[1]), LONG)
    for early in (True, False):
        model = LanguageModel(base, dispatch=not early)
        model.load_adapter(saved[0], "one").load_adapter(saved[1], "two")
        torch.testing.assert_close(logits(model), want, **CLOSE)


def test_a_new_adapter_from_its_configuration(base) -> None:
    config = peft.LoraConfig(r=2, target_modules=["o_proj"])
    model = LanguageModel(base, peft=config)
    torch.testing.assert_close(logits(model), alone(AutoModelForCausalLM.from_pretrained(base), LONG), **CLOSE)
    with model.trace(LONG):
        loss = model.output.logits.sum()
        loss.backward()
    weight = model.model.layers[1].self_attn.o_proj.lora_B.default.weight
    assert weight.grad is not None and weight.grad.abs().sum() > 0


def test_an_adapter_as_the_model_brings_its_base(base, saved) -> None:
    shutil.copy(f"{base}/tokenizer.json", saved[0])
    shutil.copy(f"{base}/tokenizer_config.json", saved[0])
    model = LanguageModel(saved[0], tokenizer=checkpoints.tokenizer())
    torch.testing.assert_close(logits(model), alone(with_adapter(base, saved[0]), LONG), **CLOSE)
    assert model.repo_id == saved[0]


def test_a_model_that_peft_wrapped_has_the_short_paths(base, saved) -> None:
    wrapped = with_adapter(base, saved[0])
    model = LanguageModel(wrapped, tokenizer=checkpoints.tokenizer())
    torch.testing.assert_close(logits(model), alone(wrapped, LONG), **CLOSE)
    assert model.get(PLACE).lora_A.default.out_features == 4
    with model.disable_adapter():
        torch.testing.assert_close(logits(model), alone(AutoModelForCausalLM.from_pretrained(base), LONG), **CLOSE)


def test_reads_and_edits_of_the_adapters_modules_equal_hooks_and_batches_equal_alone(base, saved) -> None:
    plain = with_adapter(base, saved[0])
    part = plain.base_model.model.get_submodule(f"{PLACE}.lora_B.default")
    seen: dict[str, torch.Tensor] = {}
    handle = part.register_forward_hook(lambda m, i, o: seen.update({"out": o}))
    texts = (LONG, SHORT)
    wants = []
    for text in texts:
        alone(plain, text)
        wants.append(seen["out"])
    handle.remove()
    handle = part.register_forward_hook(lambda m, i, o: o * 3)
    edited = [alone(plain, text) for text in texts]
    handle.remove()

    model = LanguageModel(base, peft=saved[0])
    layer = model.get(PLACE)
    with torch.no_grad(), model.trace() as tracer:
        with tracer.invoke(LONG):
            first = layer.lora_B.default.output.save()
            logits_first = model.output.logits.save()
        with tracer.invoke(SHORT):
            layer.lora_B.default.output = layer.lora_B.default.output * 3
            logits_second = model.output.logits.save()
    torch.testing.assert_close(first, wants[0], **CLOSE)
    torch.testing.assert_close(logits_first, alone(plain, LONG), **CLOSE)
    torch.testing.assert_close(logits_second[:, -len(ids(SHORT)) :], edited[1], **CLOSE)
    with torch.no_grad(), model.trace(SHORT) as tracer:
        cache = tracer.cache(modules=[layer.lora_B.default])
    torch.testing.assert_close(cache[f"model.{PLACE}.lora_B.default"].output, wants[1], **CLOSE)
    with torch.no_grad(), model.trace(SHORT):
        block = hidden(model.model.layers[1].output)
    assert block.shape == (1, len(ids(SHORT)), 32)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda w: {k.replace("self_attn", "attn"): v for k, v in w.items()}, "no place for .*attn.q_proj"),
        (lambda w: dict(list(w.items())[:3]), "do not have .*lora_"),
        (
            lambda w: {**w, "base_model.model.model.layers.7.self_attn.q_proj.lora_A.weight": torch.zeros(4, 32)},
            "layers.7",
        ),
        (lambda w: {k: v[:2].clone() for k, v in w.items()}, r"of another shape are .*\(2, 32\) for \(4, 32\)"),
    ],
    ids=["names", "missing", "unexpected", "shapes"],
)
@pytest.mark.parametrize("early", [True, False], ids=["before", "after"])
def test_an_adapter_whose_weights_do_not_land_is_refused(base, saved, tmp_path, change, said, early) -> None:
    bad = changed(saved[0], tmp_path / "bad", change)
    model = LanguageModel(base)
    if early:
        model.load_adapter(bad)
        with pytest.raises(LoadError, match=said):
            logits(model)
        assert not model.dispatched, "and it can still be explored"
        assert model.get(PLACE).lora_A.default.out_features == 4
    else:
        want = logits(model)
        before = paths(model)
        with pytest.raises(LoadError, match=said):
            model.load_adapter(bad)
        assert paths(model) == before
        torch.testing.assert_close(logits(model), want)
        model.load_adapter(saved[0])
        torch.testing.assert_close(logits(model), alone(with_adapter(base, saved[0]), LONG), **CLOSE)


def test_an_adapter_that_was_refused_can_be_taken_off_the_list(base, saved, tmp_path) -> None:
    other = changed(saved[0], tmp_path / "cut", lambda weights: dict(list(weights.items())[1:]))
    model = LanguageModel(base, peft={"good": saved[1], "bad": other})
    with pytest.raises(LoadError, match="does not fit"):
        model.dispatch()
    assert not model.dispatched
    with pytest.raises(ValueError, match="no adapter `none`"):
        model.unload_adapter("none")
    model.unload_adapter("bad")
    assert not model.dispatched and not any("bad" in path for path in paths(model))
    torch.testing.assert_close(logits(model), alone(with_adapter(base, saved[1]), LONG), **CLOSE)
    assert LanguageModel(base, peft=other).unload_adapter().dispatch().dispatched


def test_an_adapter_for_modules_that_the_model_lacks_is_refused_when_it_is_named(base) -> None:
    with pytest.raises(LoadError, match="does not fit LlamaForCausalLM.*c_attn"):
        LanguageModel(base, peft=peft.LoraConfig(target_modules=["c_attn"]))
    model = LanguageModel(base)
    with pytest.raises(LoadError, match="adds to the prompt"):
        model.load_adapter(peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2))
    with pytest.raises(TypeError, match="an adapter is a hub id"):
        model.load_adapter(3)
    torch.testing.assert_close(logits(model), alone(AutoModelForCausalLM.from_pretrained(base), LONG), **CLOSE)


def test_an_adapter_is_part_of_the_identity(base, saved) -> None:
    plain, one, two = (LanguageModel(base, peft=given).identity for given in (None, *saved))
    assert len({plain, one, two}) == 3 and one.startswith(plain)
    late = LanguageModel(base, dispatch=True)
    assert late.load_adapter(saved[0]).identity == one
    assert late.unload_adapter().identity == plain
    assert LanguageModel(base, peft=peft.LoraConfig(target_modules=["q_proj"])).identity is None
