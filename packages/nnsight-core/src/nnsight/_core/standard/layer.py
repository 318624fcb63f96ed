"""`Layer`: one layer under standard names."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .names import StandardNames


class Layer:
    """One layer: its envoy, with `.self_attn`, `.mixer`, `.mlp`, and `.input` and `.output` that are the residual stream."""

    def __init__(self, names: StandardNames, index: int) -> None:
        own = self.__dict__
        own["_names"] = names
        own["_index"] = index
        own["_envoy"] = names.model.get(names.resolution.blocks[index].path)

    def __reduce__(self) -> Any:
        return Layer, (self._names, self._index)

    @property
    def self_attn(self) -> Any:
        """The envoy of the attention."""
        return self._names._module_of("self_attn", self._index)

    @property
    def mixer(self) -> Any:
        """The envoy of what mixes positions: the attention, or what stands in for it."""
        return self._names._module_of("mixer", self._index)

    @property
    def mlp(self) -> Any:
        """The envoy of the feed-forward part."""
        return self._names._module_of("mlp", self._index)

    @property
    def input(self) -> Any:
        """The residual stream before the layer [rows, positions, hidden]."""
        return self._names.layers_input[self._index]

    @property
    def output(self) -> Any:
        """The residual stream after the layer [rows, positions, hidden]."""
        return self._names.layers_output[self._index]

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "input":
            self._names.layers_input[self._index] = value
        elif name == "output":
            self._names.layers_output[self._index] = value
        else:
            setattr(self._envoy, name, value)

    def __getattr__(self, name: str) -> Any:
        return behind(self, name, "_envoy")

    def __repr__(self) -> str:
        return repr(self._envoy)


def behind(view: Any, name: str, held: str) -> Any:
    """Return an attribute that a view has not got, of what it is a view of.

    Args:
        view: a view whose `__getattr__` was asked.
        name: the attribute.
        held: the name under which it has what it is a view of.
    """
    if name.startswith("__") or held not in vars(view):
        raise AttributeError(name)
    again = getattr(type(view), name, None)
    if isinstance(again, property):
        return again.fget(view)  # type: ignore[misc]  # it raised an AttributeError, which Python takes for a missing name
    return getattr(vars(view)[held], name)
