"""What the demo lets the model draw."""

from __future__ import annotations

from typing import Any

from nnsight import DiffusionModel

CIRCLE = "a red circle on the left"
SQUARE = "a blue square on the right"
TRIANGLE = "a yellow triangle at the top"

#: How all images here are made.
SETTINGS: dict[str, Any] = {"num_inference_steps": 15, "guidance_scale": 3.0, "seed": 7}


def tokens(model: DiffusionModel, prompt: str) -> list[str]:
    """Return a prompt's tokens as the text encoder gets them, up to the end of the text."""
    tokenizer = model.pipeline.tokenizer
    found = tokenizer.convert_ids_to_tokens(tokenizer(prompt).input_ids)
    return ["(start)", *(token.removesuffix("</w>") for token in found[1:-1]), "(end)"]
