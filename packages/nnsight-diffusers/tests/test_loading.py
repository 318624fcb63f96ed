"""Where a pipeline comes from: folders, hub ids, pipelines; what is read before the weights, and what is wrong."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import checkpoints
import diffusers
import plain
import pytest
import torch
from safetensors.torch import load_file, save_file

from nnsight import DiffusionModel, LoadError, NNsightWarning

KIND = "stable-diffusion"


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A folder that a test may spoil."""
    return Path(shutil.copytree(checkpoints.folder(KIND), tmp_path / "pipeline"))


def parameters(model: DiffusionModel) -> dict[str, Any]:
    return {name: (p.shape, p.dtype) for name, p in model._module.named_parameters()}


@pytest.mark.parametrize("kind", list(checkpoints.KINDS))
def test_built_without_weights_the_tree_is_that_of_the_loaded_one(kind: str) -> None:
    lazy = DiffusionModel(checkpoints.folder(kind))
    built = parameters(lazy)
    assert {p.device.type for p in lazy._module.parameters()} == {"meta"}
    assert not lazy.dispatched and type(lazy.pipeline) is type(plain.pipeline(kind))
    lazy.dispatch()
    assert parameters(lazy) == built
    loaded = dict(lazy._module.named_parameters())
    for name, module in plain.pipeline(kind).components.items():
        if isinstance(module, torch.nn.Module):
            for path, parameter in module.named_parameters():
                assert torch.equal(loaded[f"{name}.{path}"], parameter)


def test_light_parts_are_there_before_the_weights() -> None:
    model = DiffusionModel(checkpoints.folder(KIND))
    assert model.pipeline.tokenizer("a cat").input_ids == plain.pipeline(KIND).tokenizer("a cat").input_ids
    assert model.scheduler.config.num_train_timesteps == 1000
    assert "CrossAttnUpBlock2D" in repr(model)
    assert not model.dispatched


def test_without_weights_there_is_nothing_to_warn_of(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("diffusers"), "propagate", True)
    DiffusionModel(checkpoints.folder(KIND))
    assert [record.message for record in caplog.records if record.name.startswith("diffusers")] == []


@pytest.mark.parametrize("dispatch", [False, True])
def test_the_type_of_the_weights_is_passed_on(dispatch: bool) -> None:
    model = DiffusionModel(checkpoints.folder(KIND), dtype=torch.bfloat16, dispatch=dispatch)
    assert {p.dtype for p in model._module.parameters()} == {torch.bfloat16}
    with model.trace("a cat", output_type="latent"):
        noise = model.unet.output[0]
    assert noise.dtype == torch.bfloat16


def test_a_type_for_each_component() -> None:
    types = {"unet": torch.bfloat16, "default": torch.float32}
    model = DiffusionModel(checkpoints.folder(KIND), dtype=types)
    before = parameters(model)
    assert parameters(model.dispatch()) == before
    assert model.unet.conv_in.weight.dtype == torch.bfloat16 and model.vae.decoder.conv_in.weight.dtype == torch.float32


def test_a_variant_of_the_weights(own: Path) -> None:
    pipeline = diffusers.DiffusionPipeline.from_pretrained(own)
    with torch.no_grad():
        pipeline.unet.conv_out.bias.fill_(3.0)
    pipeline.save_pretrained(own, variant="fp16")
    assert (DiffusionModel(own, variant="fp16").dispatch().unet.conv_out.bias == 3.0).all()
    assert not (DiffusionModel(own).dispatch().unet.conv_out.bias == 3.0).all()


def test_a_component_of_the_users_own(own: Path) -> None:
    shutil.rmtree(own / "vae")
    vae = plain.pipeline(KIND).vae
    model = DiffusionModel(own, vae=vae)
    assert model.vae._module is vae
    assert model.dispatch().vae._module is vae


def test_another_pipeline_with_the_same_components() -> None:
    for automodel in ("StableDiffusionImg2ImgPipeline", diffusers.AutoPipelineForImage2Image):
        model = DiffusionModel(checkpoints.folder(KIND), automodel=automodel)
        assert isinstance(model.pipeline, diffusers.StableDiffusionImg2ImgPipeline)
        assert isinstance(model.dispatch().pipeline, diffusers.StableDiffusionImg2ImgPipeline)


def test_a_ready_pipeline_is_used_as_it_is() -> None:
    pipeline = plain.pipeline(KIND)
    model = DiffusionModel(pipeline)
    assert model.dispatched and model.pipeline is pipeline and model.unet._module is pipeline.unet


def test_options_for_loading_what_is_loaded_are_warned_of() -> None:
    with pytest.warns(NNsightWarning, match="dtype"):
        DiffusionModel(plain.pipeline(KIND), dtype=torch.float16)


