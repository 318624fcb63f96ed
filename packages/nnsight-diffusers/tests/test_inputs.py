"""What a pipeline takes, alone and with others: prompts, negative ones, embeddings, images, masks, labels, nothing at all."""

from __future__ import annotations

from typing import Any

import checkpoints
import diffusers
import numpy
import plain
import pytest
import torch
from PIL import Image

import nnsight
from nnsight import DiffusionModel, NoInputError, RowsError
from nnsight.testing.reference import assert_alike

ROUNDING = 5e-4
SIDE = checkpoints.SIDE


def of(kind: str, cls: type | None = None) -> Any:
    """The model of a kind; as another pipeline with the same components, if one is named."""
    made = plain.pipeline(kind)
    return made if cls is None else cls(**{**made.components, "requires_safety_checker": False})


def picture(seed: int, mode: str = "RGB") -> Image.Image:
    numbers = numpy.random.default_rng(seed).integers(0, 255, (SIDE, SIDE, 3), dtype=numpy.uint8)
    return Image.fromarray(numbers).convert(mode)


def images_of(pipeline: Any, seed: int, rows: int = 1, **arguments: Any) -> Any:
    generators = [torch.Generator("cpu").manual_seed(seed + at) for at in range(rows)]
    pipeline.set_progress_bar_config(disable=True)
    return pipeline(generator=generators, output_type="np", **arguments).images


def together(model: DiffusionModel, invokes: list[dict[str, Any]], **options: Any) -> list[Any]:
    with model.generate(output_type="np", **options) as tracer:
        got = nnsight.save([])
        for arguments in invokes:
            with tracer.invoke(**arguments):
                got.append(tracer.result.images)
    return list(got)


def check(pipeline: Any, invokes: list[dict[str, Any]], **options: Any) -> list[Any]:
    """Check that a batch gives each invoke what the plain pipeline gives it alone."""
    got = together(DiffusionModel(pipeline), invokes, **options)
    for images, arguments in zip(got, invokes):
        own = dict(arguments)
        rows = len(own["prompt"]) if isinstance(own.get("prompt"), list) else 1
        numpy.testing.assert_allclose(
            images, images_of(pipeline, own.pop("seed"), rows, **own, **options), atol=ROUNDING
        )
    return got


# -- texts -----------------------------------------------------------------------------------------------------------


def test_a_negative_prompt_of_some_invokes() -> None:
    got = check(
        of("stable-diffusion"),
        [
            {"prompt": "a cat", "seed": 1},
            {"prompt": "a cat", "negative_prompt": "a dog", "seed": 1},
            {"prompt": ["a cat", "a house"], "negative_prompt": ["a dog", "the sky"], "seed": 4},
        ],
        num_inference_steps=2,
    )
    assert numpy.abs(got[0] - got[1]).max() > 10 * ROUNDING


def test_a_negative_prompt_that_is_said_to_the_trace_holds_for_all() -> None:
    pipeline = of("stable-diffusion")
    with DiffusionModel(pipeline).generate(negative_prompt="a dog", num_inference_steps=2, output_type="np") as tracer:
        got = nnsight.save([])
        for seed in (1, 2):
            with tracer.invoke("a cat", seed=seed):
                got.append(tracer.result.images)
    for images, seed in zip(got, (1, 2)):
        want = images_of(pipeline, seed, prompt="a cat", negative_prompt="a dog", num_inference_steps=2)
        numpy.testing.assert_allclose(images, want, atol=ROUNDING)


@pytest.mark.parametrize("kind", ["sdxl", "flux"])
def test_where_no_negative_prompt_is_not_an_empty_one_all_or_none_give_it(kind: str) -> None:
    common = {name: value for name, value in checkpoints.CALLS[kind].items() if name != "prompt"}
    with pytest.raises(RowsError, match="negative_prompt"):
        together(
            DiffusionModel(of(kind)), [{"prompt": "a cat", "negative_prompt": "a dog"}, {"prompt": "a cat"}], **common
        )


def test_embeddings_of_prompts() -> None:
    pipeline = of("stable-diffusion")
    cat, nothing = pipeline.encode_prompt("a cat", "cpu", 1, True)
    bird, dog = pipeline.encode_prompt("a bird", "cpu", 1, True, "a dog")
    check(
        pipeline,
        [
            {"prompt_embeds": cat, "negative_prompt_embeds": nothing, "seed": 1},
            {"prompt_embeds": bird, "negative_prompt_embeds": dog, "seed": 2},
        ],
        num_inference_steps=2,
    )


