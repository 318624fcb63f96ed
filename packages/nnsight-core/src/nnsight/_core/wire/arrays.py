"""Arrays and numbers of numpy, where it is there: nnsight does not need it, and torch brings it along if it can."""

from __future__ import annotations

import importlib.util
import re
from typing import Any

from ..errors import WireError
from .decoder import Decoder
from .encoder import Encoder, plain
from .kinds import FAMILIES, makes, writes

_KINDS = frozenset("biufcSUMm")
#: What numpy may be asked to read as a type. Even an array of nothing takes the memory of one element.
_DTYPE = re.compile(r"[<>|=]?[biufcSUMm]\d{0,7}(\[\d{0,9}[A-Za-z]+\])?")


def register() -> None:
    """Let arrays travel, if numpy is installed."""
    if importlib.util.find_spec("numpy") is None:
        return
    numpy = importlib.import_module("numpy")
    writes(numpy.ndarray)(_write_array)
    FAMILIES[numpy.generic] = _write_number


@plain
def _write_array(encoder: Encoder, array: Any) -> int:
    if array.dtype.kind not in _KINDS:
        raise encoder.refusal(f"an array of {array.dtype} holds objects or records", "send a list or a dict of arrays")
    order = "F" if array.flags.f_contiguous and not array.flags.c_contiguous else "C"
    return encoder.emit("array", array.dtype.str, list(array.shape), order, encoder.buffer(array.tobytes(order)))


def _write_number(encoder: Encoder, number: Any) -> int:
    if number.dtype.kind not in _KINDS:
        raise encoder.refusal(f"a number of {number.dtype} holds objects or records", "send `.item()` of it")
    return encoder.emit("number", number.dtype.str, encoder.buffer(number.tobytes()))


@makes("array", safe=True)
def _make_array(decoder: Decoder, step: list[Any]) -> Any:
    _, dtype, shape, order, buffer = step
    flat = _read(dtype, bytearray(decoder.buffer(buffer)))
    return flat.reshape(shape, order="F" if order == "F" else "C")


@makes("number", safe=True)
def _make_number(decoder: Decoder, step: list[Any]) -> Any:
    return _read(step[1], bytes(decoder.buffer(step[2])))[0]


def _read(said: str, data: bytes | bytearray) -> Any:
    try:
        numpy = importlib.import_module("numpy")
    except ImportError:
        raise WireError("an array of numpy arrived, and numpy is not installed here: pip install numpy") from None
    if not isinstance(said, str) or _DTYPE.fullmatch(said) is None:
        raise WireError("an array is not of a type that is carried")
    dtype = numpy.dtype(said)
    return numpy.frombuffer(data, dtype=dtype) if data and dtype.itemsize else numpy.zeros(0, dtype=dtype)
