"""Where the tokens of an input lie in the values of a run: `tracer.tokens` and `invoke.tokens`.

In a batch the shorter rows are padded, so a number that a user counted in a prompt is not where the token is. Here a
token is asked for by its number or its text, and the answer is a place along the positions of hidden states. On which
side padding lies is `padding.py`; what tokens say is `spelling.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch._subclasses.fake_tensor import unset_fake_temporarily

from nnsight.plugin import Rows
from nnsight_hf.spelling import Spelling, spell


class Tokens:
    """The tokens of some rows of a run, and where they lie along its positions.

    A place is a whole number from 0, for `hidden[:, place]`, where `hidden` is [rows, positions, ...]. If the rows differ
    in it, that is a ValueError, and `tokens.each` gives the place in each of them.

    Attributes:
        mask: 1 for a token and 0 for padding: [rows, positions].
        ids: the token ids, with padding: [rows, positions]; None for an input that was given as embeddings.
        decoder: those of the decoder's input, in an encoder-decoder model that was given one; else None.

    Example::

        with model.trace() as tracer:
            with tracer.invoke("The Eiffel Tower is in the city of"):
                clean = model.transformer.h[2].output[:, tracer.tokens.find("Tower")]
    """

    decoder: Tokens | None = None

    def __init__(
        self, mask: torch.Tensor, ids: torch.Tensor | None = None, tokenizer: Any = None, entries: int = 1, at: int = 0
    ) -> None:
        self.mask = mask
        self.ids = ids
        self._tokenizer = tokenizer
        self._entries = entries
        self._at = at
        self._part = False
        with unset_fake_temporarily():  # in a scan, inputs are real until the model takes them
            self._columns = [[at for at, real in enumerate(row) if real] for row in mask.tolist()]
            self._ids: list[list[int]] | None = None if ids is None else ids.tolist()
        self._spelt: list[Spelling] | None = None

    # -- what is there -----------------------------------------------------------------------------------------------

    @property
    def lengths(self) -> list[int]:
        """The number of tokens in each row."""
        return [len(columns) for columns in self._columns]

    @property
    def positions(self) -> torch.Tensor:
        """The number of each token in its row, counted from 0 over tokens alone: [rows, positions], 0 at padding."""
        with unset_fake_temporarily():
            return (self.mask.long().cumsum(-1) - 1).clamp(min=0) * self.mask.long()

    @property
    def strings(self) -> list[list[str]]:
        """The text of each token, row by row, without padding. A piece of a character is shown as the tokenizer shows it."""
        return [row.shown for row in self._spellings()]

    def row(self, number: int) -> Tokens:
        """Return those of one row; its `own` takes that row out of a value of all."""
        rows = range(len(self._columns))
        if not -len(rows) <= number < len(rows):
            raise IndexError(f"there are {len(rows)} rows, and no row {number}")
        number = rows[number]
        ids = None if self.ids is None else self.ids[number : number + 1]
        one = Tokens(self.mask[number : number + 1], ids, self._tokenizer, self._entries, number)
        one._part = True
        if self.decoder is not None:
            one.decoder = self.decoder.row(number)
        return one

    # -- where it is -------------------------------------------------------------------------------------------------

    @property
    def last(self) -> int:
        """Where the last token is; -1 if that holds for every row, so that in a generation it is the last of each step."""
        if all(columns[-1:] == [self.mask.shape[1] - 1] for columns in self._columns):
            return -1
        return self[-1]

    def __getitem__(self, number: int | slice) -> Any:
        """Return where the token of this number is, counted as in the prompt, or where several are, as a slice."""
        if isinstance(number, slice):
            return self._common([_run(columns[number]) for columns in self._columns], "those tokens lie")
        return self._common(self._numbered(number), f"token {number} lies")

    def find(self, text: str, occurrence: int | None = None) -> int:
        """Return where a text is: of several tokens the last, where a causal model has read all of it.

        Args:
            text: what stands in the prompt, a word or a few.
            occurrence: which one, from 0, if it stands there several times; negative numbers count from the end.

        Raises:
            ValueError: it is not there, or several times and `occurrence` was not given.
        """
        place: int = self._common([span.stop - 1 for span in self._found(text, occurrence)], f"{text!r} lies")
        return place

    def span(self, text: str, occurrence: int | None = None) -> slice:
        """Return where all tokens of a text are; arguments and errors are those of `find`."""
        place: slice = self._common(self._found(text, occurrence), f"{text!r} lies")
        return place

    @property
    def each(self) -> Each:
        """The same places for rows that differ: `hidden[tokens.each.last]` is [rows, ...]."""
        if self._entries != 1:
            raise ValueError(
                f"each prompt has up to {self._entries} rows here (beams, returned sequences), so there is no one row for "
                "each; take `tokens.row(number)`, whose places hold for all of them"
            )
        return Each(self)

    def own(self, value: torch.Tensor, dim: int | tuple[int, ...] = 1) -> torch.Tensor:
        """Return a value without the positions that only other rows of the batch need, as a view: edits are edits of `value`.

        It then has the shape that it has where these rows run alone.

        Args:
            value: [rows, positions, ...].
            dim: which dimension counts positions, or several of them: `(2, 3)` for attention
                [rows, heads, positions, positions].
        """
        if self._part:
            if self._entries != 1:
                raise ValueError(
                    f"each prompt has up to {self._entries} rows here (beams, returned sequences), so one row cannot be told "
                    "apart: give the prompt an invoke of its own"
                )
            value = value.narrow(0, self._at, 1)
        used = [columns for columns in self._columns if columns]
        first, last = min(c[0] for c in used), max(c[-1] for c in used)
        for one in (dim,) if isinstance(dim, int) else dim:
            if value.shape[one] != self.mask.shape[1]:
                raise ValueError(
                    f"the input has {self.mask.shape[1]} positions, and dimension {one} of this value of shape "
                    f"{tuple(value.shape)} has another size: it does not count the positions of the input"
                )
            value = value.narrow(one, first, last - first + 1)
        return value

    def __repr__(self) -> str:
        if self._ids is None or self._tokenizer is None:
            return f"<Tokens of {len(self._columns)} rows: {self.lengths} tokens>"
        return "<Tokens " + "; ".join(" ".join(map(repr, row)) for row in self.strings) + ">"

    # -- the work ----------------------------------------------------------------------------------------------------

    def _numbered(self, number: int) -> list[int]:
        for row, columns in enumerate(self._columns):
            if not -len(columns) <= number < len(columns):
                raise IndexError(f"row {row} has {len(columns)} tokens, and no token {number}")
        return [columns[number] for columns in self._columns]

    def _common(self, places: Sequence[Any], what: str) -> Any:
        if any(place != places[0] for place in places):
            raise ValueError(
                f"{what} at different positions in the rows of this input ({', '.join(map(str, places))}), so it is no one "
                "number. Write `hidden[tokens.each...]` for the place in each, or take `tokens.row(number)`."
            )
        return places[0]

    def _found(self, text: str, occurrence: int | None) -> list[slice]:
        if not text:
            raise ValueError("an empty text is everywhere: say what to find")
        found = [row.find(text, occurrence, number) for number, row in enumerate(self._spellings())]
        return [_run(columns[span]) for columns, span in zip(self._columns, found)]

    def _spellings(self) -> list[Spelling]:
        if self._spelt is None:
            if self._ids is None:
                raise ValueError("this input was given as embeddings, so its tokens have no ids and no text")
            if self._tokenizer is None:
                raise ValueError("this model has no tokenizer, so its tokens have no text: pass `tokenizer=` with it")
            own = [[ids[at] for at in columns] for ids, columns in zip(self._ids, self._columns)]
            self._spelt = [spell(self._tokenizer, row) for row in own]
        return self._spelt


class Each:
    """The places of tokens in rows that differ, as pairs of indices: `hidden[tokens.each[3]]` is [rows, ...]."""

    def __init__(self, tokens: Tokens) -> None:
        self._tokens = tokens

    @property
    def last(self) -> tuple[list[int], list[int]]:
        """The last token of each row."""
        return self[-1]

    def __getitem__(self, number: int) -> tuple[list[int], list[int]]:
        """Return where the token of this number is in each row."""
        return self._indices(self._tokens._numbered(number))

    def find(self, text: str, occurrence: int | None = None) -> tuple[list[int], list[int]]:
        """Return where a text is in each row; see `Tokens.find`."""
        return self._indices([span.stop - 1 for span in self._tokens._found(text, occurrence)])

    def _indices(self, places: list[int]) -> tuple[list[int], list[int]]:
        if self._tokens._part:
            return [self._tokens._at], places
        return list(range(len(places))), places


def describe(kwargs: Mapping[str, Any], tokenizer: Any, rows: Rows | None = None, entries: int = 1) -> Tokens:
    """Return the tokens of some rows of a call, or of all.

    Args:
        kwargs: arguments of a model of text, with a row for each prompt.
        tokenizer: the tokenizer, if there is one.
        rows: where the rows start and how many they are.
        entries: how many rows each has in the values of the run, at most.
    """
    tokens = _part(kwargs, "input_ids", "attention_mask", tokenizer, rows, entries)
    if tokens is None:
        raise ValueError("this call was given neither `input_ids` nor `inputs_embeds`, so it has no tokens")
    tokens.decoder = _part(kwargs, "decoder_input_ids", "decoder_attention_mask", tokenizer, rows, entries)
    return tokens


def _part(
    kwargs: Mapping[str, Any], name: str, masked_by: str, tokenizer: Any, rows: Rows | None, entries: int
) -> Tokens | None:
    ids: torch.Tensor | None = kwargs.get(name)
    mask: torch.Tensor | None = kwargs.get(masked_by)
    with unset_fake_temporarily():
        if mask is None or mask.dim() != 2:
            like = (
                ids
                if ids is not None
                else kwargs.get("inputs_embeds" if name == "input_ids" else "decoder_inputs_embeds")
            )
            if like is None:
                return None
            mask = torch.ones(like.shape[:2], dtype=torch.long, device=like.device)
        if rows is not None:
            start, count = rows
            mask = mask[start : start + count]
            ids = None if ids is None else ids[start : start + count]
    return Tokens(mask, ids, tokenizer, entries)


def _run(columns: Sequence[int]) -> slice:
    if not columns:
        return slice(0, 0)
    if list(columns) != list(range(columns[0], columns[-1] + 1)):
        raise ValueError(f"the tokens at {list(columns)} do not lie next to each other, so they are no slice")
    return slice(columns[0], columns[-1] + 1)
