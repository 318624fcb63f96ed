"""A run of a pipeline: its places and steps, its noise, gradients, bars, and that nothing of it stays behind."""

from __future__ import annotations

import copy
import threading
from collections.abc import Iterator
from typing import Any

import checkpoints
import diffusers
import plain
import pytest
import torch

import nnsight
from nnsight import DiffusionModel, UnmetSiteWarning
from nnsight.plugin import leaves
from nnsight.testing.reference import assert_alike, state_of
from nnsight_diffusers import live, progress
from nnsight_diffusers.source import plain_call

ROUNDING = 5e-4
KIND = "stable-diffusion"


@pytest.fixture
def model() -> DiffusionModel:
    return DiffusionModel(plain.pipeline(KIND))


def steps_of(seed: int, count: int, prompt: str = "a cat") -> tuple[list[torch.Tensor], list[torch.Tensor], Any]:
    """Predictions after guidance, latents and timesteps of a plain run, taken at the scheduler by hand."""
    made = copy.copy(plain.pipeline(KIND))
    made.scheduler = diffusers.DDIMScheduler.from_config(made.scheduler.config)
    predictions, latents, times = [], [], []

    class Watched(diffusers.DDIMScheduler):
        def step(self, prediction: Any, time: Any, sample: Any, *args: Any, **kwargs: Any) -> Any:  # type: ignore[override]
            found = super().step(prediction, time, sample, *args, **kwargs)
            predictions.append(prediction.clone())
            latents.append(found[0].clone())
            times.append(int(time))
            return found

    made.scheduler = Watched.from_config(made.scheduler.config)
    made(prompt, num_inference_steps=count, generator=torch.Generator().manual_seed(seed), output_type="pt")
    return predictions, latents, times


# -- places ----------------------------------------------------------------------------------------------------------


def test_the_scheduler_and_the_timestep_are_places(model: DiffusionModel) -> None:
    predictions, latents, times = steps_of(7, 4)
    with model.generate("a cat", num_inference_steps=4, seed=7) as tracer:
        seen = nnsight.save([])
        for _ in tracer.iter[:]:
            time = int(model.timestep.output)
            seen.append((time, model.scheduler.input, model.scheduler.output[0]))
    assert [time for time, _, _ in seen] == times
    assert_alike([value for _, value, _ in seen], predictions, ROUNDING)
    assert_alike([value for _, _, value in seen], latents, ROUNDING)
    assert model.scheduler.timesteps.tolist() == times


def test_what_is_assigned_to_the_schedulers_place_goes_on(model: DiffusionModel) -> None:
    with model.generate("a cat", num_inference_steps=3, seed=1) as tracer:
        for step in tracer.iter[:]:
            if step == 1:
                latents, *others = model.scheduler.output
                model.scheduler.output = (torch.zeros_like(latents), *others)
            if step == 2:
                given = nnsight.save(model.unet.input)
    assert torch.equal(given, torch.zeros_like(given))


def test_a_prediction_is_edited_before_the_scheduler_sees_it(model: DiffusionModel) -> None:
    predictions, _, _ = steps_of(1, 1)
    with model.trace("a cat", seed=1, output_type="latent") as tracer:
        model.scheduler.input = model.scheduler.input * 0
        result = nnsight.save(tracer.result.images)
    noise = torch.randn(result.shape, generator=torch.Generator().manual_seed(1))
    scheduler = diffusers.DDIMScheduler.from_config(model.scheduler.config)
    scheduler.set_timesteps(1)
    want = scheduler.step(torch.zeros_like(noise), scheduler.timesteps[0], noise)[0]
    assert_alike(result, want, ROUNDING)
    assert predictions[0].shape == want.shape


def test_another_timestep_is_what_the_denoiser_is_called_with(model: DiffusionModel) -> None:
    with model.trace("a cat", seed=1) as tracer:
        model.timestep.output = torch.tensor(500)
        (sample, time, *_), kwargs = model.unet.inputs
        noise = model.unet.output[0]
        tracer.stop()
    assert int(time) == 500
    with torch.no_grad():
        want = model.unet._module(sample, 500, encoder_hidden_states=kwargs["encoder_hidden_states"]).sample
    assert_alike(noise, want, ROUNDING)


