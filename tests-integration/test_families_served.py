"""The families keep on a server what they promise here: their own suites, with the blocks sent to confined processes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import served_models_here as models
import torch

from nnsight import NNsight
from nnsight.testing import FamilySuite, GeneratingSuite
from nnsight_remote import RemoteBackend

pytest.importorskip("fastapi", reason="the extra [server] of nnsight-remote is not installed")
pytestmark = pytest.mark.timeout(300)  # the first block on a model waits until it is loaded


@pytest.fixture(scope="module")
def there(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    # What the suites take from `nnsight.testing` imports pytest.
    store = tmp_path_factory.mktemp("families") / "store"
    more = ("--allow-import", "pytest", "--limit", "requests_per_minute=10000")
    with models.serving(store, "mlp", "toy", "seeing", "reading", "drawing", more=more) as url:
        yield url


class Served(FamilySuite):
    """A suite whose blocks go to the model that the server calls `name`."""

    name: str

    @pytest.fixture
    def backend(self, there: str) -> RemoteBackend:
        return RemoteBackend(there, model=self.name, quiet=True)

    def make_model(self) -> NNsight:
        return getattr(models, self.name)()


class TestPlain(Served):
    name = "mlp"

    def inputs(self) -> list[Any]:
        generator = torch.Generator().manual_seed(3)
        return [torch.randn(rows, 4, generator=generator) for rows in (2, 1)]


class TestLanguage(Served, GeneratingSuite):
    name = "toy"
    padding = "left"
    rounding = 1e-4
    options = {"max_new_tokens": 3, "min_new_tokens": 3, "do_sample": False}

    def inputs(self) -> list[Any]:
        return ["The Eiffel Tower is in the city of", "The Colosseum is", ["The", "The city of"]]


class TestVision(Served, GeneratingSuite):
    name = "seeing"
    padding = "left"
    rounding = 1e-3
    options = {"max_new_tokens": 3, "min_new_tokens": 3, "do_sample": False}

    def inputs(self) -> list[Any]:
        from pictures import picture

        def asked(seed: int, text: str) -> list[dict[str, Any]]:
            content = [{"type": "image", "image": picture(seed)}, {"type": "text", "text": text}]
            return [{"role": "user", "content": content}]

        return [asked(0, "the cat"), asked(1, "a small dog ran in the old house")]


class TestReading(Served):
    name = "reading"
    padding = "right"
    rounding = 1e-4

    def inputs(self) -> list[Any]:
        import heads

        return heads.given("bert-text")


class TestDrawing(Served, GeneratingSuite):
    name = "drawing"
    rounding = 1e-4
    options = {"num_inference_steps": 3}
    step_path = "unet"
    differentiable = False

    def inputs(self) -> list[Any]:
        return [
            {"prompt": "a cat", "seed": 1, "output_type": "pt"},
            {"prompt": ["a red bird", "the house"], "seed": 2, "output_type": "pt"},
        ]
