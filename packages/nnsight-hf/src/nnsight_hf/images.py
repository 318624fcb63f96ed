"""Images as users have them: PIL images, paths and arrays, one or several for a prompt, or in the messages of a conversation.

Whose they are in a batch is `vision/shares.py`; what a processor makes of them is asked for in `vision/model.py`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from PIL import Image


def opened(image: Any) -> Any:
    """Return an image as processors take it: a PIL image, or an array or tensor as it is.

    Raises:
        FileNotFoundError: there is no file at this path.
        TypeError: it is neither an image, nor a path, nor an array.
    """
    if isinstance(image, (str, os.PathLike)):
        if not os.path.exists(image):
            raise FileNotFoundError(
                f"there is no image file {os.fspath(image)!r}: an image is a PIL image, a path on this machine (what lies "
                "behind an address is to be fetched first), or an array [height, width, colour]"
            )
        with Image.open(image) as file:
            return file.convert("RGB")
    if isinstance(image, Image.Image):
        return image.convert("RGB")
    if isinstance(image, torch.Tensor) or hasattr(image, "__array__"):
        return image
    raise TypeError(f"an image is a PIL image, a path, or an array [height, width, colour], not {type(image).__name__}")


def is_image(value: Any) -> bool:
    """Say whether a value may be one image; a string may be its path."""
    if isinstance(value, (str, os.PathLike, Image.Image)):
        return True
    return hasattr(value, "__array__") and getattr(value, "ndim", 0) in (2, 3)


def nested(images: Any, rows: int) -> list[list[Any]]:
    """Return the images of each prompt.

    Args:
        images: one image, a list of them, or a list of lists, one for each prompt.
        rows: the number of prompts.

    Raises:
        ValueError: the images cannot be told apart by prompt, or an array has no shape of an image.
    """
    given = list(images) if isinstance(images, (list, tuple)) else [images]
    if any(isinstance(image, (list, tuple)) for image in given):
        made = [[_shaped(image) for image in (row if isinstance(row, (list, tuple)) else [row])] for row in given]
    elif rows == 1:
        made = [[_shaped(image) for image in given]]
    else:
        made = [[_shaped(image)] for image in given]
    if len(made) != rows:
        raise ValueError(
            f"there are {rows} prompts and images for {len(made)}: give a list of lists, one list of images for each prompt "
            "(`[]` for a prompt without one)"
        )
    return made


def _shaped(image: Any) -> Any:
    """Return an image as processors take it, if it has the shape of one."""
    made = opened(image)
    shape = None if isinstance(made, Image.Image) else tuple(made.shape)
    if shape is not None and not (len(shape) == 3 and 3 in (shape[0], shape[2]) and all(shape)):
        raise ValueError(
            f"an image given as an array is [height, width, 3] or [3, height, width], not of shape {shape}: for several, "
            "give a list; a grey one has its values three times"
        )
    return made


def in_messages(conversations: Sequence[Any]) -> list[list[Any]]:
    """Return the images that stand in each conversation (`{"type": "image", "image": ...}`), in their order.

    Raises:
        ValueError: a message has a place for an image, and no image.
    """
    rows = [conversations] if isinstance(conversations[0], Mapping) else conversations
    found: list[list[Any]] = []
    for messages in rows:
        contents = [message.get("content") for message in messages]
        parts = [part for content in contents if isinstance(content, (list, tuple)) for part in content]
        places = [part for part in parts if part.get("type") == "image"]
        held = [part.get("image", part.get("path")) for part in places]
        if any(image is None for image in held):
            raise ValueError(
                "a message has a place for an image and no image: write `{'type': 'image', 'image': ...}` with a picture, "
                "a path or an array, or give all of them as `images=`"
            )
        found.append(held)
    return found
