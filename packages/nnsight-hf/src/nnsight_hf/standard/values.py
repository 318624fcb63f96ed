"""Values under a standard name: the hidden states at a site, whatever they are wrapped in and multiplied by.

Each is an `eproperty` without a class: the core serves it like `.output`, in traces, invokes, steps and edits alike, and
carries an edit of a copy back to its site.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch

from nnsight.plugin import eproperty, leaves, tree_map
from nnsight_hf.standard.record import is_states

Finds = Callable[[torch.Tensor], bool]


def states(name: str, hidden: int, site: str = "output", scale: float = 1.0) -> eproperty:
    """Make the property of hidden states [rows, positions, hidden]: the first that lie at a site.

    Args:
        name: how messages call it.
        hidden: the size of the hidden states.
        site: `"output"` or `"input"`.
        scale: by what the model multiplies them before it adds them up.
    """
    return part(name, lambda tensor: is_states(tensor, hidden), site, scale)


def part(name: str, is_it: Finds, site: str = "output", scale: float = 1.0, reads_only: bool = False) -> eproperty:
    """Make the property of the first tensor at a site for which `is_it` says yes; see `states`.

    With `reads_only`, an assignment is refused: for what the model gives away and does not use any more.
    """

    def read(envoy: Any, value: Any) -> Any:
        found = _first(value, is_it, name)
        return found if scale == 1.0 else found * scale

    def write(envoy: Any, value: Any, new: Any) -> Any:
        if not isinstance(new, torch.Tensor):
            raise TypeError(f"`{name}` is a tensor, and a {type(new).__name__} was assigned to it")
        old = _first(value, is_it, name)
        put = new if scale == 1.0 else new / scale
        return tree_map(lambda leaf: put if leaf is old else leaf, value)

    prop = eproperty(read, site=site)
    prop.name = name
    if not reads_only:
        prop.setter(write)
    return prop


def _first(value: Any, is_it: Finds, name: str) -> torch.Tensor:
    for leaf in leaves(value):
        if is_it(leaf):
            return leaf
    raise ValueError(f"`{name}`: there is no such tensor at its site in this run")


class PerLayer:
    """A value of every layer: index it with a layer's number to read it, and assign to change it.

    Args:
        name: its standard name.
        envoys: for each layer the envoy at which it is served, or None.
        props: for each layer the property that serves it.
        why: for each layer why there is none; "" where there is one.
        refuse: makes the error for a name that is absent.
    """

    def __init__(
        self,
        name: str,
        envoys: list[Any],
        props: list[eproperty | None],
        why: list[str],
        refuse: Callable[[str, str], Exception],
    ) -> None:
        self._name = name
        self._envoys = envoys
        self._props = props
        self._why = why
        self._refuse = refuse

    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return [self[at] for at in range(*index.indices(len(self)))]
        prop, envoy = self._at(index)
        return prop.fget(envoy)  # type: ignore[misc]  # an eproperty has a getter

    def __setitem__(self, index: int, value: Any) -> None:
        prop, envoy = self._at(index)
        prop.fset(envoy, value)  # type: ignore[misc]  # and a setter

    def _at(self, index: Any) -> tuple[eproperty, Any]:
        if isinstance(index, bool) or not isinstance(index, int):
            raise TypeError(f"`{self._name}` is indexed with the number of a layer, not with {index!r}")
        count = len(self)
        if not -count <= index < count:
            raise IndexError(f"`{self._name}[{index}]`: the model has {count} layers")
        prop = self._props[index]
        if prop is None:
            raise self._refuse(f"{self._name}[{index}]", self._why[index])
        return prop, self._envoys[index]

    def __len__(self) -> int:
        return len(self._props)

    def __iter__(self) -> Iterator[Any]:
        return (self[at] for at in range(len(self)))

    def __repr__(self) -> str:
        missing = [at for at, prop in enumerate(self._props) if prop is None]
        return f"{self._name}[0..{len(self) - 1}]" + (f", absent in {missing}" if missing else "")
