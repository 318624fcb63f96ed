"""Hugging Face models for nnsight.

Example::

    from nnsight import LanguageModel

    model = LanguageModel("openai-community/gpt2")
    with model.trace("The Eiffel Tower is in the city of"):
        hidden = model.transformer.h[5].output

Nothing is imported before it is asked for: to know what this plugin offers, the core imports this package.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from nnsight_hf._version import __version__

if TYPE_CHECKING:
    from nnsight_hf.language import LanguageModel
    from nnsight_hf.tasks import TransformersModel
    from nnsight_hf.vision import VisionLanguageModel

__all__ = ["LanguageModel", "TransformersModel", "VisionLanguageModel", "__version__"]

_PLACES = {
    "LanguageModel": "nnsight_hf.language",
    "TransformersModel": "nnsight_hf.tasks",
    "VisionLanguageModel": "nnsight_hf.vision",
}


def __getattr__(name: str) -> Any:
    if name in _PLACES:
        return getattr(importlib.import_module(_PLACES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
