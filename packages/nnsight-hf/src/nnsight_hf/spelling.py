"""What each token of a row says: its own part of the text, so that a word can be looked for among tokens.

A token alone does not decode to its part: tokenizers drop a space at the beginning, and a character may be spread over
several tokens. So each is decoded behind the one before it, and what is new is its own; tokens that make a character
only together share it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

#: As many tokens as the bytes of one character may be spread over.
_CHARACTER = 4

#: What a tokenizer gives for bytes that are no character yet.
_UNFINISHED = "\ufffd"


@dataclass(frozen=True)
class Spelling:
    """The text of one row, token by token.

    Attributes:
        text: all of it.
        spans: where in it each token begins and ends.
        shown: each token for reading: its part, or a piece of a character as the tokenizer writes it.
    """

    text: str
    spans: list[tuple[int, int]]
    shown: list[str]

    def find(self, text: str, occurrence: int | None, row: int) -> slice:
        """Return the numbers of the tokens that have a part in a text; see `Tokens.find`. `row` is for messages."""
        starts = [at for at in range(len(self.text)) if self.text.startswith(text, at)]
        if not starts:
            raise ValueError(f"{text!r} does not stand in row {row}, whose tokens are {self.shown}")
        if occurrence is None and len(starts) > 1:
            raise ValueError(
                f"{text!r} stands {len(starts)} times in row {row}, whose tokens are {self.shown}: say which with "
                "`occurrence=`, 0 for the first and -1 for the last"
            )
        which = occurrence or 0
        if not -len(starts) <= which < len(starts):
            raise ValueError(f"{text!r} stands {len(starts)} times in row {row}, so there is no occurrence {which}")
        start = starts[which]
        touched = [n for n, (begin, end) in enumerate(self.spans) if begin < start + len(text) and end > start]
        return slice(touched[0], touched[-1] + 1)


def spell(tokenizer: Any, ids: Sequence[int]) -> Spelling:
    """Return what the tokens of a row say."""
    whole = ""
    spans: list[tuple[int, int]] = []
    shown: list[str] = []
    behind = first = 0  # the tokens that give the context, and the first that has not said anything yet
    for number in range(len(ids)):
        before = _decoded(tokenizer, ids[behind:first])
        part = _decoded(tokenizer, ids[behind : number + 1])[len(before) :]
        if part.endswith(_UNFINISHED) and number - first + 1 < _CHARACTER and number + 1 < len(ids):
            continue
        together = number + 1 - first
        spans += [(len(whole), len(whole) + len(part))] * together
        pieces = tokenizer.convert_ids_to_tokens(list(ids[first : number + 1])) if together > 1 else [part]
        shown += [str(piece) for piece in pieces]
        whole += part
        behind, first = first, number + 1
    return Spelling(whole, spans, shown)


def _decoded(tokenizer: Any, ids: Sequence[int]) -> str:
    text: str = (
        tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False) if ids else ""
    )
    return text
