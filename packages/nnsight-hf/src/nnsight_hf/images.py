"""Images as users have them, and which of a batch's images belong to which invoke.

A batch holds the images of all its rows one after another, and a vision tower sees images, or patches of images, where a
decoder sees rows. How the tower's values grow with the images is found out as it is for rows (`rows.py`); here it is
counted which of them are whose.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image

from nnsight.plugin import Rows

#: What a processor makes of images, with one entry for each image, patch or crop, and not for each row.
NAMES = (
    "pixel_values",
    "image_grid_thw",
    "image_sizes",
    "pixel_attention_mask",
    "pixel_position_ids",
    "image_position_ids",
    "num_crops",
    "spatial_shapes",
)

#: The attribute of a batch's `pixel_values` that says whose they are.
SHARES = "_nnsight_shares"


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
        ValueError: the images cannot be told apart by prompt.
    """
    given = list(images) if isinstance(images, (list, tuple)) else [images]
    if any(isinstance(image, (list, tuple)) for image in given):
        made = [[opened(image) for image in row] if isinstance(row, (list, tuple)) else [opened(row)] for row in given]
    elif rows == 1:
        made = [[opened(image) for image in given]]
    else:
        made = [[opened(image)] for image in given]
    if len(made) != rows:
        raise ValueError(
            f"there are {rows} prompts and images for {len(made)}: give a list of lists, one list of images for each prompt "
            "(`[]` for a prompt without one)"
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


@dataclass(frozen=True)
class Shares:
    """How many images the inputs of a batch have, in their order.

    Attributes:
        rows: the number of rows of each input.
        sizes: for each input, how much there is of each of its images: its patches, or 1.
        alike: whether what there is of an image grows with that. Not so for images of different extents that a model
            cuts into crops of its own: those cannot be told apart.
    """

    rows: tuple[int, ...]
    sizes: tuple[tuple[int, ...], ...]
    alike: bool

    @property
    def total(self) -> int:
        """How much there is of all images together."""
        return sum(map(sum, self.sizes))

    def part(self, rows: Rows, size: int) -> tuple[int, int] | None:
        """Return where the images of one input lie among `size` entries, and how many entries they have."""
        if not self.alike or not self.total:
            return None
        start = at = 0
        for count, sizes in zip(self.rows, self.sizes):
            length = sum(sizes)
            if (at, count) == rows:
                begin, end = start * size, (start + length) * size
                # Not whole: a value that counts something else.
                whole = begin % self.total == 0 and end % self.total == 0
                return (begin // self.total, (end - begin) // self.total) if whole else None
            at, start = at + count, start + length
        return None


def count(prepared: Sequence[tuple[Mapping[str, Any], int]]) -> Shares:
    """Count the images of several inputs, each given with its number of rows."""
    rows, sizes, shapes = [], [], set()
    for data, number in prepared:
        rows.append(number)
        grid, pixels, extents = data.get("image_grid_thw"), data.get("pixel_values"), data.get("image_sizes")
        if grid is not None:
            sizes.append(tuple(int(extent) for extent in grid.prod(-1)))
        else:
            sizes.append((1,) * (0 if pixels is None else int(pixels.shape[0])))
            shapes |= set() if extents is None else {tuple(map(int, extent)) for extent in extents}
    return Shares(tuple(rows), tuple(sizes), len(shapes) < 2)


def first(data: Mapping[str, Any], shares: Shares) -> dict[str, Any]:
    """Return the first input of a batch that has an image, by itself, with all of its padding."""
    number = next(number for number, sizes in enumerate(shares.sizes) if sizes)
    row, rows = sum(shares.rows[:number]), shares.rows[number]
    taken: dict[str, Any] = {}
    for name, value in data.items():
        # Tensors only: what else there is are options, of a generation perhaps.
        if name not in NAMES and isinstance(value, torch.Tensor):
            taken[name] = value[row : row + rows] if value.dim() and value.shape[0] == sum(shares.rows) else value
    for name in NAMES:
        if name in data:
            weights = shares.sizes if name == "pixel_values" else tuple((1,) * len(sizes) for sizes in shares.sizes)
            counts = [sum(sizes) for sizes in weights]
            start = sum(counts[:number])
            taken[name] = data[name][start : start + counts[number]]
    return taken
