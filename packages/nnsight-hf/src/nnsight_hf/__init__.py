"""Hugging Face models for nnsight.

from nnsight import LanguageModel

model = LanguageModel("openai-community/gpt2")
with model.trace("The Eiffel Tower is in the city of"):
    hidden = model.transformer.h[5].output
"""

from __future__ import annotations

from nnsight_hf._version import __version__
from nnsight_hf.language import LanguageModel

__all__ = ["LanguageModel", "__version__"]
