"""`Value`: what serves one value under a standard name, and `PerLayer`: those of all layers.

A value is an `eproperty` without a class: it is served like `.output`, in traces, invokes, steps and edits alike, and an edit
in place of what it shows is carried back to its site.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from ..served import ReadMap, WriteMap, eproperty, first_input, replace_first_input
from ..sites import INPUT, OUTPUT
from .vocabulary import VALUES


class Value:
    """One value of a model under a name.

    Args:
        name: how messages call it.
        envoy: the module at which it passes.
        read: shows what passes there under the name's meaning, `read(envoy, value)`. If not given: an output as it is, of
            an input the first argument.
        write: puts what was assigned in place of it, `write(envoy, value, assigned)`; needed where there is a `read`.
        site: `"output"`, or `"input"`, which maps see as the pair of positional and keyword arguments.
        shown: where it lies, for people; the site's path if not given.
    """

    def __init__(
        self,
        name: str,
        envoy: Any,
        read: ReadMap | None = None,
        write: WriteMap | None = None,
        site: str = OUTPUT,
        shown: str | None = None,
    ) -> None:
        if read is None and site == INPUT:
            read, write = first_input, replace_first_input
        self._envoy = envoy
        self._prop = eproperty(read, site=site)
        self._prop.name = name
        if write is not None:
            self._prop.setter(write)
        self.shown = f"{envoy._path}.{site}" if shown is None else shown

    def get(self) -> Any:
        """Return the value, in the trace that is open."""
        return self._prop.fget(self._envoy)  # type: ignore[misc]  # an eproperty has a getter

    def set(self, value: Any) -> None:
        """Replace the value, in the trace that is open."""
        self._prop.fset(self._envoy, value)  # type: ignore[misc]  # and a setter


def tensor_for(name: str, new: Any, shape: Sequence[int] | None = None) -> torch.Tensor:
    """Return what is assigned to a name, which has to be a tensor.

    Args:
        name: the name.
        new: what is assigned.
        shape: the shape that it has to have; any, if not given.

    Raises:
        TypeError, ValueError: it is no tensor, or has another shape.
    """
    if not isinstance(new, torch.Tensor):
        raise TypeError(f"`{name}` is a tensor, and a {type(new).__name__} was assigned to it")
    if shape is not None and tuple(new.shape) != tuple(shape):
        raise ValueError(f"`{name}` is {list(shape)}, and a tensor of {list(new.shape)} was assigned to it")
    return new


class PerLayer:
    """A value of every layer: index it with a layer's number to read it, and assign to change it.

    Args:
        name: its standard name.
        values: for each layer what serves it, or why nothing does.
        refuse: makes the error for a name that is absent, of the name and the reason.
    """

    def __init__(self, name: str, values: Sequence[Value | str], refuse: Callable[[str, str], Exception]) -> None:
        self._name = name
        self.values = list(values)
        self._refuse = refuse

    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return [self[at] for at in range(*index.indices(len(self)))]
        return self._at(index).get()

    def __setitem__(self, index: int, value: Any) -> None:
        self._at(index).set(value)

    def __len__(self) -> int:
        return len(self.values)

    def __iter__(self) -> Iterator[Any]:
        return (self[at] for at in range(len(self)))

    @property
    def absent(self) -> dict[int, str]:
        """The layers that have no such value, each with the reason."""
        return {at: value for at, value in enumerate(self.values) if isinstance(value, str)}

    def _at(self, index: Any) -> Value:
        if isinstance(index, bool) or not isinstance(index, int):
            raise TypeError(f"`{self._name}` is indexed with the number of a layer, not with {index!r}")
        count = len(self)
        if not -count <= index < count:
            raise IndexError(f"`{self._name}[{index}]`: the model has {count} layers")
        value = self.values[index]
        if isinstance(value, str):
            raise self._refuse(f"{self._name}[{index % count}]", value)
        return value

    def __repr__(self) -> str:
        what, shape = VALUES[self._name]
        missing = list(self.absent)
        lacks = f"; absent in layers {missing}" if missing else ""
        return f"<`{self._name}` of {len(self)} layers, {shape}: {what}{lacks}>"
