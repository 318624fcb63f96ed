"""Plain values: numbers, bytes, containers. What these hold may be anything."""

from __future__ import annotations

import collections
from typing import Any

from ..errors import WireError
from .decoder import Decoder
from .encoder import Encoder, plain
from .kinds import makes, writes


@writes(int)
@plain
def _write_int(encoder: Encoder, number: int) -> int:
    return encoder.emit("int", hex(number))


@makes("int", safe=True)
def _make_int(decoder: Decoder, step: list[Any]) -> int:
    return int(step[1], 16)


@writes(float)
@plain
def _write_float(encoder: Encoder, number: float) -> int:
    return encoder.emit("float", repr(number))


@makes("float", safe=True)
def _make_float(decoder: Decoder, step: list[Any]) -> float:
    return float(step[1])


@writes(complex)
@plain
def _write_complex(encoder: Encoder, number: complex) -> int:
    return encoder.emit("complex", repr(number.real), repr(number.imag))


@makes("complex", safe=True)
def _make_complex(decoder: Decoder, step: list[Any]) -> complex:
    return complex(float(step[1]), float(step[2]))


@writes(bytes)
@plain
def _write_bytes(encoder: Encoder, data: bytes) -> int:
    return encoder.emit("bytes", encoder.buffer(data))


@makes("bytes", safe=True)
def _make_bytes(decoder: Decoder, step: list[Any]) -> bytes:
    return bytes(decoder.buffer(step[1]))


@writes(bytearray)
@plain
def _write_bytearray(encoder: Encoder, data: bytearray) -> int:
    return encoder.emit("bytearray", encoder.buffer(bytes(data)))


@makes("bytearray", safe=True)
def _make_bytearray(decoder: Decoder, step: list[Any]) -> bytearray:
    return bytearray(decoder.buffer(step[1]))


@writes(slice, range)
@plain
def _write_stretch(encoder: Encoder, stretch: slice | range) -> int:
    ends = [encoder.value(end) for end in (stretch.start, stretch.stop, stretch.step)]
    return encoder.emit("range" if isinstance(stretch, range) else "slice", ends)


@makes("slice", safe=True)
def _make_slice(decoder: Decoder, step: list[Any]) -> slice:
    return slice(*decoder.values(step[1]))


@makes("range", safe=True)
def _make_range(decoder: Decoder, step: list[Any]) -> range:
    ends = decoder.values(step[1])
    if any(type(end) is not int for end in ends):  # it would ask others for a number
        raise WireError("the ends of a range are no whole numbers")
    return range(*ends)


_SINGLE = {"...": ..., "NotImplemented": NotImplemented}


@writes(type(...), type(NotImplemented))
@plain
def _write_single(encoder: Encoder, thing: Any) -> int:
    return encoder.emit("single", "..." if thing is ... else "NotImplemented")


@makes("single", safe=True)
def _make_single(decoder: Decoder, step: list[Any]) -> Any:
    return _SINGLE[step[1]]


# -- containers ------------------------------------------------------------------------------------------------------


@writes(tuple, frozenset)
@plain
def _write_fixed(encoder: Encoder, items: Any) -> int:
    return encoder.emit(type(items).__name__, _items(encoder, items))


@makes("tuple", safe=True)
def _make_tuple(decoder: Decoder, step: list[Any]) -> tuple[Any, ...]:
    return tuple(decoder.values(step[1]))


@makes("frozenset", safe=True)
def _make_frozenset(decoder: Decoder, step: list[Any]) -> frozenset[Any]:
    return frozenset(decoder.keys(step[1]))


@writes(list, set, collections.deque)
@plain
def _write_items(encoder: Encoder, items: Any) -> int:
    shell = [type(items).__name__]
    if isinstance(items, collections.deque):
        shell.append(items.maxlen)  # type: ignore[arg-type]  # a JSON value like the others
    return encoder.mutable(items, shell, lambda: _items(encoder, items))


@makes("list", safe=True)
def _make_list(decoder: Decoder, step: list[Any]) -> list[Any]:
    made: list[Any] = []
    return decoder.fillable(made, step, 1, lambda said: made.extend(decoder.values(said)))  # type: ignore[no-any-return]


@makes("set", safe=True)
def _make_set(decoder: Decoder, step: list[Any]) -> set[Any]:
    made: set[Any] = set()
    return decoder.fillable(made, step, 1, lambda said: made.update(decoder.keys(said)))  # type: ignore[no-any-return]


@makes("deque", safe=True)
def _make_deque(decoder: Decoder, step: list[Any]) -> Any:
    made: collections.deque[Any] = collections.deque(maxlen=step[1])
    return decoder.fillable(made, step, 2, lambda said: made.extend(decoder.values(said)))


#: Kinds of dict that are made without running anything.
_DICTS: dict[str, type[dict[Any, Any]]] = {
    "dict": dict,
    "OrderedDict": collections.OrderedDict,
    "Counter": collections.Counter,
}


@writes(*_DICTS.values())
@plain
def _write_dict(encoder: Encoder, items: dict[Any, Any]) -> int:
    return encoder.mutable(items, [type(items).__name__], lambda: flat(encoder, items))


def _make_dict(decoder: Decoder, step: list[Any]) -> Any:
    made = _DICTS[step[0]]()
    return decoder.fillable(made, step, 1, lambda said: dict.update(made, decoder.items(said)))


def _make_ordered(decoder: Decoder, step: list[Any]) -> Any:
    made: Any = collections.OrderedDict()

    def fill(said: Any) -> None:
        for key, value in decoder.items(said):
            made[key] = value

    return decoder.fillable(made, step, 1, fill)


makes("dict", safe=True)(_make_dict)
makes("Counter", safe=True)(_make_dict)
makes("OrderedDict", safe=True)(_make_ordered)


@writes(collections.defaultdict)
@plain
def _write_default(encoder: Encoder, items: collections.defaultdict[Any, Any]) -> int:
    factory = encoder.value(items.default_factory, "default_factory")
    return encoder.mutable(items, ["defaultdict", factory], lambda: flat(encoder, items))


@makes("defaultdict", safe=True)
def _make_default(decoder: Decoder, step: list[Any]) -> Any:
    factory = decoder.value(step[1])
    if factory is not None and not decoder.trusted and all(factory is not one for one in BUILTIN_TYPES.values()):
        raise WireError("the default of a defaultdict is no builtin type")
    made: Any = collections.defaultdict(factory)
    return decoder.fillable(made, step, 2, lambda said: made.update(decoder.items(said)))


#: Types that may stand for themselves anywhere: to name them runs nothing.
BUILTIN_TYPES: dict[str, type] = {
    one.__name__: one
    for one in (
        *(bool, bytearray, bytes, complex, dict, float, frozenset, int, list, object, range, set, slice, str, tuple),
        type(None),
    )
}


@makes("type", safe=True)
def _make_type(decoder: Decoder, step: list[Any]) -> type:
    return BUILTIN_TYPES[step[1]]


def _items(encoder: Encoder, items: Any) -> list[Any]:
    return [encoder.value(item, f"[{number}]") for number, item in enumerate(items)]


def flat(encoder: Encoder, items: dict[Any, Any]) -> list[Any]:
    """Write keys and values, one after the other."""
    said = []
    for key, value in list(dict.items(items)):
        said += [encoder.value(key, "a key"), encoder.value(value, f"[{key!r:.40}]")]
    return said
