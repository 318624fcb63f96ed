"""The model that travels in the package, by its name."""

from __future__ import annotations

import diffusers
import torch

from nnsight import DiffusionModel
from nnsight_diffusers import toy

PROMPT = "a red circle on the left"


def test_it_loads_by_its_name_and_draws_what_the_plain_pipeline_draws() -> None:
    model = DiffusionModel("nnsight/toy-shapes")
    assert model.name_or_path == "nnsight/toy-shapes"
    settings = {"num_inference_steps": 4, "guidance_scale": 3.0, "output_type": "pt"}
    with model.generate(PROMPT, seed=5, **settings) as tracer:
        steps = sum(1 for _ in tracer.iter[:])
        images = tracer.result.images
    plain = diffusers.DiffusionPipeline.from_pretrained(toy.path())
    expected = plain(PROMPT, generator=torch.Generator("cpu").manual_seed(5), **settings).images
    assert steps == 4
    torch.testing.assert_close(images, expected)
