"""Tokens as labels: what a tokenizer's own spelling means, short enough to stand beside an axis."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.axis import Axis

#: What cannot be seen, and what stands for it.
_SIGNS = {"\n": "⏎", "\t": "⇥", "\r": "␍"}
#: How long a label may be, and from how many labels on some are left out.
_LONGEST, _MOST = 16, 64


def token_labels(tokens: Sequence[str]) -> list[str]:
    """Return tokens as one would want to read them beside an axis.

    They may come decoded, or as a tokenizer spells them: the `Ġ` of byte-level BPE (Radford et al., 2019) and the `▁` of
    SentencePiece are spaces. A space at an end is a dot, a line break `⏎`. A long token is cut in its middle.

    >>> token_labels(["The", "ĠEiffel", " Tower", "▁caf", "Ã©", "Ċ"])
    ['The', '·Eiffel', '·Tower', '·caf', 'é', '⏎']
    """
    return [_label(token) for token in tokens]


def _label(token: str) -> str:
    text = _from_bytes(token).replace("▁", " ")
    inner = text.strip(" ")
    start = len(text) - len(text.lstrip(" ")) if inner else len(text)
    text = "·" * start + inner + "·" * (len(text) - start - len(inner))
    text = "".join(_SIGNS.get(sign, sign if sign.isprintable() else _escaped(sign)) for sign in text)
    if len(text) > _LONGEST:
        half = (_LONGEST - 1) // 2
        text = f"{text[:half]}…{text[-half:]}"
    return text


def _escaped(sign: str) -> str:
    return sign.encode("unicode_escape").decode()


def _byte_signs() -> dict[str, int]:
    """Return the sign that byte-level BPE writes for each byte: itself if it can be seen, else one from 256 on."""
    seen = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in seen]
    return {chr(byte): byte for byte in seen} | {chr(256 + at): byte for at, byte in enumerate(hidden)}


_BYTES = _byte_signs()


def _from_bytes(token: str) -> str:
    """Read a token as byte-level BPE spells it; one that is none, or part of a character only, is left as it is."""
    try:
        return bytes(_BYTES[sign] for sign in token).decode()
    except (KeyError, UnicodeDecodeError):
        # Half of a character: at least its space can be read.
        return token.replace("Ġ", " ")


def put_labels(axis: Axis, labels: Sequence[str], *, upright: bool) -> None:
    """Put a label beside each cell along an axis, or beside every second, third, ... where they would run together."""
    every = -(-len(labels) // _MOST)
    shown = range(0, len(labels), every)
    # `$` is a token like others, not the beginning of a formula.
    axis.set_ticks(list(shown), [labels[at] for at in shown], parse_math=False)
    axis.set_tick_params(length=0)
    if upright:
        for label in axis.get_ticklabels():
            label.set(rotation=60, ha="right", rotation_mode="anchor")


def crowded(labels: Sequence[str], room: float) -> bool:
    """Say whether labels side by side would touch, each in so many inches."""
    return max((len(line) for label in labels for line in label.split("\n")), default=0) * 0.085 > room


def hide_frame(ax: Axes) -> None:
    """Take away the frame of a map, whose cells are frame enough."""
    ax.spines[:].set_visible(False)