def test_prompts_and_embeddings_do_not_mix() -> None:
    pipeline = of("stable-diffusion")
    cat, _ = pipeline.encode_prompt("a cat", "cpu", 1, True)
    with pytest.raises(RowsError, match="`prompt_embeds` and another does not"):
        together(DiffusionModel(pipeline), [{"prompt_embeds": cat}, {"prompt": "a dog"}])


def test_latents_of_each_invokes_own() -> None:
    pipeline = of("stable-diffusion")
    noise = torch.randn(2, 4, SIDE // 2, SIDE // 2, generator=torch.Generator().manual_seed(0))
    check(
        pipeline,
        [{"prompt": "a cat", "latents": noise[:1], "seed": 1}, {"prompt": "a cat", "latents": noise[1:], "seed": 2}],
        num_inference_steps=2,
    )


def test_an_input_by_position_by_name_and_in_a_dict() -> None:
    model = DiffusionModel(of("stable-diffusion"))
    options = {"seed": 3, "output_type": "pt"}
    images = [
        model.trace("a cat", trace=False, **options).images,
        model.trace(prompt="a cat", trace=False, **options).images,
        model.trace({"prompt": "a cat", **options}, trace=False).images,
    ]
    assert torch.equal(images[0], images[1]) and torch.equal(images[0], images[2])


# -- images ----------------------------------------------------------------------------------------------------------


def test_image_to_image() -> None:
    check(
        of("stable-diffusion", diffusers.StableDiffusionImg2ImgPipeline),
        [
            {"prompt": "a cat", "image": picture(1), "seed": 1},
            {"prompt": "a dog", "image": picture(2), "seed": 2},
        ],
        strength=0.6,
        num_inference_steps=4,
    )


def test_image_to_image_with_one_image_for_all() -> None:
    pipeline = of("stable-diffusion", diffusers.StableDiffusionImg2ImgPipeline)
    check(
        pipeline,
        [{"prompt": "a cat", "seed": 1}, {"prompt": ["a dog", "a bird"], "seed": 2}],
        image=picture(1),
        num_inference_steps=4,
    )


def test_inpainting() -> None:
    mask = Image.new("L", (SIDE, SIDE), 0)
    mask.paste(255, (0, 0, SIDE // 2, SIDE))
    check(
        of("stable-diffusion", diffusers.StableDiffusionInpaintPipeline),
        [
            {"prompt": "a cat", "image": picture(1), "mask_image": mask, "seed": 1},
            {"prompt": "a dog", "image": picture(2), "mask_image": mask.rotate(90), "seed": 2},
        ],
        num_inference_steps=3,
        height=SIDE,
        width=SIDE,
    )


def test_an_image_that_controls_for_each_invoke() -> None:
    got = check(
        of("controlnet"),
        [
            {"prompt": "a cat", "image": picture(1), "seed": 1},
            {"prompt": "a cat", "image": picture(2), "seed": 1},
            {"prompt": ["a cat", "a dog"], "image": [picture(3), picture(4)], "seed": 1},
        ],
        num_inference_steps=2,
    )
    assert numpy.abs(got[0] - got[1]).max() > 10 * ROUNDING


def test_a_control_network_gives_each_invoke_its_own_residuals() -> None:
    pipeline = of("controlnet")
    invokes = [("a cat", picture(1)), ("a dog", picture(2))]
    want = [
        plain.hooked("controlnet", {"prompt": prompt, "image": image, "num_inference_steps": 1}).outputs["controlnet"]
        for prompt, image in invokes
    ]
    model = DiffusionModel(pipeline)
    with model.trace() as tracer:
        got = nnsight.save([])
        for prompt, image in invokes:
            with tracer.invoke(prompt, image=image):
                got.append(model.controlnet.controlnet_cond_embedding.output)
    for mine, image in zip(got, invokes):
        alone = plain.hooked("controlnet", {"prompt": "a", "image": image[1], "num_inference_steps": 1})
        assert_alike(mine, alone.outputs["controlnet.controlnet_cond_embedding"][0], ROUNDING)
    assert len(want) == 2


def test_an_image_of_some_invokes_only_is_refused() -> None:
    model = DiffusionModel(of("stable-diffusion", diffusers.StableDiffusionImg2ImgPipeline))
    with pytest.raises(RowsError, match="image"):
        together(model, [{"prompt": "a cat", "image": picture(1)}, {"prompt": "a dog"}])


# -- other pipelines -------------------------------------------------------------------------------------------------


def test_class_labels() -> None:
    pipeline = of("dit")
    model = DiffusionModel(pipeline)
    with model.generate(num_inference_steps=2, output_type="np", guidance_scale=3.0) as tracer:
        with tracer.invoke([1, 2], seed=1):
            first = nnsight.save(tracer.result.images)
        with tracer.invoke([3], seed=5):
            labels = nnsight.save(model.transformer.transformer_blocks[0].norm1.emb.class_embedder.inputs[0][0])
            second = nnsight.save(tracer.result.images)
    assert labels.tolist() == [3, 1000]
    options = {"num_inference_steps": 2, "guidance_scale": 3.0}
    numpy.testing.assert_allclose(first, images_of(pipeline, 1, 2, class_labels=[1, 2], **options), atol=ROUNDING)
    numpy.testing.assert_allclose(second, images_of(pipeline, 5, class_labels=[3], **options), atol=ROUNDING)


def test_a_pipeline_without_a_prompt_is_told_how_many() -> None:
    pipeline = of("ddpm")
    model = DiffusionModel(pipeline)
    with model.generate(num_inference_steps=3, output_type="np") as tracer:
        with tracer.invoke(batch_size=2, seed=1):
            first = nnsight.save(tracer.result.images)
        with tracer.invoke(batch_size=1, seed=5):
            noise = nnsight.save(model.unet.output)
            second = nnsight.save(tracer.result.images)
    assert noise.sample.shape[0] == 1
    numpy.testing.assert_allclose(first, images_of(pipeline, 1, 2, batch_size=2, num_inference_steps=3), atol=ROUNDING)
    numpy.testing.assert_allclose(second, images_of(pipeline, 5, num_inference_steps=3), atol=ROUNDING)


def test_several_images_of_a_prompt_do_not_depend_on_what_shares_the_call() -> None:
    model = DiffusionModel(of("stable-diffusion"))
    options = {"num_images_per_prompt": 3, "num_inference_steps": 2, "output_type": "np"}
    alone = model.generate("a cat", seed=7, **options).images
    with model.generate(**options) as tracer:
        with tracer.invoke("a dog", seed=1):
            pass
        with tracer.invoke("a cat", seed=7):
            shared = nnsight.save(tracer.result.images)
    assert len(shared) == 3
    numpy.testing.assert_allclose(shared, alone, atol=ROUNDING)


def test_images_are_lists_of_the_invokes_own_pictures() -> None:
    model = DiffusionModel(of("stable-diffusion"))
    with model.trace() as tracer:
        with tracer.invoke(["a cat", "a dog"]):
            first = nnsight.save(tracer.result)
        with tracer.invoke("a bird"):
            second = nnsight.save(tracer.result)
    assert [len(result.images) for result in (first, second)] == [2, 1]
    assert all(isinstance(image, Image.Image) for image in (*first.images, *second.images))
    assert type(first) is type(of("stable-diffusion")("a cat", num_inference_steps=1))


# -- what is refused -------------------------------------------------------------------------------------------------


def test_an_argument_that_the_pipeline_does_not_take_is_named_with_the_nearest() -> None:
    model = DiffusionModel(of("stable-diffusion"))
    with pytest.raises(TypeError, match="num_inference_step`: did you mean `num_inference_steps`"):
        model.generate("a cat", num_inference_step=3)
    with pytest.raises(TypeError, match="guidance`: did you mean"):
        with model.trace(guidance=3) as tracer:
            with tracer.invoke("a cat"):
                pass


def test_options_that_differ_between_invokes_are_refused() -> None:
    with pytest.raises(RowsError, match=r"`num_inference_steps` differ \(2, 3\)"):
        together(
            DiffusionModel(of("stable-diffusion")),
            [{"prompt": "a cat", "num_inference_steps": 2}, {"prompt": "a dog", "num_inference_steps": 3}],
        )


def test_no_prompts_are_refused() -> None:
    model = DiffusionModel(of("stable-diffusion"))
    with pytest.raises(ValueError, match="`prompt` is empty"):
        model.generate([])
    with pytest.raises(NoInputError):
        model.generate(num_inference_steps=2)


def test_an_argument_given_twice_is_refused() -> None:
    with pytest.raises(TypeError, match="`prompt` twice"):
        DiffusionModel(of("stable-diffusion")).trace("a cat", prompt="a dog", trace=False)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"seed": "seven"}, "whole number"),
        ({"seed": True}, "whole number"),
        ({"seed": 1, "generator": torch.Generator()}, "give one of them"),
    ],
)
def test_what_is_no_seed_is_refused(options: dict[str, Any], match: str) -> None:
    with pytest.raises(TypeError, match=match):
        DiffusionModel(of("stable-diffusion")).generate("a cat", **options)


def test_one_generator_for_several_images_is_refused_in_a_batch() -> None:
    with pytest.raises(RowsError, match="each image needs its own"):
        together(
            DiffusionModel(of("stable-diffusion")),
            [{"prompt": ["a cat", "a dog"], "generator": torch.Generator()}, {"prompt": "a bird"}],
        )