def test_a_scheduler_may_be_exchanged() -> None:
    model = DiffusionModel(checkpoints.folder(KIND), dispatch=True)
    model.pipeline.scheduler = diffusers.EulerDiscreteScheduler.from_config(model.pipeline.scheduler.config)
    want = model.pipeline(
        "a cat", num_inference_steps=2, generator=torch.Generator().manual_seed(0), output_type="pt"
    ).images
    with model.generate("a cat", num_inference_steps=2, seed=0, output_type="pt") as tracer:
        times = [float(model.timestep.output) for _ in tracer.iter[:]]
        images = tracer.result.images
    assert times == model.scheduler.timesteps.tolist()
    torch.testing.assert_close(images, want)


def test_names_for_modules_are_the_users() -> None:
    model = DiffusionModel(plain.pipeline(KIND), rename={"unet": "denoiser", "unet.mid_block": "bottleneck"})
    with model.trace("a cat"):
        inner = model.bottleneck.output
        noise = model.denoiser.output[0]
    assert inner.shape[0] == noise.shape[0] == 2


def test_moving_the_model_moves_the_pipeline() -> None:
    model = DiffusionModel(checkpoints.folder(KIND)).to(torch.float64)
    assert model.dispatched and model.pipeline.dtype == torch.float64


def test_offloading_is_left_to_the_pipeline() -> None:
    """Without an accelerator, what a pipeline's offloading puts on its modules is put on by hand: it replaces `forward`."""
    from accelerate import cpu_offload

    model = DiffusionModel(checkpoints.folder(KIND), dispatch=True)
    want = model.generate("a cat", num_inference_steps=2, seed=1, output_type="pt").images
    cpu_offload(model.pipeline.unet, "cpu")
    assert model.pipeline.unet.conv_in.weight.device.type == "meta"
    with model.generate("a cat", num_inference_steps=2, seed=1, output_type="pt") as tracer:
        seen = [model.unet.mid_block.output for _ in tracer.iter[:]]
        images = tracer.result.images
    assert len(seen) == 2
    torch.testing.assert_close(images, want)


# -- what is wrong ---------------------------------------------------------------------------------------------------


def test_a_folder_without_a_pipeline_says_what_to_use(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match=r"no model_index.json in it"):
        DiffusionModel(tmp_path)


@pytest.mark.parametrize(("given", "match"), [(3, "not int"), (torch.nn.Linear(2, 2), "not Linear")])
def test_what_is_no_diffusion_model_is_refused(given: Any, match: str) -> None:
    with pytest.raises(TypeError, match=match):
        DiffusionModel(given)


def test_an_empty_name_is_refused() -> None:
    with pytest.raises(ValueError, match="empty"):
        DiffusionModel("")


def test_missing_files_are_an_error_and_can_be_tried_again(own: Path) -> None:
    weights = own / "unet" / "diffusion_pytorch_model.safetensors"
    kept = weights.read_bytes()
    model = DiffusionModel(own)
    weights.unlink()
    with pytest.raises(OSError, match="diffusion_pytorch_model"):
        model.dispatch()
    assert not model.dispatched and repr(model)
    weights.write_bytes(kept)
    assert model.dispatch().dispatched


def test_damaged_weights_are_an_error(own: Path) -> None:
    weights = own / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises((LoadError, OSError)):
        DiffusionModel(own).dispatch()


@pytest.mark.parametrize("part", ["unet", "text_encoder", "vae"])
def test_weights_that_a_checkpoint_does_not_have_are_an_error(own: Path, part: str) -> None:
    (file,) = (own / part).glob("*.safetensors")
    tensors = load_file(file)
    gone = next(name for name in sorted(tensors) if name.endswith("weight") and "layer" in name or "conv_in" in name)
    del tensors[gone]
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(LoadError, match=gone.rpartition("text_model.")[2].replace(".", r"\.")):
        DiffusionModel(own).dispatch()


def test_weights_of_another_shape_are_an_error(own: Path) -> None:
    config = json.loads((own / "unet" / "config.json").read_text())
    config["cross_attention_dim"] = 48
    (own / "unet" / "config.json").write_text(json.dumps(config))
    with pytest.raises(LoadError):
        DiffusionModel(own).dispatch()


# -- parts that are exchanged ----------------------------------------------------------------------------------------


def test_a_component_that_the_pipeline_exchanges_is_followed() -> None:
    model = DiffusionModel(checkpoints.folder(KIND), dispatch=True)
    held = model.unet
    model.pipeline.unet = checkpoints.seeded(checkpoints.unet(), seed=9)
    with model.trace("a cat", seed=1):
        inner = held.conv_out.output
        noise = model.unet.output[0]
    assert held._module is model.pipeline.unet
    assert torch.equal(noise, inner)


def test_a_component_that_the_model_is_given_is_the_pipelines_too() -> None:
    model = DiffusionModel(checkpoints.folder(KIND), dispatch=True)
    other = checkpoints.seeded(checkpoints.unet(), seed=9)
    model.unet = other
    assert model.pipeline.unet is other
    with model.trace("a cat", seed=1):
        inner = model.unet.conv_out.output
        noise = model.unet.output[0]
    assert torch.equal(noise, inner)
