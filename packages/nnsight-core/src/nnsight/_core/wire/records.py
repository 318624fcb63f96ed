"""Objects in results: what they hold, and what class they were of, by name.

The one idea: who reads results runs nothing for it. A class is looked for among those that are imported already and were
registered, and its objects are filled without asking the class; of any other class comes a `Record`.
"""

from __future__ import annotations

import reprlib
import sys
from collections import OrderedDict
from enum import Enum, Flag
from types import MemberDescriptorType
from typing import Any

from ..errors import WireError
from .decoder import Decoder
from .encoder import Encoder
from .kinds import makes

_registered: list[type] = []


def register(cls: type) -> None:
    """Let objects of a class, and of those that inherit from it, be read from results as what they are."""
    if cls not in _registered:
        _registered.append(cls)


class Record:
    """An object of a class that was not registered: its attributes, and the name of its class.

    If the class is a kind of dict, list or tuple, so is the record. `nnsight.register(cls)` before results are read gives
    objects of the class itself.
    """

    _class = "?"

    @reprlib.recursive_repr("Record[...]")
    def __repr__(self) -> str:
        shown = [f"{name}={value!r}" for name, value in vars(self).items() if not name.startswith("_")]
        return f"Record[{self._class}]({', '.join([*self._held(), *shown])})"

    def _held(self) -> list[str]:
        return []

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise AttributeError(
            f"this record of a {self._class} has no {name!r}: it holds what was in it, not what it can do. To get the "
            "object itself, import its class and call nnsight.register(it) before the results are read",
            name=name,
            obj=self,
        )


class DictRecord(Record, dict[Any, Any]):
    """A record of a kind of dict."""

    def _held(self) -> list[str]:
        return [dict.__repr__(self)]


class ListRecord(Record, list[Any]):
    """A record of a kind of list."""

    def _held(self) -> list[str]:
        return [list.__repr__(self)]


class TupleRecord(Record, tuple[Any, ...]):
    """A record of a kind of tuple; the fields of a named one are attributes too."""

    def _held(self) -> list[str]:
        return [tuple.__repr__(self)]


_BASES: dict[str, tuple[type, type]] = {
    "dict": (dict, DictRecord),
    "list": (list, ListRecord),
    "tuple": (tuple, TupleRecord),
    "object": (object, Record),
}


def is_record(thing: Any) -> bool:
    """Whether what an object holds can be said without asking it how it is copied."""
    if isinstance(thing, (type, str, int, float, bytes)):
        return False
    cls = type(thing)
    if isinstance(thing, (dict, list, tuple)):
        return True
    plain = all(getattr(cls, name) is getattr(object, name) for name in ("__reduce__", "__reduce_ex__"))
    return plain and (hasattr(thing, "__dict__") or bool(_slots(thing)))


def write(encoder: Encoder, thing: Any) -> int:
    """Write an object as a record."""
    base = next(name for name, (kind, _) in _BASES.items() if isinstance(thing, kind))
    named = f"{type(thing).__module__}:{type(thing).__qualname__}"
    held = {**getattr(thing, "__dict__", {}), **_slots(thing)}

    def parts() -> list[Any]:
        said = [part for name, value in held.items() for part in (name, encoder.value(value, f".{name}"))]
        return [said, _items(encoder, thing)]

    if base == "tuple":
        fields = [name for name in getattr(thing, "_fields", ()) if isinstance(name, str)]
        return encoder.emit("record", named, base, fields, parts())
    return encoder.mutable(thing, ["record", named, base, []], parts)


def _items(encoder: Encoder, thing: Any) -> list[Any]:
    if isinstance(thing, dict):
        pairs = list(dict.items(thing))
        return [part for key, value in pairs for part in (encoder.value(key), encoder.value(value, f"[{key!r:.40}]"))]
    plain: Any = list.__iter__(thing) if isinstance(thing, list) else ()
    plain = tuple.__iter__(thing) if isinstance(thing, tuple) else plain
    return [encoder.value(item, f"[{number}]") for number, item in enumerate(plain)]


def _slots(thing: Any) -> dict[str, Any]:
    names: list[str] = []
    for cls in type(thing).__mro__:
        slots = cls.__dict__.get("__slots__", ())
        names += [slots] if isinstance(slots, str) else slots
    return {name: getattr(thing, name) for name in names if name not in _UNSEEN and hasattr(thing, name)}


