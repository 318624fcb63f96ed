"""Pictures of Pillow, where it is there: what models that see are given, and what those that draw give back.

A picture travels as its pixels. What a file said of it beside them (dates, places, profiles) stays where it is.
"""

from __future__ import annotations

import importlib
import sys
from typing import Any

from ..errors import WireError
from .decoder import Decoder
from .encoder import Encoder
from .kinds import makes

#: Bytes of a pixel; in mode "1", eight pixels of a row share one.
_BYTES = {
    "L": 1,
    "P": 1,
    "LA": 2,
    "I;16": 2,
    "RGB": 3,
    "YCbCr": 3,
    "LAB": 3,
    "HSV": 3,
    "RGBA": 4,
    "CMYK": 4,
    "I": 4,
    "F": 4,
}


def is_picture(thing: Any) -> bool:
    """Say whether a thing is a picture; nothing is imported to find out."""
    module = sys.modules.get("PIL.Image")
    return module is not None and isinstance(thing, module.Image)


def write(encoder: Encoder, picture: Any) -> int:
    """Write the pixels of a picture."""
    if picture.mode not in (*_BYTES, "1"):
        raise encoder.refusal(f"a picture in mode {picture.mode!r} is a rare one", "convert it to 'RGB'")
    palette = None
    if picture.mode == "P":
        kind = "RGBA" if "transparency" in picture.info else "RGB"
        palette = [kind, encoder.buffer(bytes(picture.getpalette(kind)))]
    return encoder.emit("picture", picture.mode, list(picture.size), encoder.buffer(picture.tobytes()), palette)


@makes("picture", safe=True)
def _make(decoder: Decoder, step: list[Any]) -> Any:
    _, mode, size, buffer, palette = step
    data = bytes(decoder.buffer(buffer))
    if not (isinstance(size, list) and len(size) == 2 and all(type(side) is int and side >= 0 for side in size)):
        raise WireError("a picture has no size")
    if mode == "1":
        expected = (size[0] + 7) // 8 * size[1]
    elif isinstance(mode, str) and mode in _BYTES:
        expected = _BYTES[mode] * size[0] * size[1]
    else:
        raise WireError("a picture is not in a mode that is carried")
    if len(data) != expected:
        raise WireError(f"a picture of {size[0]} by {size[1]} in mode {mode} has {len(data)} bytes, and not {expected}")
    try:
        images = importlib.import_module("PIL.Image")
    except ImportError:
        raise WireError("a picture arrived, and Pillow is not installed here: pip install pillow") from None
    made = images.frombytes(mode, tuple(size), data) if data else images.new(mode, tuple(size))
    if palette is not None:
        _put_palette(decoder, made, palette)
    return made


def _put_palette(decoder: Decoder, picture: Any, palette: Any) -> None:
    if not (picture.mode == "P" and isinstance(palette, list) and len(palette) == 2 and palette[0] in ("RGB", "RGBA")):
        raise WireError("a picture has a palette that it cannot have")
    kind, colours = palette[0], bytes(decoder.buffer(palette[1]))
    if len(colours) > 256 * len(kind):
        raise WireError("the palette of a picture has more than 256 colours")
    picture.putpalette(colours, kind)