@pytest.mark.parametrize("kind", list(checkpoints.KINDS))
def test_a_trace_is_one_step_of_any_pipeline(kind: str) -> None:
    made = DiffusionModel(plain.pipeline(kind))
    name = next(iter(made._module.denoisers()))
    given = checkpoints.CALLS[kind] or {"batch_size": 1}
    with made.trace(given, seed=1) as tracer:
        seen = [made.get(name).output for _ in tracer.iter[:]]
        images = tracer.result.images
    assert len(seen) == 1 and len(images) == 1


@pytest.mark.parametrize("strength", [0.05, 0.3, 0.5, 0.8, 1.0])
def test_a_trace_that_begins_with_an_image_is_one_step_too(strength: float) -> None:
    parts = {**plain.pipeline(KIND).components, "requires_safety_checker": False}
    model = DiffusionModel(diffusers.StableDiffusionImg2ImgPipeline(**parts))
    image = torch.rand(1, 3, checkpoints.SIDE, checkpoints.SIDE)
    with model.trace("a cat", image=image, strength=strength) as tracer:
        seen = [model.unet.output for _ in tracer.iter[:]]
    assert len(seen) == 1


def test_code_after_the_last_step_sees_the_autoencoder(model: DiffusionModel) -> None:
    want = plain.hooked(KIND, plain.call(KIND, 1, prompt="a cat", num_inference_steps=2))
    with model.generate("a cat", num_inference_steps=2, seed=1) as tracer:
        count = 0
        for _ in tracer.iter[:]:
            count += 1
        decoded = model.vae.decoder.output
    assert count == 2
    assert_alike(decoded, want.outputs["vae.decoder"][0], ROUNDING)


def test_a_loop_over_more_steps_than_there_are_says_so(model: DiffusionModel) -> None:
    with pytest.warns(UnmetSiteWarning, match="3 steps"):
        with model.generate("a cat", num_inference_steps=3) as tracer:
            for _ in tracer.iter[:5]:
                model.unet.output


def test_a_component_alone(model: DiffusionModel) -> None:
    latents, states = torch.randn(2, 4, 8, 8), torch.randn(2, 12, 32)
    with torch.no_grad(), model.unet.trace(latents, 10, encoder_hidden_states=states):
        inner = model.unet.mid_block.output
        noise = model.unet.output.sample
    seen = {}
    handle = model.unet.mid_block._module.register_forward_hook(lambda m, a, output: seen.update(inner=output))
    with torch.no_grad():
        want = model.unet._module(latents, 10, encoder_hidden_states=states).sample
    handle.remove()
    assert torch.equal(inner, seen["inner"]) and torch.equal(noise, want)


def test_a_component_of_a_model_that_is_not_loaded_loads_it() -> None:
    model = DiffusionModel(checkpoints.folder(KIND))
    with torch.no_grad(), model.vae.decoder.trace(torch.randn(1, 4, 8, 8)):
        image = model.vae.decoder.output
    assert model.dispatched and image.device.type == "cpu" and image.shape[1] == 3


def test_an_operation_inside_a_module(model: DiffusionModel) -> None:
    with model.trace("a cat", seed=1):
        attention = model.unet.mid_block.attentions[0].transformer_blocks[0].attn2
        inside = attention.source.self_processor_0.output
        output = attention.output
    assert torch.equal(inside, output)


@pytest.mark.parametrize("kind", list(checkpoints.KINDS))
def test_a_scan_knows_the_shapes_of_a_whole_run(kind: str) -> None:
    made = DiffusionModel(checkpoints.folder(kind))
    name = next(iter(made._module.denoisers()))
    given = checkpoints.CALLS[kind] or {"batch_size": 1}
    with made.scan(given):
        shapes = [leaf.shape for leaf in leaves(made.get(name).output)]
    assert not made.dispatched
    with made.trace(given):
        want = [leaf.shape for leaf in leaves(made.get(name).output)]
    assert shapes == want


