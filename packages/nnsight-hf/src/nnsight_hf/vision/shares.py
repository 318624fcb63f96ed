"""Which of a batch's images belong to which invoke, and how several inputs with images become one batch.

Processors lay images in two ways. Most put all images of a batch one after another; some (Idefics, Mllama) give each row as
many places as the row with most images needs. Here it is counted how much there is of whose images. How that lies in the
values of the modules that see images is `sights.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from nnsight.plugin import Rows

#: What a processor makes of images and videos, with an entry for each image, patch or crop, and not for each token.
NAMES = (
    "pixel_values",
    "pixel_values_images",
    "image_patches",
    "high_res_pixel_values",
    "pixel_mask",
    "image_grid_thw",
    "image_merge_sizes",
    "image_sizes",
    "batch_num_images",
    "pixel_attention_mask",
    "pixel_position_ids",
    "image_position_ids",
    "num_crops",
    "spatial_shapes",
    "aspect_ratio_ids",
    "aspect_ratio_mask",
    "pixel_values_videos",
    "video_grid_thw",
    "video_merge_sizes",
    "image_sizes_videos",
    "second_per_grid_ts",
)

#: What else has a row for each prompt and is of a length of its own: what the words say to a Q-Former.
BESIDE = ("qformer_input_ids", "qformer_attention_mask")

#: All that has an entry for something else than a token; not every input of a batch has it.
APART = (*NAMES, *BESIDE)

#: What holds pixels, and what says how many patches each image or video has, where they are packed.
_MEDIA = (
    (("pixel_values", "pixel_values_images", "image_patches"), "image_grid_thw"),
    (("pixel_values_videos",), "video_grid_thw"),
)

#: What says of which extent each image is; where these differ, a model may cut images into parts of its own.
_EXTENTS = ("image_sizes", "spatial_shapes", "num_crops", "batch_num_images")

#: The attribute of a batch's pixels that says whose they are.
_SHARES = "_nnsight_shares"


def has_pixels(data: Mapping[str, Any]) -> bool:
    """Say whether an input has images or videos."""
    return any(data.get(name) is not None for names, _ in _MEDIA for name in names)


def by_row(data: Mapping[str, Any]) -> bool:
    """Say whether an input's pixels are [rows, images, ...]."""
    pixels = data.get("pixel_values")
    # What has five dimensions beside `image_sizes` is [images, crops, colours, height, width].
    return isinstance(pixels, torch.Tensor) and pixels.dim() >= 5 and "image_sizes" not in data


