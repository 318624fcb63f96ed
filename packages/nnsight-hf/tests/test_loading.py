"""Loading: from a folder, an embedded name or a module; lazily or at once; and what stays valid meanwhile."""

from __future__ import annotations

import gc
import json
import os
import pathlib
import shutil
import threading
import weakref
from typing import Any

import checkpoints
import pytest
import safetensors.torch
import torch
import transformers
from checkpoints import LONG, SHORT, alone, ids

import nnsight
from nnsight import LanguageModel, LoadError
from nnsight.testing import LoadableSuite
from nnsight_hf import identity
from nnsight_hf.loading import Checkpoint

ROUNDING = {"rtol": 1e-4, "atol": 1e-4}


class TestCheckpoint(LoadableSuite):
    """The core's promises about models that load lazily, on a checkpoint of transformers."""

    @pytest.fixture(autouse=True)
    def _folder(self, gpt2_folder: str) -> None:
        self.folder = gpt2_folder

    def make_source(self) -> Checkpoint:
        config = transformers.AutoConfig.from_pretrained(self.folder)
        return Checkpoint(transformers.AutoModelForCausalLM, self.folder, config, {})

    def make_model(self) -> LanguageModel:
        return LanguageModel(self.folder)

    def inputs(self) -> list[Any]:
        return [SHORT, LONG]


def logits(model: LanguageModel, text: str = LONG) -> torch.Tensor:
    with model.trace(text):
        return model.output.logits


def test_a_folder_in_every_spelling(gpt2_folder, plain_gpt2, monkeypatch) -> None:
    want = alone(plain_gpt2, LONG)
    path = pathlib.Path(gpt2_folder)
    monkeypatch.chdir(path.parent)
    for given in (gpt2_folder, path, f".{os.sep}{path.name}", path.name):
        model = LanguageModel(given)
        torch.testing.assert_close(logits(model), want, **ROUNDING)
        assert model.name_or_path == model.repo_id == os.fspath(given)


def test_the_embedded_model_by_its_name() -> None:
    model = LanguageModel("nnsight/toy-landmarks")
    assert model.repo_id == model.name_or_path == "nnsight/toy-landmarks" and not model.dispatched
    with model.trace("The Eiffel Tower is in the city of"):
        token = model.output.logits[0, -1].argmax()
    assert model.tokenizer.decode(token) == " Paris"
    again = LanguageModel(model._model, tokenizer=model.tokenizer)
    assert again.dispatched and again._model is model._model


def test_a_configuration_gives_new_weights() -> None:
    config = transformers.LlamaConfig(
        vocab_size=23, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4
    )
    model = LanguageModel(config, tokenizer=checkpoints.tokenizer())
    assert not model.dispatched and model.repo_id is None and len(model.model.layers) == 2
    assert all(parameter.is_meta for parameter in model._model.parameters())
    torch.manual_seed(3)
    got = logits(model, SHORT)
    torch.manual_seed(3)
    plain = transformers.LlamaForCausalLM(config).eval()
    torch.testing.assert_close(got, alone(plain, SHORT), **ROUNDING)


def test_an_encoder_with_a_decoder_by_its_configuration() -> None:
    config = transformers.T5Config(
        vocab_size=30, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, decoder_start_token_id=0
    )
    assert isinstance(LanguageModel(config)._model, transformers.T5ForConditionalGeneration)


def test_nothing_is_loaded_before_the_first_run(gpt2_folder, monkeypatch) -> None:
    loads = []
    load = Checkpoint.load
    monkeypatch.setattr(Checkpoint, "load", lambda self: loads.append(1) or load(self))
    model = LanguageModel(gpt2_folder)
    assert len(model.transformer.h) == 2 and model.config.n_embd == 32 and "GPT2Block" in repr(model)
    assert model.tokenizer(SHORT).input_ids == ids(SHORT)
    with model.edit() as edited:
        model.transformer.h[0].output
    assert not model.dispatched and not loads
    logits(model)
    logits(edited)
    model.generate(SHORT, max_new_tokens=1)
    assert model.dispatched and edited.dispatched and loads == [1], "one load for all references"
    assert model._module is edited._module


