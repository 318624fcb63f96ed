"""Pictures of Pillow travel as their pixels, and what claims to be one is not believed."""

from __future__ import annotations

from typing import Any

import pytest

from nnsight import WireError
from nnsight._core.wire import kinds, pictures
from nnsight.plugin import decode_results, encode_results

Image = pytest.importorskip("PIL.Image")


def back(value: Any) -> Any:
    return decode_results(encode_results({"value": value}))["value"]


def drawn(mode: str) -> Any:
    picture = Image.linear_gradient("L").resize((13, 7)).convert("RGB").rotate(90, expand=True)
    return picture.convert(mode)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "HSV", "I", "F", "I;16"])
def test_a_picture_arrives_as_it_was(mode: str) -> None:
    if mode in ("LAB", "I;16"):
        picture = Image.frombytes(mode, (3, 2), bytes(range(6 * (3 if mode == "LAB" else 2))))
    else:
        picture = drawn("L").convert(mode) if mode in ("I", "F", "LA") else drawn(mode)
    arrived = back(picture)
    assert (type(arrived), arrived.mode, arrived.size) == (Image.Image, picture.mode, picture.size)
    assert arrived.tobytes() == picture.tobytes()
    assert mode != "P" or arrived.convert("RGB").tobytes() == picture.convert("RGB").tobytes()


def test_a_transparent_colour_of_a_palette_stays_transparent() -> None:
    picture = drawn("P")
    picture.info["transparency"] = 0
    picture.apply_transparency()
    picture.info["transparency"] = 0
    assert back(picture).convert("RGBA").tobytes() == picture.convert("RGBA").tobytes()


def test_one_picture_that_is_there_twice_is_one_over_there(tmp_path: Any) -> None:
    drawn("RGB").save(tmp_path / "drawn.png")
    with Image.open(tmp_path / "drawn.png") as picture:
        first, second, (third,) = back([picture, picture, (picture,)])
    assert first is second is third
    assert first.tobytes() == drawn("RGB").tobytes()


def test_an_empty_picture() -> None:
    assert back(Image.new("RGB", (0, 3))).size == (0, 3)


class _Said:
    """A decoder that has one buffer."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def buffer(self, number: Any) -> memoryview:
        return memoryview(self._data)


@pytest.mark.parametrize(
    "step",
    [
        ["picture", "RGB", [1 << 20, 1 << 20], 0, None],
        ["picture", "RGB", [-1, -12], 0, None],
        ["picture", "RGB", [2, 3], 0, None],
        ["picture", "RGB", "ab", 0, None],
        ["picture", "RGB", [True, 4], 0, None],
        ["picture", "nonsense", [2, 2], 0, None],
        ["picture", ["RGB"], [2, 2], 0, None],
        ["picture", "RGB", [2, 2], 0, ["RGB", 0]],
        ["picture", "P", [3, 4], 0, ["CMYK", 0]],
        ["picture", "P", [3, 4], 0, 7],
    ],
)
def test_what_is_no_picture_is_an_error_before_any_memory_is_taken(step: list[Any]) -> None:
    with pytest.raises(WireError):
        kinds.MAKERS["picture"](_Said(b"0" * 12), step)  # type: ignore[arg-type]  # all that is asked of a decoder


def test_a_rare_mode_says_what_to_do() -> None:
    with pytest.raises(WireError, match="convert it to 'RGB'"):
        encode_results({"value": Image.new("RGBa", (2, 2))})
    assert pictures.is_picture(Image.new("L", (1, 1))) and not pictures.is_picture("a picture")
