"""The values of layers under standard names, and one layer. What the names mean is `names.py`'s."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from .values import States

if TYPE_CHECKING:
    from .names import StandardNames


class PerLayer:
    """A value of every layer: index it with a layer's number to read it, and assign to change it.

    Args:
        name: its standard name.
        values: for each layer what serves it, or why nothing does.
        refuse: makes the error for a name that is absent.
    """

    def __init__(self, name: str, values: Sequence[States | str], refuse: Callable[[str, str], Exception]) -> None:
        self._name = name
        self._values = list(values)
        self._refuse = refuse

    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return [self[at] for at in range(*index.indices(len(self)))]
        return self._at(index).get()

    def __setitem__(self, index: int, value: Any) -> None:
        self._at(index).set(value)

    def __len__(self) -> int:
        return len(self._values)

    def _at(self, index: Any) -> States:
        if isinstance(index, bool) or not isinstance(index, int):
            raise TypeError(f"`{self._name}` is indexed with the number of a layer, not {index!r}")
        if not -len(self) <= index < len(self):
            raise IndexError(f"`{self._name}[{index}]`: the model has {len(self)} layers")
        found = self._values[index]
        if isinstance(found, str):
            raise self._refuse(f"{self._name}[{index % len(self)}]", found)
        return found

    def shown(self, index: int) -> str:
        """Say where the value of one layer lies, or why it has none."""
        found = self._values[index]
        return found if isinstance(found, str) else found.shown

    def __repr__(self) -> str:
        return f"<`{self._name}` of {len(self)} layers: index it with the number of one>"


class Layer:
    """One layer: its envoy, with `.self_attn`, `.mlp`, and `.input` and `.output` that are the residual stream."""

    def __init__(self, names: StandardNames, index: int) -> None:
        own = self.__dict__
        own["_names"] = names
        own["_index"] = index
        own["_envoy"] = names.model.get(names.found.blocks[index].path)

    def __reduce__(self) -> Any:
        return Layer, (self._names, self._index)

    @property
    def self_attn(self) -> Any:
        """The envoy of the attention."""
        return self._names._module_of("self_attn", self._index)

    @property
    def mlp(self) -> Any:
        """The envoy of the feed-forward part."""
        return self._names._module_of("mlp", self._index)

    @property
    def input(self) -> Any:
        """The residual stream before the layer [1, positions, hidden]."""
        return self._names.layers_input[self._index]

    @property
    def output(self) -> Any:
        """The residual stream after the layer [1, positions, hidden]."""
        return self._names.layers_output[self._index]

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "input":
            self._names.layers_input[self._index] = value
        elif name == "output":
            self._names.layers_output[self._index] = value
        else:
            setattr(self._envoy, name, value)

    def __getattr__(self, name: str) -> Any:
        again = getattr(type(self), name, None)
        if isinstance(again, property):
            return again.fget(self)  # type: ignore[misc]  # it raised an AttributeError, which Python takes for a missing name
        return getattr(self.__dict__["_envoy"], name)

    def __repr__(self) -> str:
        return repr(self._envoy)
