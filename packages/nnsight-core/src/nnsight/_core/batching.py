"""How several inputs share one forward, and how their rows lie in every value.

`Batchable` is what a family implements: turn one invoke's input into arguments, put several together, and *state* how
rows lie in the values of a run (`Layout`). `PlainLayout` is plain row arithmetic along dimension 0, with nothing known
about any kind of model. What a mediator sees of a value, and what it may write, is `here.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import torch

from .errors import RowsError
from .structures import tree_map

#: The rows of one invoke: where they start among all rows, and how many they are.
Rows = tuple[int, int]

#: One invoke's input as the model takes it: positional arguments, keyword arguments, number of rows.
Prepared = tuple[tuple[Any, ...], dict[str, Any], int]


@runtime_checkable
class Layout(Protocol):
    """A statement of how the rows of a run lie in its values."""

    total: int

    def look(self, value: Any, path: str) -> None:
        """Look at a whole value before its tensors are taken, for what one of them says about another."""

    def whole(self, value: Any, rows: Rows, path: str) -> Any:
        """Return an invoke's part of a value whose rows are not all in tensors (a list of images); None if they are."""

    def take(self, value: torch.Tensor, rows: Rows, path: str) -> torch.Tensor | None:
        """Return the rows of one invoke as a view of `value`, or None if the value carries no rows."""

    def join(self, value: torch.Tensor, pieces: Mapping[Rows, torch.Tensor], path: str) -> torch.Tensor:
        """Return `value` with the rows in `pieces` replaced, leaving `value` itself as it is."""


class PlainLayout:
    """Rows along dimension 0, each `multiple` times in a row (beams, returned sequences).

    Args:
        total: how many rows the run has.
        multiples: how many consecutive entries a row may take in a value of this run; each must be stated, since a
            size that happens to be divisible says nothing.
    """

    def __init__(self, total: int, multiples: Sequence[int] = (1,)) -> None:
        self.total = total
        self._multiple_of = {total * multiple: multiple for multiple in multiples}

    def _multiple(self, value: torch.Tensor) -> int | None:
        # A plain tensor is no parameter; asking any other is slow.
        if value.dim() == 0 or (type(value) is not torch.Tensor and isinstance(value, torch.nn.Parameter)):
            return None
        return self._multiple_of.get(value.size(0))

    def look(self, value: Any, path: str) -> None:
        """Do nothing: each tensor tells by itself."""

    def whole(self, value: Any, rows: Rows, path: str) -> Any:
        """Return None: only tensors have rows."""

    def take(self, value: torch.Tensor, rows: Rows, path: str) -> torch.Tensor | None:
        """Return the rows as a view, or None for a parameter, a scalar or another size."""
        multiple = self._multiple(value)
        if multiple is None:
            return None
        start, count = rows
        if multiple != 1:
            start, count = start * multiple, count * multiple
        return value[start : start + count]  # `narrow` gives the same view, through one call of torch more

    def join(self, value: torch.Tensor, pieces: Mapping[Rows, torch.Tensor], path: str) -> torch.Tensor:
        """Concatenate the pieces with the rows between them: one copy of the batch, however many pieces."""
        multiple = self._multiple(value)
        assert multiple is not None, "only values that carry rows have pieces"
        laid = (((start * multiple, count * multiple), piece) for (start, count), piece in pieces.items())
        return put_together(value, laid)


def put_together(value: torch.Tensor, pieces: Iterable[tuple[Rows, torch.Tensor]], dim: int = 0) -> torch.Tensor:
    """Return `value` with parts of it replaced, in one copy however many they are.

    Args:
        value: the whole; left as it is.
        pieces: where each begins along the dimension and how long it is, and what to put there; none overlaps another.
        dim: the dimension.
    """
    parts: list[torch.Tensor] = []
    at = 0
    for (start, count), piece in sorted(pieces, key=lambda item: item[0]):
        if start > at:
            parts.append(value.narrow(dim, at, start - at))
        parts.append(piece)
        at = start + count
    if at < value.shape[dim]:
        parts.append(value.narrow(dim, at, value.shape[dim] - at))
    return torch.cat(parts, dim)


