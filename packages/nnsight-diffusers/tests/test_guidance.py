"""Guidance: its halves by name, of each invoke its own, and what a pipeline's code says of it."""

from __future__ import annotations

from typing import Any

import checkpoints
import diffusers
import numpy
import plain
import pytest
import torch

import nnsight
from nnsight import DiffusionModel, NoTraceError, RowsError
from nnsight.testing.reference import assert_alike
from nnsight_diffusers.source import CONDITIONAL, UNCONDITIONAL, guidance_of

ROUNDING = 5e-4


@pytest.fixture(scope="module")
def model() -> DiffusionModel:
    return DiffusionModel(plain.pipeline("stable-diffusion"))


def alone(seed: int, prompt: str, **own: Any) -> Any:
    arguments = plain.call("stable-diffusion", seed, prompt=prompt, num_inference_steps=2, output_type="np", **own)
    return plain.hooked("stable-diffusion", arguments)


# -- halves ----------------------------------------------------------------------------------------------------------


def test_the_halves_are_what_the_denoiser_gives_for_the_prompt_and_for_none(model: DiffusionModel) -> None:
    unet, captured = model.unet._module, {}

    def capture(_: Any, args: Any, kwargs: Any) -> None:
        captured.update(latents=args[0], time=args[1], states=kwargs["encoder_hidden_states"])

    handle = unet.register_forward_pre_hook(capture, with_kwargs=True)
    with model.trace("a cat", seed=1):
        inner = model.conditional(model.unet.up_blocks[0].resnets[0].output)
        noise = model.unet.output[0]
        conditional, unconditional = model.conditional(noise), model.unconditional(noise)
    handle.remove()
    empty, cat = (model.pipeline.encode_prompt(prompt, "cpu", 1, False)[0] for prompt in ("", "a cat"))
    with torch.no_grad():
        want = {
            name: unet(captured["latents"][:1], captured["time"], encoder_hidden_states=states).sample
            for name, states in (("empty", empty), ("cat", cat))
        }
    assert_alike(conditional, want["cat"], ROUNDING)
    assert_alike(unconditional, want["empty"], ROUNDING)
    assert not torch.allclose(conditional, unconditional, atol=1e-3)
    assert inner.shape[0] == 1


def test_an_edit_of_one_half_acts_on_it_alone_in_a_batch_too(model: DiffusionModel) -> None:
    def double(output: Any, visit: int) -> Any:
        output[1:] *= 2  # the rows for the prompt come last

    arguments = plain.call("stable-diffusion", 2, prompt="a dog", num_inference_steps=2, output_type="np")
    want = plain.hooked("stable-diffusion", arguments, {"unet.mid_block": double}).result.images
    with model.generate(num_inference_steps=2, output_type="np") as tracer:
        with tracer.invoke("a cat", seed=1):
            other = nnsight.save(tracer.result.images)
        with tracer.invoke("a dog", seed=2):
            for _ in tracer.iter[:]:
                model.conditional(model.unet.mid_block.output)[:] *= 2
            mine = nnsight.save(tracer.result.images)
    numpy.testing.assert_allclose(mine, want, atol=ROUNDING)
    numpy.testing.assert_allclose(other, alone(1, "a cat").result.images, atol=ROUNDING)


def test_a_prompt_less_invoke_sees_the_half_of_all_single_rows_as_a_view(model: DiffusionModel) -> None:
    with model.trace() as tracer:
        got = nnsight.save([])
        for prompt, seed in (("a cat", 1), ("a dog", 2)):
            with tracer.invoke(prompt, seed=seed):
                got.append(model.conditional(model.unet.output[0]))
        with tracer.invoke():
            both = nnsight.save(model.conditional(model.unet.output[0]))
    assert torch.equal(both, torch.cat(list(got)))


def test_no_view_shows_the_half_of_several_rows_of_several_invokes(model: DiffusionModel) -> None:
    with pytest.raises(RowsError, match="ask in each invoke"):
        with model.trace() as tracer:
            with tracer.invoke(["a cat", "a house"]):
                pass
            with tracer.invoke("a dog"):
                pass
            with tracer.invoke():
                model.conditional(model.unet.output[0])


def test_without_guidance_all_rows_are_for_the_prompt(model: DiffusionModel) -> None:
    with model.trace("a cat", guidance_scale=1.0):
        noise = model.unet.output[0]
        assert model.conditional(noise) is noise
        assert model.half == CONDITIONAL
        with pytest.raises(RowsError, match="conditional"):
            model.unconditional(noise)


def test_halves_are_asked_for_inside_a_trace(model: DiffusionModel) -> None:
    with pytest.raises(NoTraceError, match="inside the block"):
        model.conditional(torch.zeros(2, 4))


def test_a_value_without_two_parts_has_no_halves(model: DiffusionModel) -> None:
    with pytest.raises(RowsError, match="parts along dimension 0"):
        with model.trace("a cat"):
            model.conditional(model.unet.output[0][:1])


def test_a_pipeline_that_calls_once_for_each_half_says_which_call_it_is() -> None:
    flux = DiffusionModel(plain.pipeline("flux"))
    common = {"true_cfg_scale": 2.0, "negative_prompt": "a dog", "output_type": "np", "num_inference_steps": 2}
    want = plain.hooked("flux", plain.call("flux", 1, prompt="a cat", **common))
    with flux.generate("a cat", seed=1, **{**_sized("flux"), **common}) as tracer:
        seen = []
        for _ in tracer.iter[:]:
            output = flux.transformer.output[0]
            half = flux.half
            (flux.conditional if half == CONDITIONAL else flux.unconditional)(output)
            seen.append((half, output))
        images = tracer.result.images
    assert [half for half, _ in seen] == [CONDITIONAL, UNCONDITIONAL] * 2
    assert_alike([value for _, value in seen], [visit[0] for visit in want.outputs["transformer"]], ROUNDING)
    numpy.testing.assert_allclose(images, want.result.images, atol=ROUNDING)


