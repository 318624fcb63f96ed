"""Values under a standard name: hidden states at a site, whatever they are wrapped in, flattened or multiplied by.

A sum is served where its last term passes; the terms before it are noted when they pass, and are taken from what is assigned.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from nnsight.plugin import leaves, notes, standard, tree_map
from nnsight_hf.standard.found import Spot, Weights, Where
from nnsight_hf.standard.record import is_states

Finds = Callable[[torch.Tensor], bool]

#: The note of how many rows and positions the step has.
_SHAPE = "rows and positions"


class Part(standard.Value):
    """The first tensor at a site for which `is_it` says yes.

    Args:
        name: how messages call it.
        envoy: the module.
        is_it: says which tensor it is.
    """

    def __init__(self, name: str, envoy: Any, is_it: Finds) -> None:
        def read(envoy: Any, value: Any) -> Any:
            return _first(value, is_it, name)

        def write(envoy: Any, value: Any, new: Any) -> Any:
            return _put(value, _first(value, is_it, name), standard.tensor_for(name, new))

        super().__init__(name, envoy, read, write)


class States(standard.Value):
    """Hidden states [rows, positions, hidden] of one model under one name.

    Args:
        name: how messages call them.
        model: the model.
        where: where they lie.
        hidden: their size.
        shown: where the stream before the layer lies: its shape is that of what lies flat.
        notes_shape: whether some value of the model lies flat, so that the shape is worth noting.
    """

    def __init__(
        self, name: str, model: Any, where: Where, hidden: int, shown: Spot | None = None, notes_shape: bool = False
    ) -> None:
        self._notes_shape = notes_shape
        self._name, self._spot, self._hidden = name, where[-1], hidden
        self._before = [(spot, States(name, model, (spot,), hidden, shown)) for spot in where[:-1]]
        flat = any(spot.flat for spot in where)
        self._shape = States(name, model, (shown,), hidden, notes_shape=True) if flat and shown is not None else None
        envoy, spot = model.get(self._spot.path), self._spot
        lies = " + ".join([*(state.shown for _, state in self._before), spot.shown(envoy._path)])
        super().__init__(name, envoy, self._read, self._write, spot.site, lies)

    def _is_it(self, tensor: torch.Tensor) -> bool:
        return is_states(tensor, self._hidden, self._spot.flat)

    def _rest(self, envoy: Any) -> list[torch.Tensor]:
        return [notes(envoy)[other] for other, _ in self._before]

    def _read(self, envoy: Any, value: Any) -> Any:
        spot, found = self._spot, _first(value, self._is_it, self._name)
        if spot.flat:
            found = found.unflatten(0, notes(envoy)[_SHAPE])
        found = found if spot.scale == 1.0 else found * spot.scale
        for other in self._rest(envoy):
            found = found + other
        return found

    def _write(self, envoy: Any, value: Any, new: Any) -> Any:
        spot, put, old = self._spot, standard.tensor_for(self._name, new), _first(value, self._is_it, self._name)
        for other in self._rest(envoy):
            put = put - other
        put = put if spot.scale == 1.0 else put / spot.scale
        if spot.flat:
            put = standard.tensor_for(self._name, put, (*notes(envoy)[_SHAPE], self._hidden)).flatten(0, 1)
        return _put(value, old, put)

    def get(self) -> Any:
        """Return the value, in the trace that is open."""
        self._note()
        value = super().get()
        if self._notes_shape:
            notes(self._envoy)[_SHAPE] = value.shape[:2]
        return value

    def set(self, value: Any) -> None:
        """Replace the value, in the trace that is open."""
        self._note()
        super().set(value)

    def _note(self) -> None:
        """Note what passes before the value and belongs to it; what was noted already may have passed."""
        if self._shape is not None and _SHAPE not in notes(self._envoy):
            self._shape.get()
        for spot, states in self._before:
            if spot not in notes(self._envoy):
                notes(self._envoy)[spot] = states.get()


class Probabilities(Part):
    """The weights over positions of one attention [rows, heads, positions, positions], where it multiplies values with them.

    Args:
        name: how messages call them.
        model: the model.
        where: where they lie.
    """

    def __init__(self, name: str, model: Any, where: Weights) -> None:
        super().__init__(name, model.get(where.path), lambda tensor: tensor.dim() == 4)
        self._name, self._operations = name, where.operations
        self.shown = ".source.".join([self._envoy._path, *where.operations])

    def _operation(self) -> Any:
        at = self._envoy
        for name in self._operations:
            at = at.source[name]
        return at

    def get(self) -> Any:
        """Return the value, in the trace that is open."""
        return self._operation().output if self._operations else super().get()

    def set(self, value: Any) -> None:
        """Replace the value, in the trace that is open."""
        if self._operations:
            self._operation().output = standard.tensor_for(self._name, value)
        else:
            super().set(value)


def _first(value: Any, is_it: Finds, name: str) -> torch.Tensor:
    for leaf in leaves(value):
        if is_it(leaf):
            return leaf
    raise ValueError(f"`{name}`: there is no such tensor at its site in this run")


def _put(value: Any, old: torch.Tensor, new: torch.Tensor) -> Any:
    return tree_map(lambda leaf: new if leaf is old else leaf, value)