def test_a_layer_that_would_repack_its_weights_does_not_in_a_scan(model: DiffusionModel) -> None:
    """relies on: bitsandbytes.nn.Linear4bit.support_avx512bf16_for_cpu, which is what a layer looks at when it runs."""
    layer = model.unet.conv_out._module
    layer.support_avx512bf16_for_cpu = True
    seen = []
    handle = layer.register_forward_pre_hook(lambda module, args: seen.append(module.support_avx512bf16_for_cpu))
    with model.scan("a cat"):
        model.unet.output
    with model.trace("a cat"):
        model.unet.output
    handle.remove()
    del layer.support_avx512bf16_for_cpu
    assert seen == [False, True]


# -- noise -----------------------------------------------------------------------------------------------------------


def test_a_seed_is_a_generator_of_diffusers(model: DiffusionModel) -> None:
    want = plain.pipeline(KIND)(
        "a cat", num_inference_steps=2, generator=torch.Generator("cpu").manual_seed(5), output_type="pt"
    ).images
    options = {"num_inference_steps": 2, "output_type": "pt", "seed": 5}
    assert torch.equal(model.generate("a cat", **options).images, want)
    with model.generate("a cat", **options) as tracer:
        inside = nnsight.save(tracer.result.images)
    assert torch.equal(inside, want)


def test_a_seed_of_the_trace_holds_for_each_invoke(model: DiffusionModel) -> None:
    with model.trace(seed=5) as tracer:
        with tracer.invoke("a cat"):
            first = nnsight.save(model.unet.input)
        with tracer.invoke("a dog"):
            second = nnsight.save(model.unet.input)
        with tracer.invoke("a dog", seed=6):
            third = nnsight.save(model.unet.input)
    assert torch.equal(first, second) and not torch.equal(first, third)


def test_without_a_seed_the_noise_is_torchs_own(model: DiffusionModel) -> None:
    def draw(seed: int) -> Any:
        torch.manual_seed(seed)
        with model.trace() as tracer:
            with tracer.invoke("a cat", seed=1):
                pass
            with tracer.invoke("a dog"):
                noise = nnsight.save(model.unet.input)
        return noise

    assert torch.equal(draw(1), draw(1)) and not torch.equal(draw(1), draw(2))


# -- gradients -------------------------------------------------------------------------------------------------------


def test_gradients_flow_from_the_image_to_a_module(model: DiffusionModel) -> None:
    with model.generate("a cat", num_inference_steps=2, seed=1, gradients=True) as tracer:
        for _ in tracer.iter[0]:
            hidden = model.unet.mid_block.output
        loss = tracer.result.images.square().mean()
        with loss.backward():
            grad = nnsight.save(hidden.grad)

    kept = []

    def keep(_: Any, args: Any, output: torch.Tensor) -> None:
        output.retain_grad()
        kept.append(output)

    made = plain.pipeline(KIND)
    handle = made.unet.mid_block.register_forward_hook(keep)
    with torch.enable_grad():
        images = plain_call(type(made))(
            made, "a cat", num_inference_steps=2, generator=torch.Generator().manual_seed(1), output_type="pt"
        ).images
        images.square().mean().backward()
    handle.remove()
    made.unet.zero_grad()
    assert grad.abs().max() > 0
    torch.testing.assert_close(grad, kept[0].grad, rtol=1e-3, atol=1e-7)


def test_without_asking_there_is_no_graph(model: DiffusionModel) -> None:
    with model.trace("a cat"):
        assert not model.unet.output[0].requires_grad


def test_pictures_have_no_gradients(model: DiffusionModel) -> None:
    with pytest.raises(ValueError, match="output_type='pt'"):
        model.generate("a cat", gradients=True, output_type="pil")


# -- a run and another -----------------------------------------------------------------------------------------------


def test_a_trace_inside_a_trace_leaves_the_outer_ones_steps_alone(model: DiffusionModel) -> None:
    _, want, _ = steps_of(1, 4)
    with model.generate("a cat", num_inference_steps=4, seed=1) as tracer:
        latents = nnsight.save([])
        for step in tracer.iter[:]:
            if step == 1:
                with model.generate("a dog", num_inference_steps=2, seed=2):
                    inner = nnsight.save(model.unet.output[0])
            latents.append(model.scheduler.output[0])
    assert inner.shape == (2, 4, 8, 8)
    assert_alike(list(latents), want, ROUNDING)


