"""Values under a standard name: hidden states at a site, whatever they are wrapped in, flattened or multiplied by.

Each is an `eproperty` without a class: the core serves it like `.output`, in traces, invokes, steps and edits alike, and
carries an edit of a copy back to its site. A sum is served where its last term passes; the terms before it are noted when
they pass, and are taken from what is assigned.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from nnsight.plugin import eproperty, leaves, notes, tree_map
from nnsight_hf.standard.found import Spot, Weights, Where
from nnsight_hf.standard.record import is_states

Finds = Callable[[torch.Tensor], bool]

#: The note of how many rows and positions the step has.
_SHAPE = "rows and positions"


def part(name: str, is_it: Finds, site: str = "output") -> eproperty:
    """Make the property of the first tensor at a site for which `is_it` says yes.

    Args:
        name: how messages call it.
        is_it: says which tensor it is.
        site: `"output"` or `"input"`.
    """

    def read(envoy: Any, value: Any) -> Any:
        return _first(value, is_it, name)

    def write(envoy: Any, value: Any, new: Any) -> Any:
        return _put(value, _first(value, is_it, name), _tensor(new, name))

    prop = eproperty(read, site=site)
    prop.name = name
    return prop.setter(write)


class States:
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
        self._envoy = model.get(where[-1].path)
        self._spot = where[-1]
        self._before = [(spot, States(name, model, (spot,), hidden, shown)) for spot in where[:-1]]
        flat = any(spot.flat for spot in where)
        self._shown = States(name, model, (shown,), hidden, notes_shape=True) if flat and shown is not None else None
        self._prop = self._property(name, where[-1], hidden)

    def _property(self, name: str, spot: Spot, hidden: int) -> eproperty:
        def is_it(tensor: torch.Tensor) -> bool:
            return is_states(tensor, hidden, spot.flat)

        def rest(envoy: Any) -> list[torch.Tensor]:
            return [notes(envoy)[other] for other, _ in self._before]

        def read(envoy: Any, value: Any) -> Any:
            found = _first(value, is_it, name)
            if spot.flat:
                found = found.unflatten(0, notes(envoy)[_SHAPE])
            found = found if spot.scale == 1.0 else found * spot.scale
            for other in rest(envoy):
                found = found + other
            return found

        def write(envoy: Any, value: Any, new: Any) -> Any:
            put, old = _tensor(new, name), _first(value, is_it, name)
            for other in rest(envoy):
                put = put - other
            put = put if spot.scale == 1.0 else put / spot.scale
            if spot.flat:
                if put.shape[:2] != notes(envoy)[_SHAPE]:
                    wanted = [*notes(envoy)[_SHAPE], hidden]
                    raise ValueError(f"`{name}` is {wanted}, and a tensor of {list(put.shape)} was assigned to it")
                put = put.flatten(0, 1)
            return _put(value, old, put)

        prop = eproperty(read, site=spot.site)
        prop.name = name
        return prop.setter(write)

    def get(self) -> Any:
        """Return the value, in the trace that is open."""
        self._note()
        value = self._prop.fget(self._envoy)  # type: ignore[misc]  # an eproperty has a getter
        if self._notes_shape:
            notes(self._envoy)[_SHAPE] = value.shape[:2]
        return value

    def set(self, value: Any) -> None:
        """Replace the value, in the trace that is open."""
        self._note()
        self._prop.fset(self._envoy, value)  # type: ignore[misc]  # and a setter

    def _note(self) -> None:
        """Note what passes before the value and belongs to it; what was noted already may have passed."""
        if self._shown is not None and _SHAPE not in notes(self._envoy):
            self._shown.get()
        for spot, states in self._before:
            if spot not in notes(self._envoy):
                notes(self._envoy)[spot] = states.get()

    @property
    def shown(self) -> str:
        """Where it lies, for the table."""
        spot = self._spot
        times = "" if spot.scale == 1.0 else f" * {spot.scale:g}"
        return " + ".join([*(state.shown for _, state in self._before), f"{self._envoy._path}.{spot.site}{times}"])


class Probabilities:
    """The weights over positions of one attention [rows, heads, positions, positions], where it multiplies values with them.

    Args:
        name: how messages call them.
        model: the model.
        where: where they lie.
    """

    def __init__(self, name: str, model: Any, where: Weights) -> None:
        self._envoy = model.get(where.path)
        self._operations = where.operations
        self._prop = part(name, lambda tensor: tensor.dim() == 4)

    def _operation(self) -> Any:
        at = self._envoy
        for name in self._operations:
            at = at.source[name]
        return at

    def get(self) -> Any:
        """Return the value, in the trace that is open."""
        return self._operation().output if self._operations else self._prop.fget(self._envoy)  # type: ignore[misc]

    def set(self, value: Any) -> None:
        """Replace the value, in the trace that is open."""
        if self._operations:
            self._operation().output = _tensor(value, self._prop.name)
        else:
            self._prop.fset(self._envoy, value)  # type: ignore[misc]  # it has a setter

    @property
    def shown(self) -> str:
        """Where it lies, for the table."""
        return ".source.".join([self._envoy._path, *self._operations])


def _first(value: Any, is_it: Finds, name: str) -> torch.Tensor:
    for leaf in leaves(value):
        if is_it(leaf):
            return leaf
    raise ValueError(f"`{name}`: there is no such tensor at its site in this run")


def _put(value: Any, old: torch.Tensor, new: torch.Tensor) -> Any:
    return tree_map(lambda leaf: new if leaf is old else leaf, value)


def _tensor(new: Any, name: str) -> torch.Tensor:
    if not isinstance(new, torch.Tensor):
        raise TypeError(f"`{name}` is a tensor, and a {type(new).__name__} was assigned to it")
    return new


class PerLayer:
    """A value of every layer: index it with a layer's number to read it, and assign to change it.

    Args:
        name: its standard name.
        values: for each layer what serves it, or None.
        why: for each layer why there is none; "" where there is one.
        refuse: makes the error for a name that is absent.
    """

    def __init__(
        self,
        name: str,
        values: Sequence[States | Probabilities | None],
        why: Sequence[str],
        refuse: Callable[[str, str], Exception],
    ) -> None:
        self._name = name
        self._values = list(values)
        self._why = list(why)
        self._refuse = refuse

    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return [self[at] for at in range(*index.indices(len(self)))]
        return self._at(index).get()

    def __setitem__(self, index: int, value: Any) -> None:
        self._at(index).set(value)

    def _at(self, index: Any) -> States | Probabilities:
        if isinstance(index, bool) or not isinstance(index, int):
            raise TypeError(f"`{self._name}` is indexed with the number of a layer, not with {index!r}")
        count = len(self)
        if not -count <= index < count:
            raise IndexError(f"`{self._name}[{index}]`: the model has {count} layers")
        value = self._values[index]
        if value is None:
            raise self._refuse(f"{self._name}[{index}]", self._why[index])
        return value

    def __len__(self) -> int:
        return len(self._values)

    def __iter__(self) -> Iterator[Any]:
        return (self[at] for at in range(len(self)))

    def __repr__(self) -> str:
        missing = [at for at, value in enumerate(self._values) if value is None]
        return f"{self._name}[0..{len(self) - 1}]" + (f", absent in {missing}" if missing else "")