def test_class_labels_come_before_no_class_in_a_pipeline_that_has_it_so() -> None:
    dit = DiffusionModel(plain.pipeline("dit"))
    with dit.trace([1, 2], guidance_scale=3.0):
        embedded = dit.transformer.transformer_blocks[0].norm1.emb.class_embedder.inputs
        output = dit.transformer.output[0]
        conditional = dit.conditional(output)
    labels = embedded[0][0]
    assert labels.tolist() == [1, 2, 1000, 1000]
    assert torch.equal(conditional, output[:2])


# -- what the code says ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "orders"),
    [
        ("StableDiffusionPipeline", {2: (UNCONDITIONAL, CONDITIONAL)}),
        ("StableDiffusionXLPipeline", {2: (UNCONDITIONAL, CONDITIONAL)}),
        ("StableDiffusion3Pipeline", {2: (UNCONDITIONAL, CONDITIONAL)}),
        ("PixArtAlphaPipeline", {2: (UNCONDITIONAL, CONDITIONAL)}),
        ("DiTPipeline", {2: (CONDITIONAL, UNCONDITIONAL)}),
        ("StableDiffusionInstructPix2PixPipeline", {3: (CONDITIONAL, None, UNCONDITIONAL)}),
        ("StableCascadePriorPipeline", {2: (CONDITIONAL, UNCONDITIONAL)}),
        ("FluxPipeline", {}),
        ("DDPMPipeline", {}),
    ],
)
def test_the_order_of_the_halves_is_read_from_the_pipelines_code(name: str, orders: dict[int, Any]) -> None:
    assert guidance_of(getattr(diffusers, name)).orders == orders


def test_most_pipelines_of_diffusers_say_how_they_guide() -> None:
    """relies on: the names that pipelines give the parts of a prediction, diffusers 0.42."""
    kinds = [getattr(diffusers, name) for name in dir(diffusers) if name.endswith("Pipeline")]
    guided = [
        kind
        for kind in kinds
        if isinstance(kind, type)
        and issubclass(kind, diffusers.DiffusionPipeline)
        and "guidance_scale" in plain_parameters(kind)
    ]
    said = [kind for kind in guided if guidance_of(kind).orders or guidance_of(kind).calls]
    assert len(guided) > 100
    assert len(said) > 0.85 * len(guided)


def test_what_a_pipeline_takes_beside_its_arguments_is_read_from_its_code() -> None:
    assert guidance_of(diffusers.StableDiffusionPipeline).others == {"callback", "callback_steps"}
    assert guidance_of(diffusers.FluxPipeline).others == frozenset()


def test_a_class_without_source_says_nothing() -> None:
    made: dict[str, Any] = {"diffusers": diffusers}
    exec("class Made(diffusers.DDPMPipeline):\n    def __call__(self): return 1", made)
    found = guidance_of(made["Made"])
    assert not found.orders and not found.calls and found.unless is None


# -- guidance of each invoke -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["stable-diffusion", "sdxl", "sd3", "pixart", "controlnet"])
def test_each_invoke_has_the_guidance_that_it_asks_for(kind: str) -> None:
    model = DiffusionModel(plain.pipeline(kind))
    common = {**_sized(kind), "output_type": "np", "num_inference_steps": 2}
    with model.generate(**common) as tracer:
        got = nnsight.save([])
        for seed, scale in ((1, 2.0), (2, 9.0), (3, 4.5)):
            with tracer.invoke("a cat", seed=seed, guidance_scale=scale):
                got.append(tracer.result.images)
    for images, (seed, scale) in zip(got, ((1, 2.0), (2, 9.0), (3, 4.5))):
        want = plain.hooked(kind, plain.call(kind, seed, prompt="a cat", **{**common, "guidance_scale": scale}))
        numpy.testing.assert_allclose(images, want.result.images, atol=2 * ROUNDING)


def test_what_else_a_pipeline_makes_of_its_predictions_is_read_from_its_code() -> None:
    assert guidance_of(diffusers.StableDiffusionPipeline).unless == {"guidance_rescale"}
    assert guidance_of(diffusers.StableDiffusion3Pipeline).unless == {"skip_guidance_layers"}
    assert guidance_of(diffusers.PixArtAlphaPipeline).unless == set()
    # These use the variance beside the prediction, or channels of it.
    assert guidance_of(diffusers.IFPipeline).unless is None
    assert guidance_of(diffusers.DiTPipeline).unless is None


@pytest.mark.parametrize(
    ("own", "why"),
    [
        (({"guidance_scale": 1.0}, {"guidance_scale": 5.0}), "no guidance"),
        (
            ({"guidance_scale": 2.0, "guidance_rescale": 0.5}, {"guidance_scale": 5.0, "guidance_rescale": 0.5}),
            "rescale",
        ),
    ],
)
def test_guidance_that_cannot_be_shared_is_refused(model: DiffusionModel, own: Any, why: str) -> None:
    with pytest.raises(RowsError, match=why):
        with model.trace() as tracer:
            for options in own:
                with tracer.invoke("a cat", **options):
                    pass


def _sized(kind: str) -> dict[str, Any]:
    return {name: value for name, value in checkpoints.CALLS[kind].items() if name != "prompt"}


def plain_parameters(kind: type) -> Any:
    from nnsight_diffusers.inputs import parameters

    return parameters(kind)
