"""What families that read images need, and what they cannot do in a batch; each refusal says what to do instead.

What stands in the lists is measured by the tests (`test_seers.py`), family by family.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from nnsight import RowsError
from nnsight_hf.vision import shares

#: Model types whose prompts have one image each, put before the text whatever the text says.
ONE_EACH = frozenset({"blip-2", "git", "instructblip", "kosmos-2"})

#: Those of them that read no text alone.
NEEDS = ONE_EACH - {"git"}


def kind(module: torch.nn.Module) -> str:
    """Return a model's type."""
    return getattr(getattr(module, "config", None), "model_type", "")


def needs(module: torch.nn.Module) -> bool:
    """Say whether a model reads no text without an image."""
    return kind(module) in NEEDS


def mixes(module: torch.nn.Module) -> bool:
    """Say whether text alone may stand beside images, as far as shapes go."""
    return kind(module) not in ONE_EACH


def check(module: torch.nn.Module, data: Mapping[str, Any]) -> None:
    """Raise unless an input has the images that a model needs.

    Raises:
        ValueError: it has none, or not one for each prompt.
    """
    if kind(module) not in ONE_EACH:
        return
    rows = data["attention_mask"].shape[0]
    pixels = data.get("pixel_values")
    if pixels is None and (not needs(module) or "image_embeds" in data):
        return
    if pixels is None or len(pixels) != rows:
        raise ValueError(
            f"{type(module).__name__} takes one image for each prompt, and there are {0 if pixels is None else len(pixels)} "
            f"for {rows}: give each prompt its one image with `images=`"
        )


def refuse_together(module: torch.nn.Module, inputs: Sequence[Mapping[str, Any]]) -> None:
    """Raise if inputs cannot share a run because of their images.

    Raises:
        RowsError: they would not get what they get alone.
    """
    seeing = [shares.has_pixels(data) for data in inputs]
    if not any(seeing):
        return
    name = type(module).__name__
    if kind(module) in ONE_EACH and not all(seeing):
        raise RowsError(
            f"{name} puts an image before the text of every row, so a prompt without one cannot share a run with one that "
            "has. Trace the prompts with images and those without in runs of their own."
        )
    if kind(module) == "mllama" and _differ(inputs) and not all(map(_sees_throughout, inputs)):
        raise RowsError(
            f"The inputs have different numbers of images, and in {name} a token that comes before any image of its row "
            "looks at all places for images alike, those left empty too: it would not get what it gets alone. Trace inputs "
            "with one number of images together, or write the images before all text."
        )


def _differ(inputs: Sequence[Mapping[str, Any]]) -> bool:
    places = {data["pixel_values"].shape[1] if shares.has_pixels(data) else 0 for data in inputs}
    return len(places) > 1


def _sees_throughout(data: Mapping[str, Any]) -> bool:
    """Say whether every token of an input looks at some image."""
    looks = data.get("cross_attention_mask")
    return looks is not None and bool((looks.flatten(2).any(-1) | (data["attention_mask"] == 0)).all())