def test_two_threads_get_what_each_gets_alone(model: DiffusionModel) -> None:
    want = {seed: steps_of(seed, 3)[1] for seed in (1, 2, 3)}
    got: dict[int, Any] = {}

    def run(seed: int) -> None:
        with model.generate("a cat", num_inference_steps=3, seed=seed) as tracer:
            got[seed] = [model.scheduler.output[0] for _ in tracer.iter[:]]

    threads = [threading.Thread(target=run, args=(seed,)) for seed in want]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for seed, latents in want.items():
        assert_alike(got[seed], latents, ROUNDING)


def test_an_edit_holds_in_every_step(model: DiffusionModel) -> None:
    def halve(output: Any, visit: int) -> Any:
        return output * 0.5

    want = plain.hooked(
        KIND, plain.call(KIND, 1, prompt="a cat", num_inference_steps=3, output_type="pt"), {"unet.mid_block": halve}
    ).result.images
    with model.edit() as edited:
        model.unet.mid_block.output = model.unet.mid_block.output * 0.5
    options = {"num_inference_steps": 3, "seed": 1, "output_type": "pt"}
    assert_alike(edited.generate("a cat", **options).images, want, ROUNDING)
    assert not torch.allclose(model.generate("a cat", **options).images, want, atol=1e-2)


def test_a_cache_keeps_each_step(model: DiffusionModel) -> None:
    want = plain.hooked(KIND, plain.call(KIND, 1, prompt="a cat", num_inference_steps=2))
    with model.generate("a cat", num_inference_steps=2, seed=1) as tracer:
        cache = tracer.cache(modules=[model.unet.mid_block, model.unet.conv_in])
    for path in ("mid_block", "conv_in"):
        kept = [entry.output for entry in cache[f"model.unet.{path}"]]
        assert_alike(kept, want.outputs[f"unet.{path}"], ROUNDING)


def test_nothing_of_a_run_stays_on_the_pipeline(model: DiffusionModel) -> None:
    made = model.pipeline
    made("a cat", num_inference_steps=1)

    def state() -> Any:
        return state_of(model._module), sorted(vars(made)), sorted(vars(made.scheduler)), live.latest()

    before = state()
    with model.trace("a cat"):
        model.unet.output
    with model.trace() as tracer:
        for prompt in ("a cat", "a dog"):
            with tracer.invoke(prompt):
                model.unet.output
    with pytest.raises(LookupError):
        with model.trace("a cat"):
            model.unet.mid_block.output
            raise LookupError
    with model.scan("a cat"):
        model.unet.output
    with model.trace("a cat") as tracer:
        model.unet.mid_block.output
        tracer.stop()
    assert state() == before


def test_a_copy_has_a_pipeline_of_its_own(model: DiffusionModel) -> None:
    other = copy.deepcopy(model)
    assert other.pipeline is not model.pipeline and other.pipeline.unet is other.unet._module
    with torch.no_grad():
        other.unet.conv_out._module.weight.zero_()
        other.unet.conv_out._module.bias.zero_()
    with other.trace("a cat"):
        mine = other.unet.output[0]
    with model.trace("a cat"):
        theirs = model.unet.output[0]
    assert not mine.any() and theirs.any()


# -- bars ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(progress, "interactive", lambda: False)
    yield


@pytest.mark.usefixtures("script")
@pytest.mark.parametrize(("wanted", "shown"), [(None, False), (True, True), (False, False)])
def test_a_bar_is_shown_where_it_is_asked_for(wanted: bool | None, shown: bool, capsys: Any) -> None:
    model = DiffusionModel(checkpoints.folder(KIND), dispatch=True)
    capsys.readouterr()
    model.generate("a cat", num_inference_steps=3, progress=wanted)
    assert ("3/3" in capsys.readouterr().err) is shown


def test_what_the_user_told_the_pipeline_of_its_bar_holds(capsys: Any) -> None:
    model = DiffusionModel(checkpoints.folder(KIND), dispatch=True)
    model.pipeline.set_progress_bar_config(desc="Drawing")
    capsys.readouterr()
    model.generate("a cat", num_inference_steps=2)
    assert "Drawing" in capsys.readouterr().err
    assert model.pipeline._progress_bar_config == {"desc": "Drawing"}


def test_to_somebody_who_sits_there_a_bar_appears_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "interactive", lambda: True)
    assert progress.options_of(object(), None) == {"disable": False, "delay": progress.PATIENCE}