def test_an_edit_made_before_the_weights_came_holds_after(gpt2_folder, plain_gpt2) -> None:
    model = LanguageModel(gpt2_folder)
    with model.edit() as edited:
        model.transformer.h[1].mlp.output[:] = 0
    handle = plain_gpt2.transformer.h[1].mlp.register_forward_hook(lambda m, i, o: o * 0)
    changed = alone(plain_gpt2, LONG)
    handle.remove()
    torch.testing.assert_close(logits(edited), changed, **ROUNDING)
    torch.testing.assert_close(logits(model), alone(plain_gpt2, LONG), **ROUNDING)


def test_at_once(gpt2_folder, plain_gpt2) -> None:
    model = LanguageModel(gpt2_folder, dispatch=True, device_map="cpu")
    assert model.dispatched and {p.device.type for p in model._module.parameters()} == {"cpu"}
    assert not model._module.training
    torch.testing.assert_close(logits(model), alone(plain_gpt2, LONG), **ROUNDING)


def test_a_device_map_for_later(gpt2_folder, plain_gpt2) -> None:
    model = LanguageModel(gpt2_folder, device_map="cpu")
    torch.testing.assert_close(logits(model), alone(plain_gpt2, LONG), **ROUNDING)
    assert model.device == torch.device("cpu")


def test_layers_that_accelerate_keeps_on_disk(gpt2_folder, plain_gpt2, tmp_path) -> None:
    places = {"transformer.wte": "cpu", "transformer.wpe": "cpu", "transformer.h.0": "cpu", "transformer.h.1": "disk"}
    places |= {"transformer.ln_f": "cpu", "lm_head": "cpu"}
    model = LanguageModel(gpt2_folder, device_map=places, offload_folder=tmp_path)
    with model.trace(LONG):
        block = checkpoints.hidden(model.transformer.h[1].output)
        got = model.output.logits
    torch.testing.assert_close(got, alone(plain_gpt2, LONG), **ROUNDING)
    assert block.device.type == "cpu"


@pytest.mark.parametrize("dtype", [torch.bfloat16, "bfloat16"], ids=str)
def test_the_type_of_the_weights(gpt2_folder, dtype) -> None:
    model = LanguageModel(gpt2_folder, dtype=dtype)
    before = {p.dtype for p in model._module.parameters()}
    with model.scan(SHORT):
        scanned = model.output.logits.dtype
    got = logits(model).dtype
    assert before == {torch.bfloat16} == {p.dtype for p in model._module.parameters()}
    assert scanned == got == torch.bfloat16


def test_the_type_that_a_checkpoint_was_saved_in(tmp_path) -> None:
    checkpoints.module("gpt2").to(torch.bfloat16).save_pretrained(tmp_path)
    checkpoints.tokenizer().save_pretrained(tmp_path)
    model = LanguageModel(tmp_path)
    before = {p.dtype for p in model._module.parameters()}
    assert {p.dtype for p in model.dispatch()._module.parameters()} == before


def test_an_attention_implementation(gpt2_folder) -> None:
    model = LanguageModel(gpt2_folder, attn_implementation="eager")
    assert model.config._attn_implementation == "eager"
    with model.trace(LONG, output_attentions=True) as tracer:
        result = tracer.result
    assert model.config._attn_implementation == "eager" and model.config is model._module.config
    assert result.attentions[0].shape == (1, 4, len(ids(LONG)), len(ids(LONG)))


def test_a_configuration_of_the_users(gpt2_folder) -> None:
    config = transformers.AutoConfig.from_pretrained(gpt2_folder, resid_pdrop=0.25)
    model = LanguageModel(gpt2_folder, config=config)
    logits(model)
    assert model.config.resid_pdrop == 0.25