def join(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Put together what several inputs have beside their tokens, filled up with zeros where their shapes differ."""
    places = any(by_row(row) for row in rows)
    batch: dict[str, Any] = {}
    for name in APART:
        held = [row[name] for row in rows if row.get(name) is not None]
        if not held:
            continue
        if not all(isinstance(value, torch.Tensor) for value in held):
            batch[name] = [entry for value in held for entry in value]
            continue
        if places and name not in BESIDE:
            # A row without images has places too, and nothing in them.
            held = [
                row[name]
                if row.get(name) is not None
                else held[0].new_zeros((row["attention_mask"].shape[0], *held[0].shape[1:]))
                for row in rows
            ]
        batch[name] = torch.cat(widened(held, 1))
    return batch


def widened(values: Sequence[torch.Tensor], begin: int) -> list[torch.Tensor]:
    """Fill tensors up with zeros, at the end, to one size in every dimension from `begin` on."""
    sizes = [max(sizes) for sizes in zip(*(value.shape[begin:] for value in values))]
    return [filled(value, sizes, begin) for value in values]


def filled(value: torch.Tensor, sizes: Sequence[int], begin: int) -> torch.Tensor:
    """Fill a tensor up with zeros, at the end, to these sizes from dimension `begin` on."""
    missing = [size - have for size, have in zip(sizes, value.shape[begin:])]
    widths = [width for more in reversed(missing) for width in (0, more)]
    return torch.nn.functional.pad(value, widths) if any(missing) else value


def like(one: Mapping[str, Any], batch: Mapping[str, Any]) -> dict[str, Any]:
    """Return an input with its pixels filled up to the shapes that they have in a batch."""
    made = dict(one)
    for name in NAMES:
        value, whole = one.get(name), batch.get(name)
        if isinstance(value, torch.Tensor) and isinstance(whole, torch.Tensor):
            made[name] = filled(value, whole.shape[1:], 1)
    wide = batch.get("cross_attention_mask")
    if "cross_attention_mask" in one and wide is not None:
        made["cross_attention_mask"] = filled(one["cross_attention_mask"], wide.shape[2:], 2)
    return made


@dataclass(frozen=True)
class Shares:
    """How much of a batch's images each input has.

    Attributes:
        inputs: the inputs, as they were prepared.
        rows: the number of rows of each.
        amounts: how much each input has: of images and of videos, counted in patches where these are packed, and of places
            for images in its text.
        alike: whether what there is of an image, anywhere in a model, grows with that. Not so for images of different
            extents that a model cuts into parts of its own: how many it makes of them is measured.
    """

    inputs: tuple[Mapping[str, Any], ...]
    rows: tuple[int, ...]
    amounts: tuple[tuple[int, ...], ...]
    alike: bool

    @property
    def first(self) -> int:
        """The number of the first input with images."""
        return next(number for number, data in enumerate(self.inputs) if has_pixels(data))

    @property
    def units(self) -> tuple[int, ...]:
        """How much the first input with images has."""
        return tuple(of[self.first] for of in self.amounts)

    @property
    def even(self) -> bool:
        """Whether every row has as much of images as every other: then images lie as rows do."""
        shared = (zip(of, self.rows) for of in self.amounts[: len(_MEDIA)])
        return self.alike and all(len({amount / rows for amount, rows in pairs}) == 1 for pairs in shared)

    def number(self, rows: Rows) -> int | None:
        """Return which input has these rows."""
        at = 0
        for number, count in enumerate(self.rows):
            if (at, count) == rows:
                return number
            at += count
        return None

    def extents(self, number: int) -> tuple[Any, ...]:
        """Return what tells an input's images from others of different extents."""
        data = self.inputs[number]
        shapes = tuple((name, tuple(data[name].shape)) for name in NAMES if isinstance(data.get(name), torch.Tensor))
        return shapes, tuple(tuple(data[name].flatten().tolist()) for name in _EXTENTS if name in data)


def count(inputs: Sequence[tuple[Mapping[str, Any], int]], place: int | None) -> Shares:
    """Count the images of several inputs, each given with its number of rows.

    Args:
        inputs: the inputs.
        place: the token that holds a place for a part of an image; None if there is none.
    """
    media = (tuple(_amount(data, *names) for data, _ in inputs) for names in _MEDIA)
    amounts = (*media, tuple(_places(data, place) for data, _ in inputs))
    # Patches are packed where there is a grid, and everything grows with them.
    free = [data for data, _ in inputs if has_pixels(data) and "image_grid_thw" not in data]
    kinds = {name: {extent for data in free for extent in _entries(data, name)} for name in _EXTENTS}
    alike = all(len(extents) < 2 for extents in kinds.values())
    return Shares(tuple(data for data, _ in inputs), tuple(rows for _, rows in inputs), amounts, alike)


def _places(data: Mapping[str, Any], place: int | None) -> int:
    ids = data.get("input_ids")
    return 0 if ids is None or place is None else int((ids == place).sum())


def _amount(data: Mapping[str, Any], names: Sequence[str], grid: str) -> int:
    value = next((data[name] for name in names if data.get(name) is not None), None)
    if value is None:
        return 0
    if data.get(grid) is not None:
        return int(data[grid].prod(-1).sum())
    if by_row(data):
        return int((value != 0).flatten(2).any(-1).sum())
    return len(value)


def _entries(data: Mapping[str, Any], name: str) -> list[tuple[int, ...]]:
    value = data.get(name)
    return [] if value is None else [tuple(entry) for entry in value.reshape(len(value), -1).tolist()]


def note(batch: Mapping[str, Any], shares: Shares) -> None:
    """Note on a batch's pixels whose they are."""
    for name in (name for names, _ in _MEDIA for name in names):
        if isinstance(batch.get(name), torch.Tensor):
            setattr(batch[name], _SHARES, shares)


def noted(batch: Mapping[str, Any]) -> Shares | None:
    """Return whose the pixels of a batch are; None for one without any."""
    found = (getattr(batch.get(name), _SHARES, None) for names, _ in _MEDIA for name in names)
    return next((shares for shares in found if shares is not None), None)
