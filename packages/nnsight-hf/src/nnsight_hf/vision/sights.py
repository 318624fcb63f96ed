"""How images lie in the values of modules that see images, and a layout that gives each invoke its own.

A vision tower sees images, crops or packed patches where a decoder sees rows. As for rows (`rows.py`), which dimension
counts them is found out by running the model: on two and on three of one input, and on two beside text alone. What grows
with the first and not with the text counts images. Where images of different extents are cut into parts by the model
itself, how many parts are whose is measured too, by running each input alone up to the end of the tower.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from nnsight.plugin import Rows, put_together
from nnsight_hf.rows import Facts, ProbedLayout, shapes_of
from nnsight_hf.vision.shares import Shares

_VARIES = -1

#: Where, in what an input has of images, its places are.
_PLACES = 2


@dataclass(frozen=True)
class Sight:
    """The shape of a value that there is only with images.

    Attributes:
        sizes: the size of each dimension, -1 for one that grows.
        dim: the dimension that counts images or rows; None for a value that counts neither.
        rows: whether it counts rows.
        each: how many entries the input that was measured has along it.
        units: how much that input has of images, as `shares.py` counts it.
        leaf: which of the tensors of its module it is.
    """

    sizes: tuple[int, ...]
    dim: int | None
    rows: bool
    each: int
    units: tuple[int, ...]
    leaf: int

    def fits(self, shape: Sequence[int]) -> bool:
        """Say whether a value of this shape may be this one."""
        return len(shape) == len(self.sizes) and all(a in (_VARIES, b) for a, b in zip(self.sizes, shape))


#: For each path, what its module takes and gives when there are images.
Sights = Mapping[str, tuple[Sight, ...]]

#: For each path, how many entries each of its values has in each dimension, for one input alone.
Alone = Mapping[str, Sequence[Sequence[int]]]


def find(
    model: Any,
    join: Callable[[list[Mapping[str, Any]]], dict[str, Any]],
    one: Mapping[str, Any],
    units: tuple[int, ...],
    text: Any,
) -> Sights:
    """Find out how images lie in what each module takes and gives.

    Args:
        model: the model.
        join: puts inputs together.
        one: an input with images.
        units: how much it has of them.
        text: an input without, that can share a batch with it; None if the model takes no such batch: then images lie as
            rows do.
    """
    # Each with padding, without which some arguments are not there, and of lengths that are not 2 to 3 as the rows are.
    few, many = (1, 2) if one["attention_mask"].shape[1] > 1 else (2, 4)
    two = shapes_of(model, join([one, _longer(one, few)]))
    three = shapes_of(model, join([one, one, _longer(one, many)]))
    mixed = shapes_of(model, join([one, _longer(one, few), text])) if text is not None else three
    found: dict[str, tuple[Sight, ...]] = {}
    for path, shapes in two.items():
        others = three.get(path, []), mixed.get(path, [])
        if all(len(other) == len(shapes) for other in others):
            found[path] = tuple(_sight(*seen, units, leaf) for leaf, seen in enumerate(zip(shapes, *others)))
    return found


def beside(found: Sights, facts: Facts) -> Sights:
    """Return what is not known from text alone: all of modules that see images only, and of others what counts images."""
    made = {}
    for path, seen in found.items():
        kept = tuple(sight for sight in seen if path not in facts or _counts(sight))
        if kept:
            made[path] = kept
    return made


def _longer(one: Mapping[str, Any], more: int) -> dict[str, Any]:
    """Return an input with a little more text, so that what counts tokens shows."""
    mask = one["attention_mask"]
    made = dict(one)
    for name, value in one.items():
        if isinstance(value, torch.Tensor) and value.shape[:2] == mask.shape:
            fill = 1 if name in ("input_ids", "attention_mask") else 0
            made[name] = torch.cat([value, value.new_full((len(value), more, *value.shape[2:]), fill)], 1)
    return made


def _sight(few: Sequence[int], many: Sequence[int], beside: Sequence[int], units: tuple[int, ...], leaf: int) -> Sight:
    nothing = Sight(tuple(_VARIES for _ in few), None, False, 0, units, leaf)
    if not len(few) == len(many) == len(beside):
        return nothing
    sizes = tuple(a if a == b == c else _VARIES for a, b, c in zip(few, many, beside))
    grown = [dim for dim, (a, b) in enumerate(zip(few, many)) if a != b and a * 3 == b * 2]
    if len(grown) != 1:
        return Sight(sizes, None, False, 0, units, leaf)
    (dim,) = grown
    if beside[dim] not in (few[dim], many[dim]):
        return Sight(sizes, None, False, 0, units, leaf)
    return Sight(sizes, dim, beside[dim] == many[dim], few[dim] // 2, units, leaf)


def alone(model: Any, one: Mapping[str, Any], sights: Sights, facts: Facts) -> Alone:
    """Measure how many entries an input has alone in the values that count images, up to the end of the tower.

    Args:
        model: the model.
        one: the input.
        sights: how images lie.
        facts: how rows lie where there is text alone: what is there is no part of the tower.
    """
    seeing = [path for path, seen in sights.items() if path not in facts and any(_counts(sight) for sight in seen)]
    if not seeing:
        return {}
    # The last to begin may be a part of one that ends after it.
    whole = min((path for path in seeing if f"{seeing[-1]}.".startswith(f"{path}.")), key=len)
    shapes = shapes_of(model, one, until=whole)
    return {path: shapes[path] for path in seeing if path in shapes}


def _counts(sight: Sight) -> bool:
    return sight.dim is not None and not sight.rows


@dataclass(frozen=True)
class _Division:
    """Where the parts of a value lie along a dimension: for each input where it begins and how long it is."""

    dim: int
    parts: tuple[tuple[int, int], ...]


def _laid(dim: int, lengths: Sequence[int]) -> _Division:
    ends = list(itertools.accumulate(lengths))
    return _Division(dim, tuple((end - length, length) for end, length in zip(ends, lengths)))


#: For a value that is divided as text alone is.
_ROWS = _Division(0, ())


class ImagesLayout(ProbedLayout):
    """Rows as in any language model; where a module sees images, the images of an invoke.

    Args:
        shares: which images are whose.
        sights: how images lie in the values of the modules that see them.
        measured: for each input, what it has alone; only where images are not alike.
        root: the path of the module whose output is the run's result; None in a generation.
        total, multiples, facts, plain: as for `ProbedLayout`.
    """

    def __init__(
        self,
        shares: Shares,
        sights: Sights,
        measured: Sequence[Alone | None],
        root: str | None,
        total: int,
        multiples: Sequence[int],
        facts: Facts,
        plain: Sequence[str],
    ) -> None:
        super().__init__(total, multiples, facts, plain)
        self._shares = shares
        self._sights = sights
        self._measured = measured
        self._multiples = multiples
        self._root = root
        self._divisions: dict[tuple[str, torch.Size], _Division | None] = {}

    def take(self, value: torch.Tensor, rows: Rows, path: str) -> torch.Tensor | None:
        """Return the rows, or the images, of one invoke as a view; None for a value without any."""
        division = self._division(value, self._named(path))
        if division is _ROWS:
            return super().take(value, rows, path)
        number = self._shares.number(rows)
        if division is None or number is None:
            return None
        return value.narrow(division.dim, *division.parts[number])

    def join(self, value: torch.Tensor, pieces: Mapping[Rows, torch.Tensor], path: str) -> torch.Tensor:
        """Return the value with the pieces put where the images of their invokes lie."""
        division = self._division(value, self._named(path))
        if division is _ROWS:
            return super().join(value, pieces, path)
        assert division is not None, "only values that are divided have pieces"
        numbers = {rows: self._shares.number(rows) for rows in pieces}
        laid = ((division.parts[n], pieces[rows]) for rows, n in numbers.items() if n is not None)
        return put_together(value, laid, division.dim)

    def _named(self, path: str) -> str:
        return self._root if path == "result" and self._root is not None else path

    def _division(self, value: torch.Tensor, path: str) -> _Division | None:
        if isinstance(value, torch.nn.Parameter) or not value.dim() or path not in self._sights:
            return _ROWS
        key = path, value.shape
        if key not in self._divisions:
            self._divisions[key] = self._divided(value.shape, path)
        return self._divisions[key]

    def _divided(self, shape: torch.Size, path: str) -> _Division | None:
        fitting = [sight for sight in self._sights[path] if sight.fits(shape)]
        known = [pattern for pattern in self._facts.get(path, ()) if pattern.fits(shape)]
        if not fitting and (known or all(len(sight.sizes) != len(shape) for sight in self._sights[path])):
            return _ROWS
        if any(sight.dim is None for sight in fitting):
            return None  # it may be a value that counts no images
        found = [self._by(sight, shape, path) for sight in fitting]
        if known:
            at = self._look_up(shape, path)
            found.append(None if at is None else self._of_rows(*at))
        distinct = {division for division in found if division is not None}
        # Two ways to divide it that differ, or none: then nobody's.
        return distinct.pop() if len(distinct) == 1 else None

    def _by(self, sight: Sight, shape: torch.Size, path: str) -> _Division | None:
        if sight.dim is None:
            return None
        size = shape[sight.dim]
        if sight.rows:
            each, rest = divmod(size, self.total)
            return None if rest or not each else self._of_rows(sight.dim, each)
        if not self._shares.alike and path not in self._facts:
            return self._as_measured(sight, size, path)
        # Beside the tower, what images make of a text is in its places, whatever their extents.
        kinds = range(len(sight.units)) if self._shares.alike else [_PLACES]
        found = {self._in_proportion(sight, size, kind) for kind in kinds} - {None}
        return found.pop() if len(found) == 1 else None

    def _of_rows(self, dim: int, each: int) -> _Division:
        return _laid(dim, [count * each for count in self._shares.rows])

    def _in_proportion(self, sight: Sight, size: int, kind: int) -> _Division | None:
        """Divide as each input has images, if the size is what they have together."""
        assert sight.dim is not None, "it counts something"
        images, videos, places = sight.units
        # A tower sees both alike, in one visit after the other.
        unit = places if kind == _PLACES else (images or videos, videos or images)[kind]
        amounts = self._shares.amounts[kind]
        if not unit or not sum(amounts) or (kind == _PLACES and not self._shares.alike and sight.each != unit):
            return None
        for multiple in self._multiples:
            if size * unit == sight.each * sum(amounts) * multiple:
                return _laid(sight.dim, [amount * multiple * sight.each // unit for amount in amounts])
        return None

    def _as_measured(self, sight: Sight, size: int, path: str) -> _Division | None:
        """Divide as much as each input has alone, if that is what is there."""
        assert sight.dim is not None, "it counts something"
        lengths = []
        for seen in self._measured:
            shapes = () if seen is None else seen.get(path, ())
            if seen is not None and len(shapes) != len(self._sights[path]):
                return None
            lengths.append(shapes[sight.leaf][sight.dim] if shapes else 0)
        for multiple in self._multiples:
            if sum(lengths) * multiple == size:
                return _laid(sight.dim, [length * multiple for length in lengths])
        return None
