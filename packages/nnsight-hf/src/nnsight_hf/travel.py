"""What of a model of transformers is at both ends of a wire, and what comes back from there as what it is.

A tokenizer goes by name, and is the model's own over there. The outputs and the caches of models are data with a few methods,
so results may hold them.
"""

from __future__ import annotations

from typing import Any

import torch
import transformers
from transformers import BatchEncoding
from transformers.cache_utils import Cache
from transformers.utils import ModelOutput

from nnsight import register

for _cls in (ModelOutput, Cache, BatchEncoding):
    register(_cls)
# relies on: caches are made of layers with a class of their own, transformers 4.56 to 5.23
register(transformers.cache_utils.CacheLayerMixin)


def tokenizer(model: Any) -> Any:
    """Return the tokenizer of a model."""
    return _of(model, "tokenizer")


def processor(model: Any) -> Any:
    """Return the processor of a model that takes more than text."""
    return _of(model, "processor")


def config(model: Any) -> Any:
    """Return the configuration of a model."""
    return _of(model, "config")


def generation_config(model: Any) -> Any:
    """Return how a model generates."""
    return _of(model, "generation_config")


def _of(model: Any, name: str) -> Any:
    """Return what the model, or else its module, has under a name; None for what is a part of its tree."""
    found = vars(model).get(name, getattr(model._module, name, None))
    return None if isinstance(found, torch.nn.Module) else found
