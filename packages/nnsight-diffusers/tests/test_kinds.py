"""Other pipelines of the same parts, other schedulers: several invokes get what each gets alone, or are refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import checkpoints
import diffusers
import numpy
import plain
import pytest
import torch
from PIL import Image

import nnsight
from nnsight import DiffusionModel, RowsError
from nnsight.testing.reference import assert_alike

ROUNDING = 5e-4
SIDE = checkpoints.SIDE
SIZED = {"height": SIDE, "width": SIDE}
LONG = {"max_sequence_length": checkpoints.LENGTH}
PROMPTS: tuple[dict[str, Any], ...] = ({"prompt": "a cat"}, {"prompt": "a red bird"})


def picture(seed: int, mode: str = "RGB") -> Image.Image:
    numbers = numpy.random.default_rng(seed).integers(0, 255, (SIDE, SIDE, 3), dtype=numpy.uint8)
    return Image.fromarray(numbers).convert(mode)


PICTURES = tuple({**prompt, "image": picture(at)} for at, prompt in enumerate(PROMPTS))
NEGATIVE = tuple({**prompt, "negative_prompt": "a dog"} for prompt in PROMPTS)
MASKED = tuple({**given, "mask_image": picture(at + 5, "L")} for at, given in enumerate(PICTURES))


def made(name: str, kind: str, **parts: Any) -> Any:
    components = {**plain.pipeline(kind).components, **parts}
    if name.startswith("StableDiffusion") and kind == "stable-diffusion":
        components.setdefault("requires_safety_checker", False)
    pipeline = getattr(diffusers, name)(**components)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def animated() -> Any:
    parts = plain.pipeline("stable-diffusion").components
    config = parts["unet"].config
    adapter = diffusers.MotionAdapter(
        block_out_channels=config.block_out_channels,
        motion_layers_per_block=config.layers_per_block,
        motion_norm_num_groups=config.norm_num_groups,
        motion_num_attention_heads=2,
    )
    pipeline = diffusers.AnimateDiffPipeline(
        **{name: part for name, part in parts.items() if name != "safety_checker"},
        motion_adapter=checkpoints.seeded(adapter),
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def ltx() -> Any:
    encoder, tokenizer = checkpoints.t5()
    decoder = diffusers.AutoencoderKLLTXVideo(
        latent_channels=8,
        block_out_channels=(8,) * 4,
        decoder_block_out_channels=(8,) * 4,
        layers_per_block=(1,) * 5,
        decoder_layers_per_block=(1,) * 5,
        spatio_temporal_scaling=(True, True, False, False),
        decoder_spatio_temporal_scaling=(True, True, False, False),
        decoder_inject_noise=(False,) * 5,
        upsample_residual=(False,) * 4,
        upsample_factor=(1,) * 4,
        patch_size=1,
    )
    transformer = diffusers.LTXVideoTransformer3DModel(
        in_channels=8,
        out_channels=8,
        num_attention_heads=4,
        attention_head_dim=8,
        cross_attention_dim=32,
        num_layers=1,
        caption_channels=32,
    )
    return _pipeline("LTXPipeline", transformer=transformer, vae=decoder, text_encoder=encoder, tokenizer=tokenizer)


def wan(**second: Any) -> Any:
    encoder, tokenizer = checkpoints.t5()
    decoder = diffusers.AutoencoderKLWan(base_dim=3, num_res_blocks=1, dim_mult=[1, 1, 1, 1])
    return _pipeline(
        "WanPipeline", transformer=wan_transformer(), vae=decoder, text_encoder=encoder, tokenizer=tokenizer, **second
    )


def wan_transformer(**own: Any) -> Any:
    return diffusers.WanTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        text_dim=32,
        freq_dim=16,
        ffn_dim=32,
        num_layers=2,
        rope_max_seq_len=32,
        **own,
    )


def _pipeline(name: str, **parts: Any) -> Any:
    for part, module in parts.items():
        if isinstance(module, diffusers.ModelMixin):
            checkpoints.seeded(module, seed=len(part))
    pipeline = getattr(diffusers, name)(scheduler=diffusers.FlowMatchEulerDiscreteScheduler(), **parts)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def scheduled(name: str) -> Callable[[], Any]:
    def make() -> Any:
        pipeline = made("StableDiffusionPipeline", "stable-diffusion")
        pipeline.scheduler = getattr(diffusers, name).from_config(pipeline.scheduler.config)
        return pipeline

    return make


CASES: dict[str, tuple[Callable[[], Any], tuple[dict[str, Any], ...], dict[str, Any]]] = {
    "sdxl, an image": (lambda: made("StableDiffusionXLImg2ImgPipeline", "sdxl"), PICTURES, {}),
    "sdxl, a mask": (lambda: made("StableDiffusionXLInpaintPipeline", "sdxl"), MASKED, SIZED),
    "sd3, an image": (lambda: made("StableDiffusion3Img2ImgPipeline", "sd3"), PICTURES, LONG),
    "flux, an image": (lambda: made("FluxImg2ImgPipeline", "flux"), PICTURES, {**SIZED, **LONG}),
    "flux, a mask": (lambda: made("FluxInpaintPipeline", "flux"), MASKED, {**SIZED, **LONG}),
    "three parts": (
        lambda: made(
            "StableDiffusionInstructPix2PixPipeline",
            "stable-diffusion",
            unet=checkpoints.seeded(checkpoints.unet(in_channels=8)),
        ),
        PICTURES,
        {},
    ),
    "frames": (animated, PROMPTS, {**SIZED, "num_frames": 3}),
    "a video, both halves in a call": (ltx, NEGATIVE, {"height": 32, "width": 32, "num_frames": 9, **LONG}),
    "a video, a call for each half": (wan, NEGATIVE, {**SIZED, "num_frames": 5, **LONG}),
    "noise in each step": (scheduled("EulerAncestralDiscreteScheduler"), PROMPTS, {}),
    "two calls a step": (scheduled("HeunDiscreteScheduler"), PROMPTS, {}),
    "memory of earlier steps": (scheduled("UniPCMultistepScheduler"), PROMPTS, {}),
}


@pytest.mark.parametrize("name", list(CASES))
def test_each_invoke_gets_what_it_gets_alone(name: str) -> None:
    make, invokes, options = CASES[name]
    pipeline = make()
    model = DiffusionModel(pipeline)
    denoiser = model.get(model._module.denoisers()[0])
    options = {"num_inference_steps": 4, "output_type": "np", **options}
    alone = []
    for seed, given in enumerate(invokes):
        seen: list[torch.Tensor] = []
        handle = denoiser._module.register_forward_hook(
            lambda module, args, output, seen=seen: seen.append(output[0].clone())
        )
        result = pipeline(**given, **options, generator=torch.Generator().manual_seed(seed))
        handle.remove()
        alone.append((seen, result))
    with model.generate(**options) as tracer:
        got = nnsight.save([])
        for seed, given in enumerate(invokes):
            with tracer.invoke(**given, seed=seed):
                got.append(([denoiser.output[0] for _ in tracer.iter[:]], tracer.result))
    for (seen, result), (seen_alone, result_alone) in zip(got, alone):
        assert_alike(seen, seen_alone, ROUNDING)
        (name_of_images,) = [key for key in result_alone if result_alone[key] is not None][:1]
        numpy.testing.assert_allclose(result[name_of_images], result_alone[name_of_images], atol=ROUNDING)


def test_two_denoisers_take_turns_in_the_steps_of_one_run() -> None:
    model = DiffusionModel(wan(transformer_2=wan_transformer(), boundary_ratio=0.5))
    options = {**SIZED, "num_frames": 5, **LONG, "num_inference_steps": 4, "output_type": "np"}
    with model.generate("a cat", seed=1, **options) as tracer:
        seen = []
        for _ in tracer.iter[:]:
            early = float(model.timestep.output) >= 500
            denoiser = model.transformer if early else model.transformer_2
            seen.append((early, model.half, denoiser.output[0]))
    calls: list[tuple[bool, torch.Tensor]] = []
    handles = [
        module.register_forward_hook(lambda module, args, output, early=early: calls.append((early, output[0])))
        for early, module in ((True, model.pipeline.transformer), (False, model.pipeline.transformer_2))
    ]
    model.pipeline("a cat", generator=torch.Generator().manual_seed(1), **options)
    for handle in handles:
        handle.remove()
    assert [half for _, half, _ in seen] == ["conditional", "unconditional"] * 4
    assert [early for early, _, _ in seen] == [early for early, _ in calls]
    assert {early for early, _ in calls} == {True, False}
    assert_alike([value for _, _, value in seen], [value for _, value in calls], ROUNDING)


@pytest.mark.parametrize("name", ["StableDiffusionPAGPipeline", "StableDiffusionSAGPipeline"])
def test_pipelines_that_look_from_one_part_of_a_batch_to_another_are_refused(name: str) -> None:
    parts = {"pag_applied_layers": ["mid"]} if "PAG" in name else {}
    pipeline = made(name, "stable-diffusion", **parts)
    model = DiffusionModel(pipeline)
    before = [type(one) for one in pipeline.unet.attn_processors.values()]
    with pytest.raises(RowsError, match="part by part"):
        with model.generate(num_inference_steps=2) as tracer:
            for given in PROMPTS:
                with tracer.invoke(**given):
                    pass
    assert [type(one) for one in pipeline.unet.attn_processors.values()] == before
    alone = pipeline("a cat", num_inference_steps=2, generator=torch.Generator().manual_seed(1), output_type="np")
    images = model.generate("a cat", num_inference_steps=2, seed=1, output_type="np").images
    numpy.testing.assert_allclose(images, alone.images, atol=ROUNDING)


def test_a_module_whose_rows_see_one_another_is_refused() -> None:
    class Halves:
        """Attention in which the second half of a batch attends to what the first half does."""

        def __init__(self) -> None:
            self.plain = diffusers.models.attention_processor.AttnProcessor()

        def __call__(self, attention: Any, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
            first, _ = self.plain(attention, hidden_states, *args, **kwargs).chunk(2)
            return torch.cat([first, first])

    model = DiffusionModel(checkpoints.folder("stable-diffusion"), dispatch=True)
    model.pipeline.unet.set_attn_processor(Halves())
    with pytest.raises(RowsError, match="see one another"):
        with model.trace() as tracer:
            for given in PROMPTS:
                with tracer.invoke(**given):
                    pass


def test_a_pipeline_that_mixes_up_several_prompts_itself_is_refused() -> None:
    model = DiffusionModel(made("StableDiffusionPanoramaPipeline", "stable-diffusion"))
    with pytest.raises(RowsError, match="mixes up"):
        with model.trace() as tracer:
            for given in PROMPTS:
                with tracer.invoke(**given):
                    pass
