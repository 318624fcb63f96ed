"""Objects of registered classes in NDIF's results: filled from what they held, without asking their classes.

The one idea: while torch reads, a plain dictionary stands for each such object and takes what the pickle puts into it. Once
all is read, each becomes an object of its class. So no constructor and no `__setstate__` runs, as in results of our own wire.
"""

from __future__ import annotations

import inspect
import io
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import torch

from nnsight.plugin import WireError, registered_class


def is_possible() -> bool:
    """Whether this torch can be told that something else stands for a name; older ones refuse such objects.

    relies on: `add_safe_globals` is annotated to take a callable with a name, torch 2.6 and later
    """
    known = getattr(torch.serialization, "add_safe_globals", None)
    taken = inspect.signature(known).parameters["safe_globals"].annotation if known is not None else ""
    return "uple" in str(taken) and hasattr(torch.serialization, "get_unsafe_globals_in_checkpoint")


class Opening:
    """One reading.

    Attributes:
        names: what torch is to know: for each registered class that the bytes name, what stands for its objects.
    """

    def __init__(self, data: bytes) -> None:
        self._held: dict[int, tuple[type, OrderedDict[Any, Any]]] = {}
        self._made: dict[int, Any] = {}
        self.names: list[Any] = []
        for name in torch.serialization.get_unsafe_globals_in_checkpoint(io.BytesIO(data)) if is_possible() else ():
            module, _, path = name.rpartition(".")
            cls = registered_class(module, path)
            if cls is not None:
                self.names.append((self._stand_in(cls), name))

    def close(self, value: Any) -> Any:
        """Return a value with the objects in place of what stood for them."""
        return value if not self._held else self._closed(value)

    def _stand_in(self, cls: type) -> type:
        held = self._held

        class StandIn:
            def __new__(_, *given: Any) -> Any:  # what it is made from is in it once more
                made: OrderedDict[Any, Any] = OrderedDict()
                held[id(made)] = (cls, made)
                return made

        return StandIn

    def _closed(self, value: Any) -> Any:
        kind = type(value)
        if kind not in (dict, OrderedDict, list, tuple):
            return value
        known = self._made.get(id(value))
        if known is not None:
            return known
        if id(value) in self._held:
            return self._object(value)
        if kind is tuple:
            return tuple(map(self._closed, value))
        if kind is list:
            self._made[id(value)] = value
            value[:] = map(self._closed, list(value))
            return value
        self._made[id(value)] = value
        for key, item in list(value.items()):
            value[key] = self._closed(item)
        return value

    def _object(self, held: OrderedDict[Any, Any]) -> Any:
        cls: Any = self._held[id(held)][0]
        is_dict = issubclass(cls, dict)
        if not is_dict and (held or issubclass(cls, (list, tuple))):
            raise WireError(f"the result holds a {cls.__qualname__} that is not written as such objects are")
        base: Any = OrderedDict if issubclass(cls, OrderedDict) else dict if is_dict else object
        made = self._made[id(held)] = base.__new__(cls)
        for key, item in held.items():
            base.__setitem__(made, key, self._closed(item))
        self._fill(made, vars(held))
        return made

    def _fill(self, made: Any, attributes: Mapping[Any, Any]) -> None:
        for name, item in attributes.items():
            if not isinstance(name, str) or (name.startswith("__") and name.endswith("__")):
                raise WireError("an attribute of an object in the result has a name that it cannot have")
            vars(made)[name] = self._closed(item)