_UNSEEN = ("__dict__", "__weakref__")


def write_member(encoder: Encoder, member: Any) -> int:
    """Write a member of an enumeration."""
    named = f"{type(member).__module__}:{type(member).__qualname__}"
    return encoder.emit("named", named, str(member.name), encoder.value(member.value, "its value"))


def write_class(encoder: Encoder, cls: type) -> int:
    """Write a class itself, by name."""
    return encoder.emit("class named", f"{cls.__module__}:{cls.__qualname__}")


# -- over here -------------------------------------------------------------------------------------------------------


@makes("record", safe=True)
def _make_record(decoder: Decoder, step: list[Any]) -> Any:
    _, named, base, fields = step[:4]
    kind, stand_in = _BASES[base]
    cls: Any = _class(decoder, named, kind) or stand_in
    new: Any = kind.__new__  # the class itself is not asked
    if kind is tuple:
        said, items = step[4]
        made: Any = tuple.__new__(cls, decoder.values(items))
        if cls is stand_in:
            vars(made)["_class"] = _shown(named)
            vars(made).update(zip(map(str, fields), made))
        _attributes(decoder, made, said)
        return made
    made = new(cls)
    if cls is stand_in:
        vars(made)["_class"] = _shown(named)
    return decoder.fillable(made, step, 4, lambda content: _fill(decoder, made, content))


def _fill(decoder: Decoder, made: Any, content: Any) -> None:
    said, items = content
    if isinstance(made, dict):
        base: Any = OrderedDict if isinstance(made, OrderedDict) else dict
        for key, value in decoder.items(items):
            base.__setitem__(made, key, value)
    elif isinstance(made, list):
        list.extend(made, decoder.values(items))
    _attributes(decoder, made, said)


def _attributes(decoder: Decoder, made: Any, said: Any) -> None:
    for name, value in decoder.pairs(said):
        if not isinstance(name, str) or (name.startswith("__") and name.endswith("__")):
            raise WireError("an attribute of a record has a name that it cannot have")
        slot = next((cls.__dict__[name] for cls in type(made).__mro__ if name in cls.__dict__), None)
        if isinstance(slot, MemberDescriptorType):
            slot.__set__(made, value)
        else:
            vars(made)[name] = value  # past properties, which would run


@makes("named", safe=True)
def _make_named(decoder: Decoder, step: list[Any]) -> Any:
    _, named, name, value = step
    cls = _class(decoder, named, Enum)
    if cls is not None:
        members: dict[str, Any] = cls.__dict__["_member_map_"]
        if isinstance(name, str) and name in members:
            return members[name]
        found = decoder.value(value)
        if type(found) is not int or not issubclass(cls, Flag):  # several flags at once have no name
            raise WireError(f"{_shown(named)} has no such member")
        return cls(found)
    made = Record()
    vars(made).update(_class=_shown(named), name=name, value=decoder.value(value))
    return made


@makes("class named", safe=True)
def _make_class_named(decoder: Decoder, step: list[Any]) -> Any:
    cls = _class(decoder, step[1], object)
    if cls is not None:
        return cls
    made = Record()
    vars(made)["_class"] = f"class {_shown(step[1])}"
    return made


def _class(decoder: Decoder, named: str, base: type) -> type | None:
    """Return the class of this name if its objects may be made: it was registered, or the sender is trusted."""
    module, _, path = named.partition(":")
    if decoder.trusted and module not in sys.modules:
        try:
            __import__(module)
        except ImportError:
            return None
    found = _imported(module, path)
    if found is None or not issubclass(found, base):
        return None
    return found if decoder.trusted or _is_registered(found) else None


def registered_class(module: str, path: str) -> type | None:
    """Return the class of this name if it is imported and its objects may be read from results: see `nnsight.register`."""
    found = _imported(module, path)
    return found if found is not None and _is_registered(found) else None


def _imported(module: str, path: str) -> type | None:
    found: Any = sys.modules.get(module)
    for part in path.split("."):
        # Past whatever a module or a class does when it is asked for something: that could be code.
        found = getattr(found, "__dict__", {}).get(part)
    return found if isinstance(found, type) else None


def _is_registered(cls: type) -> bool:
    return any(issubclass(cls, one) for one in _registered)


def _shown(named: Any) -> str:
    return str(named).replace(":", ".")[:200]
