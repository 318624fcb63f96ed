"""What a model of vLLM has at both ends of its engine. Imports nothing of vLLM: other models are asked too."""

from __future__ import annotations

from typing import Any


def tokenizer(model: Any) -> Any:
    """Return a model's tokenizer, if it is one that an engine serves and the engine is there."""
    engine = model._root.__dict__.get("_engine")
    return engine.tokenizer if engine is not None and engine.started else model._root.__dict__.get("_tokenizer")
