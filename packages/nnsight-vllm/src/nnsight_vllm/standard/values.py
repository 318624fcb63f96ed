"""How a value of a standard name lies at its site in an engine, and how it is shown: [1, positions, hidden].

A request is one row, and an engine has the positions of all requests in one dimension, or in one row (`worker/layout.py`).
A layer with fused residuals gives what its last part gave and the stream before that part, which the next norm adds up: the
stream is their sum.
"""

from __future__ import annotations

from typing import Any

import torch

from nnsight.plugin import eproperty, leaves, tree_map

from .found import Spot


class States:
    """Hidden states [1, positions, hidden] of one model under one name.

    Args:
        name: how messages call them.
        model: the model.
        spot: where they lie.
        hidden: their size.
    """

    def __init__(self, name: str, model: Any, spot: Spot, hidden: int) -> None:
        self._envoy = model.get(spot.path)
        self._prop = _property(name, spot, hidden)
        self.shown = f"{self._envoy._path}.{spot.site}" + ("" if spot.scale == 1.0 else f" * {spot.scale:g}")

    def get(self) -> Any:
        """Return the value, in the trace that is open."""
        return self._prop.fget(self._envoy)  # type: ignore[misc]  # an eproperty has a getter

    def set(self, value: Any) -> None:
        """Replace the value, in the trace that is open."""
        self._prop.fset(self._envoy, value)  # type: ignore[misc]  # and a setter


def _property(name: str, spot: Spot, hidden: int) -> eproperty:
    def states(value: Any) -> list[torch.Tensor]:
        found = [one for one in leaves(value) if one.is_floating_point() and one.shape[-1:] == (hidden,)]
        found = [one for one in found if one.dim() == 2 or (one.dim() == 3 and one.shape[0] == 1)]
        if not found:
            raise ValueError(f"`{name}`: there is no such tensor at its site in this run")
        return found if spot.summed else found[:1]

    def read(envoy: Any, value: Any) -> torch.Tensor:
        found = states(value)
        shown = found[0] if len(found) == 1 else found[0] + found[1]
        shown = shown if spot.scale == 1.0 else shown * spot.scale
        return shown if shown.dim() == 3 else shown[None]

    def write(envoy: Any, value: Any, new: Any) -> Any:
        found = states(value)
        flat = found[0].dim() == 2
        put = _fitting(name, new, (1, *found[0].shape) if flat else found[0].shape)
        put = put[0] if flat else put
        put = put if spot.scale == 1.0 else put / spot.scale
        # Of a sum, all is put where the stream lies: what would be taken from it and added again would be rounded twice.
        puts = [torch.zeros_like(found[0]), put] if len(found) == 2 else [put]
        by = {id(old): one for old, one in zip(found, puts)}
        return tree_map(lambda leaf: by.get(id(leaf), leaf), value)

    return _named(name, eproperty(read, site=spot.site).setter(write))


def logits_of(name: str) -> eproperty:
    """Make the property of the logits of a step [1, 1, tokens]."""

    def read(envoy: Any, value: Any) -> torch.Tensor:
        shown: torch.Tensor = value[None]
        return shown

    def write(envoy: Any, value: Any, new: Any) -> Any:
        return _fitting(name, new, (1, *value.shape))[0]

    return _named(name, eproperty(read).setter(write))


def _named(name: str, prop: eproperty) -> eproperty:
    prop.name = name
    return prop


def _fitting(name: str, new: Any, shape: tuple[int, ...]) -> torch.Tensor:
    if not isinstance(new, torch.Tensor):
        raise TypeError(f"`{name}` is a tensor, and a {type(new).__name__} was assigned to it")
    if new.shape != shape:
        raise ValueError(f"`{name}` is {list(shape)}, and a tensor of {list(new.shape)} was assigned to it")
    return new
