"""`Layer`: one layer under standard names. What the names mean is `names.py`'s."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nnsight_hf.standard.names import StandardNames


class Layer:
    """One layer: its envoy, with `.self_attn`, `.mixer`, `.mlp`, and `.input` and `.output` that are tensors."""

    def __init__(self, names: StandardNames, index: int) -> None:
        own = self.__dict__
        own["_names"] = names
        own["_index"] = index
        own["_envoy"] = names._envoy(names.resolution.blocks[index].path)

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
        """The residual stream before the layer."""
        return self._names.layers_input[self._index]

    @property
    def output(self) -> Any:
        """The residual stream after the layer."""
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
