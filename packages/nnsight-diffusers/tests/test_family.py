"""What every family promises, on a pipeline with a UNet and guidance, and on one with a transformer and none."""

from __future__ import annotations

from typing import Any

import checkpoints
import pytest

from nnsight import DiffusionModel
from nnsight.testing import GeneratingSuite, LoadableSuite
from nnsight_diffusers.loading import Checkpoint


class _Pipelines(GeneratingSuite):
    kind = ""
    options = {"num_inference_steps": 3}
    # A pipeline keeps no graph unless it is asked to; test_gradients.py does.
    differentiable = False
    rounding = 1e-4

    def make_model(self) -> DiffusionModel:
        return DiffusionModel(checkpoints.folder(self.kind))

    def inputs(self) -> list[Any]:
        common = {"output_type": "pt", **checkpoints.CALLS[self.kind]}
        common.pop("prompt", None)
        return [{"prompt": "a cat", "seed": 1, **common}, {"prompt": "a red bird on the mat", "seed": 2, **common}]


class TestStableDiffusion(_Pipelines):
    kind = "stable-diffusion"
    step_path = "unet"


class TestFlux(_Pipelines):
    kind = "flux"
    step_path = "transformer"


@pytest.mark.parametrize("kind", ["stable-diffusion", "flux"])
class TestLoading(LoadableSuite):
    @pytest.fixture(autouse=True)
    def _kind(self, kind: str) -> None:
        self.kind = kind

    def make_source(self) -> Checkpoint:
        return Checkpoint(__import__("diffusers").DiffusionPipeline, str(checkpoints.folder(self.kind)), {})

    def make_model(self) -> DiffusionModel:
        return DiffusionModel(checkpoints.folder(self.kind))

    def inputs(self) -> list[Any]:
        return [{"prompt": "a cat", "seed": 1, "output_type": "pt"}]
