"""Diffusion pipelines for nnsight: look inside models while they make images.

Example::

    from nnsight import DiffusionModel

    model = DiffusionModel("stabilityai/stable-diffusion-2-1")
    with model.generate("a cat", num_inference_steps=20, seed=7) as tracer:
        for step in tracer.iter[:]:
            noise = model.unet.output[0]
        images = tracer.result.images

Nothing is imported before it is asked for: to know what this plugin offers, the core imports this package.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from nnsight_diffusers._version import __version__

if TYPE_CHECKING:
    from nnsight_diffusers.model import DiffusionModel

__all__ = ["DiffusionModel", "__version__"]

_PLACES = {"DiffusionModel": "nnsight_diffusers.model"}


def __getattr__(name: str) -> Any:
    if name in _PLACES:
        return getattr(importlib.import_module(_PLACES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