def test_another_auto_class(tmp_path) -> None:
    config = checkpoints.CONFIGS["gpt2"](vocab_size=len(checkpoints.TOKENS), num_labels=3, pad_token_id=0)
    plain = transformers.AutoModelForSequenceClassification.from_config(config).eval()
    plain.save_pretrained(tmp_path)
    checkpoints.tokenizer().save_pretrained(tmp_path)
    for automodel in ("AutoModelForSequenceClassification", transformers.AutoModelForSequenceClassification):
        model = LanguageModel(tmp_path, automodel=automodel)
        with model.trace() as tracer:
            with tracer.invoke(LONG):
                scores = tracer.result.logits
            with tracer.invoke(SHORT):
                short = tracer.result.logits
        torch.testing.assert_close(scores, alone(plain, LONG), **ROUNDING)
        torch.testing.assert_close(short, alone(plain, SHORT), **ROUNDING)


def test_a_tokenizer_without_a_padding_token_gets_the_end_of_text(tmp_path) -> None:
    model = LanguageModel(checkpoints.save(tmp_path, "gpt2", pad=None))
    assert model.tokenizer.pad_token == model.tokenizer.eos_token == "</s>"
    assert model.tokenizer.padding_side == "left"


def test_options_for_the_tokenizer_and_one_of_the_users(gpt2_folder) -> None:
    model = LanguageModel(gpt2_folder, tokenizer_kwargs={"padding_side": "right", "model_max_length": 7})
    assert model.tokenizer.padding_side == "right" and model.tokenizer.model_max_length == 7
    mine = checkpoints.tokenizer()
    assert LanguageModel(gpt2_folder, tokenizer=mine).tokenizer is mine


def test_what_cannot_be_loaded(tmp_path) -> None:
    with pytest.raises(OSError):
        LanguageModel(str(tmp_path / "nothing-here"))
    with pytest.raises(ValueError, match="name is empty"):
        LanguageModel("")
    with pytest.raises(TypeError, match="hub id, a local folder, a configuration or a torch.nn.Module, not int"):
        LanguageModel(3)


def test_a_broken_checkpoint_can_be_mended_and_loaded(tmp_path, plain_gpt2) -> None:
    checkpoints.save(tmp_path, "gpt2")
    (weights,) = tmp_path.glob("*.safetensors")
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    model = LanguageModel(tmp_path)
    block = model.transformer.h[0]
    with pytest.raises(Exception, match="[Ii]ncomplete|deserializ|safetensors|invalid"):
        logits(model)
    assert not model.dispatched and len(model.transformer.h) == 2
    weights.write_bytes(whole)
    with model.trace(SHORT):
        hidden = checkpoints.hidden(block.output)
        got = model.output.logits
    assert model.dispatched and hidden.shape == (1, 2, 32)
    torch.testing.assert_close(got, alone(plain_gpt2, SHORT), **ROUNDING)


def test_a_damaged_file_is_named(tmp_path) -> None:
    checkpoints.save(tmp_path, "gpt2")
    (weights,) = tmp_path.glob("*.safetensors")
    size = weights.stat().st_size
    with weights.open("r+b") as file:
        file.truncate(size - 64)
    with pytest.raises(
        LoadError, match=rf"Damaged: model.safetensors \({size - 64} bytes, where its header says {size}\)"
    ):
        LanguageModel(tmp_path).dispatch()


def test_a_missing_shard_can_be_brought_later(tmp_path, plain_gpt2) -> None:
    checkpoints.module("gpt2").save_pretrained(tmp_path, max_shard_size="40KB")
    checkpoints.tokenizer().save_pretrained(tmp_path)
    shard = sorted(tmp_path.glob("*.safetensors"))[1]
    whole = shard.read_bytes()
    shard.unlink()
    model = LanguageModel(tmp_path)
    with pytest.raises((OSError, LoadError), match=shard.name):
        logits(model)
    assert not model.dispatched
    shard.write_bytes(whole)
    torch.testing.assert_close(logits(model), alone(plain_gpt2, LONG), **ROUNDING)


