"""How rows lie in what a module of a pipeline takes and gives: found out by running it on fake tensors of two sizes.

Which dimension counts rows cannot be told from one run, where a number of tokens may happen to be the number of rows. So
when several invokes first share a call of a module, it runs on fake tensors with 3 rows and with 5: what grew, counts
rows. Nothing is computed, and what was found is kept for calls of the same shapes.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from nnsight import ScanError
from nnsight.plugin import leaves, tree_map
from nnsight_diffusers.batch import entries

_FEW, _MANY = 3, 5


@dataclass(frozen=True)
class Pattern:
    """The shape of a value for one row.

    Attributes:
        sizes: the size of each dimension; where rows lie, the number of entries of one.
        rows: the dimension that counts rows; None for a value without rows.
    """

    sizes: tuple[int, ...]
    rows: int | None

    def entries(self, shape: torch.Size, total: int) -> int | None:
        """Return how many entries in a row each row has in a value of this shape, or None if it is none of these."""
        if len(shape) != len(self.sizes):
            return None
        for dim, (mine, other) in enumerate(zip(self.sizes, shape)):
            if other != (mine * total if dim == self.rows else mine):
                return None
        return 0 if self.rows is None else self.sizes[self.rows]


#: For each path, the patterns of what its module takes and gives.
Facts = Mapping[str, tuple[Pattern, ...]]

#: Says of an argument's name whether its tensors may have rows.
MayHaveRows = Callable[[str], bool]


def signature(args: tuple[Any, ...], kwargs: Mapping[str, Any], size: int) -> tuple[Any, ...]:
    """Return what tells calls of a module apart that may differ in how rows lie: their shapes, but for the rows."""

    def shape(tensor: torch.Tensor) -> tuple[Any, ...]:
        several = entries(tensor, size)
        return (several, *tensor.shape[bool(several) :], tensor.dtype)

    return tuple(
        (name, tuple(shape(leaf) for leaf in leaves(value)))
        for name, value in (*enumerate(args), *sorted(kwargs.items()))
    )


def find(
    model: Any, path: str, args: tuple[Any, ...], kwargs: Mapping[str, Any], size: int, rows: MayHaveRows
) -> Facts:
    """Find out how rows lie in the values of a module and all below it.

    Args:
        model: the model that holds it; it is run without its edits.
        path: the module, below the model.
        args, kwargs: what it is called with.
        size: how many rows that has.
        rows: says which keyword arguments may have rows.

    Returns:
        What was found; nothing where the module cannot run on fake tensors.
    """
    bare = copy.copy(model)
    bare.clear_edits()
    shown = model.__dict__["_shapes"]

    def sized(count: int) -> tuple[Any, Any]:
        def resize(tensor: torch.Tensor) -> torch.Tensor:
            several = entries(tensor, size)
            return tensor.new_zeros((count * several, *tensor.shape[1:])) if several else tensor

        mine = {name: tree_map(resize, value) if rows(name) else value for name, value in kwargs.items()}
        return unshared(tree_map(resize, args)), unshared(mine)

    try:
        few, many = (_shapes(bare.get(path), *sized(count)) for count in (_FEW, _MANY))
    except (ScanError, RuntimeError):
        return {}  # what was taken for rows is something else, or numbers are needed
    finally:
        model.__dict__["_shapes"] = shown  # what the user scanned last
    return {
        where: tuple(dict.fromkeys(_pattern(*shapes) for shapes in zip(few[where], many[where])))
        for where in few
        if len(few[where]) == len(many.get(where, ()))
    }


def unshared(value: Any) -> Any:
    """Return a structure with lists and dicts of its own: some modules keep notes in those that they are called with."""
    if isinstance(value, (list, tuple)) and type(value) in (list, tuple):
        return type(value)(unshared(part) for part in value)
    return {key: unshared(part) for key, part in value.items()} if type(value) is dict else value


def _shapes(envoy: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, list[tuple[int, ...]]]:
    with torch.no_grad(), envoy.scan(*args, **kwargs) as tracer:
        cache = tracer.cache(device="meta", include_inputs=True)
    shapes: dict[str, list[tuple[int, ...]]] = {}
    for path, visits in cache.items():
        for visit in visits if isinstance(visits, list) else [visits]:
            with contextlib.suppress(AttributeError):
                shapes.setdefault(path, []).extend(tuple(leaf.shape) for leaf in leaves((visit.inputs, visit.output)))
    return shapes


def _pattern(few: tuple[int, ...], many: tuple[int, ...]) -> Pattern:
    if len(few) != len(many):
        return Pattern((-1,), None)  # of another shape each time: none that will be met again
    grown = [dim for dim, (a, b) in enumerate(zip(few, many)) if a != b]
    if len(grown) == 1 and few[grown[0]] * _MANY == many[grown[0]] * _FEW:
        sizes = tuple(size // _FEW if dim == grown[0] else size for dim, size in enumerate(few))
        return Pattern(sizes, grown[0])
    return Pattern(few, None)
