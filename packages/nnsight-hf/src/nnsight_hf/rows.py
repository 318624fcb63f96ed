"""How the rows of a batch lie in the values of a model: found out by running it on batches of two sizes.

Which dimension of a value counts rows cannot be told from one run, where a number of heads or of positions may happen to
be the number of rows. So a model is *probed* once, before several inputs first share a forward: it runs on fake tensors
with 3 rows and with 5, and with two lengths, and whatever grew with the rows counts rows. A router that sees rows and
positions as one long list of tokens, decoders that carry rows in another dimension than the first, tables and biases
without any: all show.

What is derived here is only looked up while a run stands at a site. How a generation multiplies rows is `generation.py`.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from nnsight import RowsError, ScanError
from nnsight.plugin import PlainLayout, Rows, leaves, put_together
from nnsight_hf.losses import Losses
from nnsight_hf.padding import encodes, takes_padding

#: Rows and positions of the runs. Only the differences between them say anything, so no size can coincide.
_RUNS = ((3, 7), (5, 7), (3, 11))

#: What a size depends on that differs between runs in another way than as a multiple of the rows.
_VARIES = -1


@dataclass(frozen=True)
class Pattern:
    """The shape of a value, as far as it is the same in every run.

    Attributes:
        sizes: the size of each dimension, -1 for one that depends on the input.
        rows: the dimension that counts rows; None for a value without rows.
        single: whether each row has one entry there; else it has several in a row (its tokens, its heads).
    """

    sizes: tuple[int, ...]
    rows: int | None
    single: bool

    def fits(self, shape: Sequence[int]) -> bool:
        """Say whether a value of this shape may be one of these."""
        return len(shape) == len(self.sizes) and all(a in (_VARIES, b) for a, b in zip(self.sizes, shape))


#: For each path, the patterns of what its module takes and gives.
Facts = Mapping[str, tuple[Pattern, ...]]


def probe(model: Any) -> Facts:
    """Find out how rows lie in what each module takes and gives when a language model reads text.

    Args:
        model: a language model; it is run without its edits. No weights are read unless its forward needs numbers to know
            the shapes, as some mixtures of experts do.
    """
    pads = takes_padding(model._module)
    words = getattr(model.config.get_text_config(), "vocab_size", None)
    kinds = max(1, min(words // 2, 1000)) if isinstance(words, int) else 1
    batches = [_text(rows, positions, pads, kinds) for rows, positions in _RUNS]
    if encodes(model._module):
        for batch, (rows, positions) in zip(batches, _RUNS):
            batch["decoder_input_ids"] = torch.full((rows, positions + 2), 1)
    facts = compare(model, batches, _ordered)
    sorting = tuple(f"{path}." for path in _experts(model))
    return {
        path: tuple(Pattern(pattern.sizes, None, True) for pattern in patterns)
        if path.startswith(sorting)
        else patterns
        for path, patterns in facts.items()
    }


def _experts(model: Any) -> list[str]:
    """Return the paths of experts that put tokens in an order of their own: inside, no slice is one row's."""
    # relies on: use_experts_implementation gives a class `_apply_gate`, transformers 5.23
    parts = model._module.named_modules()
    return [f"{model._path}.{path}" for path, part in parts if hasattr(type(part), "_apply_gate")]


def _ordered(few: int, many: int, long: int) -> bool:
    """Say whether a dimension that grows with the rows is one row after another.

    It is where each row has one entry, as many as there are heads, or one for each token. More than one for each token may
    lie in any order: experts get the copies of a token apart.
    """
    (rows, positions), _, (_, more) = _RUNS
    return long == few or long - few == rows * (more - positions)


def compare(
    model: Any, batches: Sequence[Mapping[str, Any]], ordered: Callable[[int, int, int], bool] = lambda *sizes: True
) -> Facts:
    """Find out which dimension of each value grows with a batch.

    Args:
        model: the model.
        batches: 3 of something, 5 of it, and 3 that differ in another way, each as the model takes it.
        ordered: says of the three sizes of such a dimension whether what belongs to one of them lies together.
    """
    few, many, long = (shapes_of(model, batch) for batch in batches)
    return {
        path: tuple(dict.fromkeys(_pattern(*shapes, ordered) for shapes in zip(few[path], many[path], long[path])))
        for path in few
        if len(few[path]) == len(many.get(path, ())) == len(long.get(path, ()))
    }


#: For each path, the shapes of what its module takes and gives, visit after visit.
Shapes = dict[str, list[tuple[int, ...]]]


def shapes_of(model: Any, batch: Mapping[str, Any], until: str | None = None) -> Shapes:
    """Run a model on a batch, on fake tensors if it can be, and return the shapes that pass its modules.

    Args:
        model: the model; it is run without its edits.
        batch: what its module takes.
        until: the path of the module after whose output the rest is of no interest.
    """
    bare = copy.copy(model)
    bare.clear_edits()
    # Not through what a library on top prepares inputs with: these are none of its user's.
    family: Any = next(cls for cls in type(model).__mro__ if cls.__module__.startswith(f"{__package__}."))
    bare.__dict__["_prepare_input"] = functools.partial(family._prepare_input, bare)
    last = None if until is None else bare.get(until.removeprefix(f"{model._path}."))
    try:
        return _shapes(bare.scan, batch, last)
    except ScanError:
        return _shapes(bare.trace, batch, last)


def _text(rows: int, positions: int, pads: bool, kinds: int) -> dict[str, Any]:
    # Of several kinds, where numbers matter: all experts are to get tokens, and not each of them all or none.
    ids = torch.arange(rows * positions).view(rows, positions) % kinds + 1
    mask = torch.ones_like(ids)
    if pads:
        mask[0, 0] = 0  # positions are counted by row in a batch that has padding
    return {"input_ids": ids, "attention_mask": mask}


