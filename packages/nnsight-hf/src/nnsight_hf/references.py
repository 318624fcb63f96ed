"""What of a model of transformers is at both ends of a wire, so that its name travels.

Asked of whatever model a block is about, these import nothing.
"""

from __future__ import annotations

from typing import Any

import torch


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
