"""The names that a captured body sees: its own, its siblings', those around it when it was captured, and globals.

The one idea: code that is not a function looks a name up in a mapping, and a mapping may be asked by `__missing__`.
The body's own level reads and writes `Names`. Functions, classes and comprehensions inside the body look past their
own names in globals and builtins; `BodyGlobals` and `BodyBuiltins` stand there and ask `Names`. What a write to a
`global` name means is settled before, in `rewrite.py`, which uses `RealGlobals`.

relies on: LOAD_NAME and LOAD_GLOBAL honour `__missing__` of dict subclasses as locals, globals and builtins; in a
class body LOAD_NAME asks the globals without it, and then the builtins with it. CPython 3.10 to 3.14.
"""

from __future__ import annotations

import builtins
from collections.abc import Callable, Iterable
from types import ModuleType
from typing import TYPE_CHECKING, Any

from . import data

if TYPE_CHECKING:
    from .body import Block

# What the interpreter, the import system, warnings and linecache read from a frame's globals without asking.
_PHYSICAL = ("__name__", "__package__", "__spec__", "__loader__", "__file__", "__doc__", "__path__")

Lookup = Callable[[str], Any]


class Names(dict[str, Any]):
    """The bindings of one run of a body: `dict(names)` is what the body itself bound.

    A name that the body did not bind is looked for in `elsewhere(name)` if that is set (it returns the value, waits
    for it, or raises KeyError), then in `outer` (what the frame held when the body was captured), then in the real
    globals and builtins.
    """

    __slots__ = ("elsewhere", "outer", "real")

    def __init__(self, outer: dict[str, Any], real: dict[str, Any], elsewhere: Lookup | None = None) -> None:
        self.outer = outer  # the body's own, never written to
        self.real = real
        self.elsewhere = elsewhere

    def __missing__(self, name: str) -> Any:
        if self.elsewhere is not None:
            try:
                return self.elsewhere(name)
            except KeyError:
                pass
        outer = self.outer
        if name in outer:
            return outer[name]
        real = self.real
        return real[name] if name in real else _global(real, name)

    def __delitem__(self, name: str) -> None:
        hidden = name in self.outer
        if hidden:
            # The dict is the body's, which may run more than once.
            self.outer = {other: value for other, value in self.outer.items() if other != name}
        if name in self:
            super().__delitem__(name)
        elif not hidden:
            raise KeyError(name)

    def bind(self, name: str, value: Any) -> Any:
        """Bind and return a value: what `name := value` does."""
        self[name] = value
        return value

    def known(self, names: Iterable[str]) -> dict[str, Any]:
        """Give those of `names` that are bound here or were around the body, waiting for none."""
        return {
            name: self[name] if name in self else self.outer[name]
            for name in names
            if name in self or name in self.outer
        }


class BodyGlobals(dict[str, Any]):
    """The globals of a body: nearly empty, asking the body's `Names` for everything; writes reach the real globals."""

    __slots__ = ("block", "names")

    def __init__(self, physical: dict[str, Any], names: Names, block: Block) -> None:
        dict.__init__(self, physical)
        self.names = names
        self.block = block
        around = BodyBuiltins(physical["__builtins__"])
        around.names = names
        dict.__setitem__(self, "__builtins__", around)
        if block.rewritten:
            # What `rewrite.py` refers to; no name in a program has a dot.
            everywhere = RealGlobals(self.real)
            self.update({".names": names, ".names :=": names.bind})
            self.update({".globals": everywhere, ".globals :=": everywhere.bind})
            self.update({".data": data.read, ".data =": data.check})

    @property
    def real(self) -> dict[str, Any]:
        """The globals of the module that the body stands in."""
        return _real(self.names.real)

    def __missing__(self, name: str) -> Any:
        return self.names[name]

    def __contains__(self, name: object) -> bool:
        return super().__contains__(name) or name in self.names or name in self.names.outer or name in self.names.real

    def get(self, name: str, default: Any = None) -> Any:
        return self[name] if name in self else default

    def __setitem__(self, name: str, value: Any) -> None:
        self.real[name] = value

    def __delitem__(self, name: str) -> None:
        del self.real[name]


class BodyBuiltins(dict[str, Any]):
    """The builtins of a body: the two that the interpreter takes without asking, and `Names` behind them."""

    __slots__ = ("names",)
    names: Names

    def __missing__(self, name: str) -> Any:
        return self.names[name]


def physical(real: dict[str, Any], warned: dict[Any, Any]) -> dict[str, Any]:
    """Give what the globals of a body really hold, and under `__builtins__` what its builtins do."""
    plain = _builtins(_real(real))
    found = {name: real[name] for name in _PHYSICAL if name in real}
    found["__builtins__"] = {name: plain[name] for name in ("__import__", "__build_class__")}
    # `warned` outlives the run, so that "once per place" holds for warnings given in a body that runs often.
    found["__warningregistry__"] = warned
    return found


class RealGlobals:
    """The globals of the module that a body stands in, for names which are declared `global`."""

    __slots__ = ("real",)

    def __init__(self, real: dict[str, Any]) -> None:
        self.real = real

    def __getitem__(self, name: str) -> Any:
        try:
            return _global(self.real, name)
        except KeyError:
            raise NameError(f"name {name!r} is not defined", name=name) from None

    def __setitem__(self, name: str, value: Any) -> None:
        self.real[name] = value

    def __delitem__(self, name: str) -> None:
        if name not in self.real:
            raise NameError(f"name {name!r} is not defined", name=name)
        del self.real[name]

    def bind(self, name: str, value: Any) -> Any:
        """Bind and return a value: what `name := value` does."""
        self.real[name] = value
        return value


def _real(around: dict[str, Any]) -> dict[str, Any]:
    return around.real if isinstance(around, BodyGlobals) else around


def _builtins(real: dict[str, Any]) -> dict[str, Any]:
    found = real.get("__builtins__", builtins)
    return vars(found) if isinstance(found, ModuleType) else found


def _global(real: dict[str, Any], name: str) -> Any:
    try:
        return real[name]
    except KeyError:
        return _builtins(real)[name]