class Batchable:
    """What a model family implements so that several invokes share one forward.

    The methods here are the core's own: tensors are batched along dimension 0, anything else must be equal in all
    invokes. A family overrides what differs for it.
    """

    def _has_input(self, inputs: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
        """Say whether these arguments hold an input, and not options alone."""
        return bool(inputs) or bool(kwargs)

    def _options(self, kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """Return those arguments of an input-less trace that are options of the call."""
        return dict(kwargs)

    def _prepare_input(self, *inputs: Any, **kwargs: Any) -> Prepared:
        """Turn one invoke's input into arguments of the model and its number of rows."""
        first = inputs[0] if inputs else None
        if isinstance(first, torch.Tensor) and first.dim():
            return inputs, kwargs, first.size(0)
        return inputs, kwargs, _count_rows((inputs, kwargs))

    def _requests(self, prepared: Prepared) -> Sequence[Prepared]:
        """Return the requests that one prepared input is for, where an engine serves it: several, if it is drawn from."""
        return [prepared]

    def _batch(self, prepared: Sequence[Prepared]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Put several prepared inputs into one call."""
        return join_inputs(prepared)

    def _layout(self, total: int, args: tuple[Any, ...], kwargs: Mapping[str, Any], method: str | None) -> Layout:
        """State how the rows of a run lie in its values."""
        return PlainLayout(total)

    def _tokens(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], rows: Rows | None, method: str | None) -> Any:
        """Say where the tokens of the input lie, for `tracer.tokens`: those of some rows of a call, or of all."""
        raise NotImplementedError(f"the inputs of {type(self).__name__} are not made of tokens, as far as it knows")


def _count_rows(value: Any) -> int:
    found: list[int] = []

    def look(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.dim():
            found.append(tensor.shape[0])
        return tensor

    tree_map(look, value)
    return found[0] if found else 1


def join_inputs(prepared: Sequence[Prepared]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Concatenate the tensors of several inputs along dimension 0; everything else must be the same in all.

    Raises:
        RowsError: the inputs differ in their arguments, in a shape behind dimension 0, or in a plain value.
    """
    first_args, first_kwargs, _ = prepared[0]
    if len(prepared) == 1:
        return first_args, first_kwargs  # the very objects, as a plain call would pass them
    for number, (args, kwargs, _) in enumerate(prepared):
        if len(args) != len(first_args) or set(kwargs) != set(first_kwargs):
            raise RowsError(
                f"Invoke {number} passes other arguments than invoke 0, so they cannot share one forward. Pass the same "
                "arguments in each invoke, or run separate traces."
            )
    args = tuple(
        _join([p[0][position] for p in prepared], f"positional argument {position}")
        for position in range(len(first_args))
    )
    return args, {name: _join([p[1][name] for p in prepared], f"argument `{name}`") for name in first_kwargs}


def _join(values: list[Any], what: str) -> Any:
    first = values[0]
    if isinstance(first, torch.Tensor) and first.dim():
        shapes = {tuple(v.shape[1:]) if isinstance(v, torch.Tensor) else None for v in values}
        if len(shapes) > 1:
            raise RowsError(
                f"The invokes' {what} have shapes {[tuple(getattr(v, 'shape', ())) for v in values]}, which cannot be "
                "stacked along dimension 0. Pad them to one shape, or run separate traces."
            )
        return torch.cat(values)
    if isinstance(first, (tuple, list)):
        return type(first)(_join([v[i] for v in values], f"{what}[{i}]") for i in range(len(first)))
    if isinstance(first, dict):
        return {key: _join([v[key] for v in values], f"{what}[{key!r}]") for key in first}
    if any(v is not first and v != first for v in values):
        raise RowsError(
            f"The invokes' {what} differ ({', '.join(map(repr, values))}), and one forward can take one value only. "
            "Pass the same value in each invoke, or run separate traces."
        )
    return first
