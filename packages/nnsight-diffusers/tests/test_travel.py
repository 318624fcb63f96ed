"""Blocks on a pipeline run elsewhere and give there what they give here: `remote="local"`, a fresh interpreter."""

from __future__ import annotations

import checkpoints
import numpy
from PIL import Image

import nnsight
from nnsight import DiffusionModel

KIND = "stable-diffusion"


def test_a_generation_elsewhere_is_the_same() -> None:
    model = DiffusionModel(checkpoints.folder(KIND))
    got = []
    for where in ({}, {"remote": "local"}):
        with model.generate("a cat", num_inference_steps=2, seed=1, **where) as tracer:
            noise = nnsight.save([])
            for _ in tracer.iter[:]:
                noise.append(model.conditional(model.unet.output[0]))
            times = nnsight.save(model.scheduler.timesteps)
            result = nnsight.save(tracer.result)
        got.append((noise, times, result))
    (noise, times, here), (noise_there, times_there, there) = got
    assert len(noise) == 2 and all(map(lambda a, b: bool((a == b).all()), noise, noise_there))
    assert times.tolist() == times_there.tolist()
    assert type(there) is type(here) and isinstance(there.images[0], Image.Image)
    assert numpy.array_equal(numpy.asarray(here.images[0]), numpy.asarray(there.images[0]))


def test_pictures_and_several_invokes_elsewhere() -> None:
    model = DiffusionModel(checkpoints.folder("controlnet"))
    image = checkpoints.CALLS["controlnet"]["image"]
    got = []
    for where in ({}, {"remote": "local"}):
        with model.trace(**where) as tracer:
            images = nnsight.save([])
            with tracer.invoke("a cat", image=image, seed=1):
                images.append(tracer.result.images)
            with tracer.invoke("a dog", image=image.rotate(90), seed=2):
                images.append(tracer.result.images)
        got.append([numpy.asarray(one) for (one,) in images])
    for here, there in zip(*got):
        assert numpy.array_equal(here, there)


def test_a_call_elsewhere_returns_what_it_returns_here() -> None:
    model = DiffusionModel(checkpoints.folder(KIND))
    options = {"num_inference_steps": 2, "seed": 3, "output_type": "np"}
    here, there = model.generate("a cat", **options), model.generate("a cat", remote="local", **options)
    assert numpy.array_equal(here.images, there.images)