def _shapes(run: Any, batch: Mapping[str, Any], last: Any) -> Shapes:
    with torch.no_grad(), run(dict(batch)) as tracer:
        cache = tracer.cache(device="meta", include_inputs=True)  # shapes are all that is looked at
        if last is not None:
            seen = last.output
            tracer.stop()
    shapes: Shapes = {}
    for path, visits in cache.items():
        found = shapes[path] = []
        for visit in visits if isinstance(visits, list) else [visits]:
            found += [tuple(leaf.shape) for leaf in leaves((visit.inputs, visit.output))]
    if last is not None:
        shapes[last.path] += [tuple(leaf.shape) for leaf in leaves(seen)]  # the run ended before it was cached
    return shapes


def _pattern(
    few: Sequence[int], many: Sequence[int], long: Sequence[int], ordered: Callable[[int, int, int], bool]
) -> Pattern:
    if not len(few) == len(many) == len(long):
        return Pattern(tuple(_VARIES for _ in few), None, True)
    rows = [dim for dim, (a, b) in enumerate(zip(few, many)) if a != b and a * _RUNS[1][0] == b * _RUNS[0][0]]
    sizes = tuple(a if a == b == c else _VARIES for a, b, c in zip(few, many, long))
    # As many as chance has it, such as the tokens that one expert gets, or in an order of their own.
    if len(rows) != 1 or not ordered(few[rows[0]], many[rows[0]], long[rows[0]]):
        return Pattern(sizes, None, True)
    return Pattern(sizes, rows[0], few[rows[0]] == _RUNS[0][0])


#: Set on a result whose numbers are those of entries of the batch (beams): how many entries each row has.
NUMBERS = "_nnsight_numbers_entries"


class ProbedLayout(PlainLayout):
    """Rows as they were found to lie; by a plain rule where nothing was found: along dimension 0 of a value with several.

    Args:
        total: how many rows the run has.
        multiples: how many times in a row each may lie (beams, returned sequences).
        facts: what `probe` found.
        plain: paths below which there are no modules of the model, and where a value of one dimension may count rows.
    """

    def __init__(
        self, total: int, multiples: Sequence[int] = (1,), facts: Facts | None = None, plain: Iterable[str] = ()
    ) -> None:
        super().__init__(total, multiples)
        self._facts = facts or {}
        self._plain = tuple(plain)
        #: Whose loss is whose, in a run with labels.
        self.losses: Losses | None = None
        #: What was looked up already, by path and shape.
        self._known: dict[tuple[str, torch.Size], tuple[int, int] | None] = {}

    def look(self, value: Any, path: str) -> None:
        """Note what the loss was made of, in a run with labels."""
        if self.losses is not None:
            self.losses.look(value)

    def take(self, value: torch.Tensor, rows: Rows, path: str) -> torch.Tensor | None:
        """Return the rows as a view, or None for a value without rows."""
        if self.losses is not None and not value.dim():
            return self.losses.own(value, rows)
        found = self._where(value, path)
        if found is None:
            return None
        dim, each = found
        start, count = rows
        if path.startswith(self._plain) and hasattr(value, NUMBERS):
            mine = value.narrow(dim, start * each, count * each)
            return _renumbered(mine, -start * getattr(value, NUMBERS))
        return value.narrow(dim, start * each, count * each) if dim else value[start * each : (start + count) * each]

    def join(self, value: torch.Tensor, pieces: Mapping[Rows, torch.Tensor], path: str) -> torch.Tensor:
        """Concatenate the pieces with the rows between them: one copy of the batch, however many pieces."""
        if not value.dim():
            return _unchanged(
                value, [piece for rows, piece in pieces.items() if piece is not self.take(value, rows, path)]
            )
        found = self._where(value, path)
        assert found is not None, "only values that carry rows have pieces"
        dim, each = found
        numbers = getattr(value, NUMBERS, 0)
        laid = (
            ((start * each, count * each), _renumbered(piece, start * numbers))
            for (start, count), piece in pieces.items()
        )
        return put_together(value, laid, dim)

    def _where(self, value: torch.Tensor, path: str) -> tuple[int, int] | None:
        """Return along which dimension rows lie, and how many entries each has there."""
        if isinstance(value, torch.nn.Parameter):
            return None
        key = path, value.shape
        try:
            return self._known[key]
        except KeyError:
            found = self._known[key] = self._look_up(value.shape, path)
            return found

    def _look_up(self, shape: torch.Size, path: str) -> tuple[int, int] | None:
        fitting = [pattern for pattern in self._facts.get(path, ()) if pattern.fits(shape)]
        for pattern in fitting:
            if pattern.rows is not None:
                each = self._each(shape[pattern.rows], pattern.single)
                if each is not None:
                    return pattern.rows, each
        if fitting or not shape or (len(shape) == 1 and not path.startswith(self._plain)):
            return None
        multiple = self._multiple_of.get(shape[0])
        return None if multiple is None else (0, multiple)

    def _each(self, size: int, single: bool) -> int | None:
        if single:
            return self._multiple_of.get(size)
        return size // self.total if size and size % self.total == 0 else None


def _unchanged(loss: torch.Tensor, written: Sequence[torch.Tensor]) -> torch.Tensor:
    if written:
        raise RowsError(
            "An invoke among several wrote its loss, which is a number for it alone: the model has one for all rows. "
            "Write it in a prompt-less invoke (`with tracer.invoke():`), or trace this input alone."
        )
    return loss


def _renumbered(entries: torch.Tensor, by: int) -> torch.Tensor:
    """Return numbers of entries counted from elsewhere; negative ones stand for none."""
    return torch.where(entries < 0, entries, entries + by) if by else entries
