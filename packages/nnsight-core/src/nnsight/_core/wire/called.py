"""Classes that no `class` statement made, and the members of enumerations.

The one idea: what was made by a call is made by the same call. Classes that have a text are `classes.py`.
"""

from __future__ import annotations

import collections
import enum
from typing import Any

from ..errors import SourceError
from . import records
from .decoder import Decoder
from .encoder import Encoder
from .kinds import makes, writes
from .located import find_class


def made_by_call(cls: type) -> bool:
    """Whether a named tuple was made by `namedtuple(...)`, not by a `class` statement."""
    try:
        find_class(cls)
    except SourceError:
        return True
    return False


def write_namedtuple(encoder: Encoder, cls: Any) -> int:
    """Write a class that `namedtuple` made."""
    defaults = encoder.value(tuple(cls._field_defaults.values()), "its defaults")
    return encoder.emit("namedtuple", cls.__name__, list(cls._fields), defaults, cls.__module__)


@makes("namedtuple")
def _make_namedtuple(decoder: Decoder, step: list[Any]) -> type:
    _, name, fields, defaults, module = step
    return collections.namedtuple(name, fields, defaults=decoder.value(defaults), module=module)


def write_enum(encoder: Encoder, cls: Any) -> int:
    """Write a class that a call of `Enum` made."""
    members = {name: member.value for name, member in cls.__members__.items()}
    base = encoder.value(cls.__mro__[1], "its base")
    return encoder.emit("enum", base, cls.__name__, encoder.value(members, "its members"), cls.__module__)


@makes("enum")
def _make_enum(decoder: Decoder, step: list[Any]) -> Any:
    _, base, name, members, module = step
    return decoder.value(base)(name, decoder.value(members), module=module)


@writes(enum.Enum, family=True)
def _write_member(encoder: Encoder, member: enum.Enum) -> int:
    if encoder.results:
        return records.write_member(encoder, member)
    cls = encoder.value(type(member), "its class")
    return encoder.emit("member", cls, member.name, encoder.value(member.value, "its value"))


@makes("member")
def _make_member(decoder: Decoder, step: list[Any]) -> Any:
    cls = decoder.value(step[1])
    # Flags that are combined have no name of their own.
    return cls.__members__[step[2]] if step[2] in cls.__members__ else cls(decoder.value(step[3]))