def test_an_interrupted_load_can_be_tried_again(gpt2_folder, plain_gpt2, monkeypatch) -> None:
    model = LanguageModel(gpt2_folder)
    with monkeypatch.context() as patched:

        def interrupt(*args: Any, **kwargs: Any) -> None:
            raise KeyboardInterrupt

        patched.setattr(transformers.GPT2LMHeadModel, "tie_weights", interrupt)
        with pytest.raises(KeyboardInterrupt):
            logits(model)
    assert not model.dispatched and len(model.transformer.h) == 2
    torch.testing.assert_close(logits(model), alone(plain_gpt2, LONG), **ROUNDING)


def test_weights_that_the_checkpoint_does_not_have_are_refused(gpt2_folder) -> None:
    model = LanguageModel(gpt2_folder, automodel="AutoModelForSequenceClassification")
    with pytest.raises(LoadError, match=r"does not have score.weight.*random numbers.*new_weights=\['score'\]"):
        model.dispatch()
    assert not model.dispatched and model.score.out_features == 2
    for new in (True, ["score"], ["score.weight"]):
        LanguageModel(gpt2_folder, automodel="AutoModelForSequenceClassification", new_weights=new, dispatch=True)
    with pytest.raises(LoadError, match="score"):
        LanguageModel(
            gpt2_folder, automodel="AutoModelForSequenceClassification", new_weights=["scor", "head"], dispatch=True
        )


def test_weights_of_another_shape_are_refused_by_name(gpt2_folder) -> None:
    config = transformers.AutoConfig.from_pretrained(gpt2_folder, n_positions=32)
    with pytest.raises(LoadError, match=r"in another shape transformer.wpe.weight \(64, 32\) for \(32, 32\)"):
        LanguageModel(gpt2_folder, config=config, dispatch=True)
    for said in ({"new_weights": ["transformer.wpe"]}, {"ignore_mismatched_sizes": True}):
        LanguageModel(gpt2_folder, config=config, dispatch=True, **said)


def test_layers_left_out_are_no_reason_to_refuse(gpt2_folder) -> None:
    config = transformers.AutoConfig.from_pretrained(gpt2_folder, n_layer=1)
    assert len(LanguageModel(gpt2_folder, config=config, dispatch=True).transformer.h) == 1


@pytest.mark.parametrize("name", ["dtype", "torch_dtype"])
@pytest.mark.parametrize("given", ["auto", "float16", torch.float16], ids=str)
def test_types_in_every_spelling(tmp_path, name, given) -> None:
    checkpoints.module("gpt2").to(torch.bfloat16).save_pretrained(tmp_path)
    checkpoints.tokenizer().save_pretrained(tmp_path)
    model = LanguageModel(tmp_path, **{name: given})
    before = {p.dtype for p in model._module.parameters()}
    want = {torch.bfloat16 if given == "auto" else torch.float16}
    assert before == want == {p.dtype for p in model.dispatch()._module.parameters()}


def test_a_type_that_is_none(gpt2_folder) -> None:
    with pytest.raises(ValueError, match="dtype='bfloat61' is not known"):
        LanguageModel(gpt2_folder, dtype="bfloat61")


def test_a_folders_identity_moves_with_it_and_changes_with_what_lies_in_it(tmp_path, gpt2_folder) -> None:
    shutil.copytree(gpt2_folder, tmp_path / "moved")
    first, moved = (LanguageModel(folder).identity for folder in (gpt2_folder, tmp_path / "moved"))
    assert first == moved and first.startswith("local:")
    assert LanguageModel(gpt2_folder, dtype=torch.bfloat16).identity != first
    assert (
        LanguageModel(gpt2_folder, dtype="bfloat16").identity
        == LanguageModel(gpt2_folder, dtype=torch.bfloat16).identity
    )
    said = json.loads((tmp_path / "moved" / "config.json").read_text())
    (tmp_path / "moved" / "config.json").write_text(json.dumps({**said, "layer_norm_epsilon": 0.1}))
    assert LanguageModel(tmp_path / "moved").identity != first
    assert LanguageModel(transformers.AutoModelForCausalLM.from_pretrained(gpt2_folder)).identity is None
    assert LanguageModel(transformers.AutoConfig.from_pretrained(gpt2_folder)).identity is None


