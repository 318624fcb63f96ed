"""Small values of the standard library and of torch, each a text or a few numbers.

The one idea: a table, from the type to what is said of a value and how it is made of that; making one runs nothing.
"""

from __future__ import annotations

import datetime
import decimal
import fractions
import pathlib
import uuid
from collections.abc import Callable
from typing import Any, NamedTuple

from .decoder import Decoder
from .encoder import Encoder, plain
from .kinds import makes, writes


class Native(NamedTuple):
    """How a value of one type is said, in JSON, and made again."""

    say: Callable[[Any], Any]
    make: Callable[[Any], Any]


NATIVES: dict[type, Native] = {
    decimal.Decimal: Native(str, decimal.Decimal),
    fractions.Fraction: Native(str, lambda said: _fraction(said)),
    uuid.UUID: Native(str, uuid.UUID),
    datetime.date: Native(datetime.date.isoformat, datetime.date.fromisoformat),
    datetime.time: Native(datetime.time.isoformat, datetime.time.fromisoformat),
    datetime.timedelta: Native(
        lambda delta: [delta.days, delta.seconds, delta.microseconds], lambda said: datetime.timedelta(*said)
    ),
    pathlib.PurePosixPath: Native(str, pathlib.PurePosixPath),
    pathlib.PureWindowsPath: Native(str, pathlib.PureWindowsPath),
}
_NAMES = {cls.__name__: native for cls, native in NATIVES.items()}


def native(cls: type, say: Callable[[Any], Any], make: Callable[[Any], Any]) -> None:
    """Add a type to the table; making a value of it may run nothing."""
    NATIVES[cls] = _NAMES[cls.__name__] = Native(say, make)
    writes(cls)(_write_native)


@plain
def _write_native(encoder: Encoder, value: Any) -> int:
    return encoder.emit("native", type(value).__name__, NATIVES[type(value)].say(value))


writes(*NATIVES)(_write_native)


@makes("native", safe=True)
def _make_native(decoder: Decoder, step: list[Any]) -> Any:
    return _NAMES[step[1]].make(step[2])


def _fraction(said: str) -> fractions.Fraction:
    # Not from any text: "1e999999999" would be computed.
    above, _, below = said.partition("/")
    return fractions.Fraction(int(above), int(below or "1"))


# -- paths of files --------------------------------------------------------------------------------------------------


@plain
def _write_path(encoder: Encoder, path: pathlib.PurePath) -> int:
    return encoder.emit("path", str(path))


writes(pathlib.Path, pathlib.PosixPath, pathlib.WindowsPath)(_write_path)


@makes("path", safe=True)
def _make_path(decoder: Decoder, step: list[Any]) -> pathlib.Path:
    return pathlib.Path(step[1])


# -- times of a day somewhere ----------------------------------------------------------------------------------------


@writes(datetime.datetime)
@plain
def _write_datetime(encoder: Encoder, moment: datetime.datetime) -> int:
    # A zone is an object of its own: only the fixed ones are plain values.
    zone = encoder.value(moment.tzinfo, "tzinfo")
    return encoder.emit("datetime", moment.replace(tzinfo=None).isoformat(), moment.fold, zone)


@makes("datetime", safe=True)
def _make_datetime(decoder: Decoder, step: list[Any]) -> datetime.datetime:
    zone = decoder.value(step[3])
    return datetime.datetime.fromisoformat(step[1]).replace(fold=step[2], tzinfo=zone)


@writes(datetime.timezone)
@plain
def _write_timezone(encoder: Encoder, zone: datetime.timezone) -> int:
    return encoder.emit("timezone", encoder.value(zone.utcoffset(None)))


@makes("timezone", safe=True)
def _make_timezone(decoder: Decoder, step: list[Any]) -> datetime.timezone:
    return datetime.timezone(decoder.value(step[1]))
