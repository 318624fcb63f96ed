"""Several invokes in one call of a pipeline: each sees what a plain pipeline alone shows to hooks, and changes its own."""

from __future__ import annotations

from typing import Any

import checkpoints
import numpy
import plain
import pytest
import torch

import nnsight
from nnsight import DiffusionModel
from nnsight.plugin import leaves
from nnsight.testing.reference import assert_alike

KINDS = [kind for kind in checkpoints.KINDS if kind not in ("dit", "ddpm")]
ROUNDING = 5e-4


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def model(kind: str) -> DiffusionModel:
    return DiffusionModel(plain.pipeline(kind))


def visited(seen: Any, kind: str) -> list[str]:
    """The modules of the denoiser that are called once in each step and give tensors."""
    steps = len(seen.outputs[denoiser(kind)])
    found = [path for path in seen.order if path.startswith(denoiser(kind)) and len(seen.outputs[path]) == steps]
    return [path for path in found if leaves(seen.outputs[path][0])]


def denoiser(kind: str) -> str:
    return "unet" if hasattr(plain.pipeline(kind), "unet") else "transformer"


def given(kind: str, **own: Any) -> dict[str, Any]:
    return {**checkpoints.CALLS[kind], "output_type": "np", **own}


def test_each_invoke_sees_in_every_module_what_it_sees_alone(kind: str, model: DiffusionModel) -> None:
    invokes = [
        ({"prompt": "a red circle", "seed": 3}, 1),
        ({"prompt": ["a cat", "the blue bird on a mat"], "seed": 11}, 2),
        ({"prompt": "a house", "seed": 5}, 1),
    ]
    alone = []
    for own, rows in invokes:
        options = {"prompt": own["prompt"], "num_images_per_prompt": 2, "output_type": "np", "num_inference_steps": 2}
        if rows > 1 and "image" in checkpoints.CALLS[kind]:
            options["image"] = [checkpoints.CALLS[kind]["image"]] * rows
        alone.append(plain.hooked(kind, plain.call(kind, own["seed"], 2 * rows, **options)))
    paths = visited(alone[0], kind)
    assert len(paths) > 10
    with model.generate(**given(kind, prompt=None, num_images_per_prompt=2, num_inference_steps=2)) as tracer:
        got = nnsight.save([])
        for own, _ in invokes:
            with tracer.invoke(**own):
                steps = [{path: model.get(path).output for path in paths} for _ in tracer.iter[:]]
                got.append((steps, tracer.result))
    for (steps, result), seen in zip(got, alone):
        assert len(steps) == 2
        for step, values in enumerate(steps):
            for path in paths:
                assert_alike(values[path], seen.outputs[path][step], ROUNDING)
        numpy.testing.assert_allclose(result.images, seen.result.images, atol=ROUNDING)


def test_an_invoke_changes_its_own_image_and_no_other(kind: str, model: DiffusionModel) -> None:
    name = denoiser(kind)

    def plainly(seed: int, prompt: str, edit: bool) -> Any:
        def halve(output: Any, visit: int) -> Any:
            (first,) = output
            return (first * 0.5,) if visit == 1 else None

        arguments = plain.call(kind, seed, prompt=prompt, output_type="np", num_inference_steps=3)
        return plain.hooked(kind, arguments, {name: halve} if edit else None).result.images

    with model.generate(**given(kind, prompt=None, num_inference_steps=3)) as tracer:
        with tracer.invoke(prompt="a cat", seed=1):
            first = nnsight.save(tracer.result)
        with tracer.invoke(prompt="a dog", seed=2):
            for step in tracer.iter[:]:
                if step == 1:
                    getattr(model, name).output[0][:] *= 0.5
            second = nnsight.save(tracer.result)
        with tracer.invoke(prompt="a bird", seed=3):
            for _ in tracer.iter[1]:
                getattr(model, name).output = (getattr(model, name).output[0] * 0.5,)
            third = nnsight.save(tracer.result)
    numpy.testing.assert_allclose(first.images, plainly(1, "a cat", False), atol=ROUNDING)
    numpy.testing.assert_allclose(second.images, plainly(2, "a dog", True), atol=ROUNDING)
    numpy.testing.assert_allclose(third.images, plainly(3, "a bird", True), atol=ROUNDING)
    assert numpy.abs(second.images - plainly(2, "a dog", False)).max() > 10 * ROUNDING


def test_text_encoders_are_shared_row_by_row(kind: str, model: DiffusionModel) -> None:
    names = [name for name in model._module._modules if name.startswith("text_encoder")]
    for name in names:
        alone = [
            leaves(plain.hooked(kind, plain.call(kind, 0, prompt=prompt, num_inference_steps=2)).outputs[name][0])
            for prompt in ("a cat", "the blue bird")
        ]
        with model.trace(**given(kind, prompt=None)) as tracer:
            got = nnsight.save([])
            for prompt in ("a cat", "the blue bird"):
                with tracer.invoke(prompt):
                    got.append(leaves(getattr(model, name).output))
        for mine, want in zip(got, alone):
            assert_alike(mine, want, ROUNDING)


def test_the_autoencoder_decodes_each_invokes_own_latents(kind: str, model: DiffusionModel) -> None:
    alone = [
        plain.hooked(kind, plain.call(kind, seed, prompt=prompt, num_inference_steps=2)).outputs["vae.decoder"][0]
        for seed, prompt in ((1, "a cat"), (2, "a dog"))
    ]
    with model.generate(**given(kind, prompt=None, num_inference_steps=2)) as tracer:
        with tracer.invoke("a cat", seed=1):
            first = nnsight.save(model.vae.decoder.output)
        with tracer.invoke("a dog", seed=2):
            for _ in tracer.iter[:]:
                pass
            second = nnsight.save(model.vae.decoder.output)
    assert_alike(first, alone[0], ROUNDING)
    assert_alike(second, alone[1], ROUNDING)


def test_a_prompt_less_invoke_sees_all_rows(kind: str, model: DiffusionModel) -> None:
    name = denoiser(kind)
    with model.trace(**given(kind, prompt=None)) as tracer:
        with tracer.invoke("a cat", seed=1):
            first = nnsight.save(getattr(model, name).output[0])
        with tracer.invoke("a dog", seed=2):
            second = nnsight.save(getattr(model, name).output[0])
        with tracer.invoke():
            both = nnsight.save(getattr(model, name).output[0])
            images = nnsight.save(tracer.result.images)
    assert torch.equal(both, torch.cat([first, second]))
    assert len(images) == 2