def test_of_a_large_file_every_tensor_is_part_of_the_identity(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(identity, "_SMALL", 0)
    tensors = {name: torch.zeros(4000) for name in "abc"}
    safetensors.torch.save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text("{}")
    before = identity.fingerprint(tmp_path)
    assert identity.fingerprint(tmp_path) == before
    found = {before}
    for name in "abc":
        changed = {**tensors, name: torch.ones(4000)}
        safetensors.torch.save_file(changed, tmp_path / "model.safetensors")
        found.add(identity.fingerprint(tmp_path))
    assert len(found) == 4


def test_the_identity_of_a_model_of_the_hub_is_the_commit_in_the_cache(tmp_path, gpt2_folder) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    place = tmp_path / "models--somebody--tiny"
    shutil.copytree(gpt2_folder, place / "snapshots" / commit)
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text(commit)
    for revision in ({}, {"revision": commit}):
        model = LanguageModel("somebody/tiny", cache_dir=tmp_path, local_files_only=True, **revision)
        assert model.identity == f"hub:somebody/tiny@{commit}"


def test_a_model_of_seventy_billion_parameters_is_built_without_memory() -> None:
    config = transformers.LlamaConfig(
        vocab_size=128256,
        hidden_size=8192,
        intermediate_size=28672,
        num_hidden_layers=80,
        num_attention_heads=64,
        num_key_value_heads=8,
    )
    model = LanguageModel(config)
    assert sum(parameter.numel() for parameter in model._module.parameters()) > 70e9
    assert all(parameter.is_meta for parameter in model._module.parameters())
    assert model.model.layers[79].mlp.down_proj.in_features == 28672 and not model.dispatched


def test_what_was_built_without_weights_is_let_go(gpt2_folder) -> None:
    model = LanguageModel(gpt2_folder)
    built = weakref.ref(model._module)
    block = model.transformer.h[0]
    logits(model)
    gc.collect()
    assert built() is None and block._module is model._module.transformer.h[0]


def test_at_once_nothing_is_built_first_and_the_weights_are_read_once(gpt2_folder, monkeypatch) -> None:
    calls: list[str] = []
    for name in ("from_config", "from_pretrained"):
        plain = getattr(transformers.AutoModelForCausalLM, name)
        counted = lambda *args, _name=name, _plain=plain, **kwargs: calls.append(_name) or _plain(*args, **kwargs)  # noqa: E731
        monkeypatch.setattr(transformers.AutoModelForCausalLM, name, counted)
    logits(LanguageModel(gpt2_folder, dispatch=True))
    assert calls == ["from_pretrained"]


def test_two_threads_that_run_it_first(gpt2_folder, plain_gpt2) -> None:
    model = LanguageModel(gpt2_folder)
    ready = threading.Barrier(2)
    got: dict[str, torch.Tensor] = {}

    def run(text: str) -> None:
        ready.wait()
        got[text] = logits(model, text)

    threads = [threading.Thread(target=run, args=(text,)) for text in (SHORT, LONG)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for text in (SHORT, LONG):
        torch.testing.assert_close(got[text], alone(plain_gpt2, text), **ROUNDING)


def test_moving_loads_first(gpt2_folder) -> None:
    model = LanguageModel(gpt2_folder)
    assert model.to(torch.float64) is model and model.dispatched
    assert logits(model).dtype == torch.float64


def test_the_family_is_a_name_of_nnsight_and_an_old_path() -> None:
    from nnsight.modeling.language import LanguageModel as old

    assert nnsight.LanguageModel is old is LanguageModel
