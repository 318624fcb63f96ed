"""What the process of a job and that of the engine say to each other.

One idea: the process of a job has run a user's code and may say anything, so what it says is read as data, field by field:
prompts and options by the wire, without code. Code travels in one field, the bodies, which the engine runs with the limits
that it has for them.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from nnsight import NNsightError
from nnsight.plugin import Prepared, decode_message, encode_message
from vllm import SamplingParams

from ..fields import STANDING
from ..sampling import OF_REQUESTS

_SIZE = struct.Struct("<Q")
#: Bytes of one frame; what a job may send is bounded by its server, long before.
MOST = 1 << 31


class Input(msgspec.Struct):
    """One request: its prompt and what else is said of it, as the wire writes them, and how tokens are drawn."""

    prompt: bytes
    params: SamplingParams
    others: bytes


class Serve(msgspec.Struct, tag="serve"):  # type: ignore[call-arg]  # not there where types are checked
    """Asks for requests to be served, with the bodies of a trace or, where there are none, without."""

    inputs: list[Input]
    bodies: bytes | None = None


class Said(msgspec.Struct, tag="said"):  # type: ignore[call-arg]  # not there where types are checked
    """Tells what bodies have printed."""

    text: str


class Served(msgspec.Struct, tag="served"):  # type: ignore[call-arg]  # not there where types are checked
    """Answers with what each body saved or raised, or with what the engine gave for each request."""

    answers: list[bytes]


class Failed(msgspec.Struct, tag="failed"):  # type: ignore[call-arg]  # not there where types are checked
    """Answers with why nothing was served."""

    error: bytes


_encode = msgspec.msgpack.Encoder().encode
_asked = msgspec.msgpack.Decoder(Serve)
_told: msgspec.msgpack.Decoder[Said | Served | Failed] = msgspec.msgpack.Decoder(Said | Served | Failed)


def packed(message: msgspec.Struct) -> bytes:
    """Write a message as it is sent."""
    data = _encode(message)
    return _SIZE.pack(len(data)) + data


class Frames:
    """Takes messages out of the bytes that come."""

    def __init__(self) -> None:
        self._read = bytearray()

    def take(self, data: bytes) -> Iterator[bytes]:
        """Give each message that is whole with these bytes.

        Raises:
            ValueError: they announce more than may be.
        """
        self._read += data
        while len(self._read) >= _SIZE.size:
            (size,) = _SIZE.unpack_from(self._read)
            if size > MOST:
                raise ValueError(f"a message of {size} bytes")
            end = _SIZE.size + size
            if len(self._read) < end:
                return
            yield bytes(self._read[_SIZE.size : end])
            del self._read[:end]


def asked(data: bytes) -> Serve:
    """Read what a job asks. Raises `msgspec.MsgspecError`, or ValueError for options that cannot be."""
    return _asked.decode(data)


def told(data: bytes) -> Said | Served | Failed:
    """Read what the engine tells."""
    return _told.decode(data)


def written(inputs: Sequence[Prepared]) -> list[Input]:
    """Write requests, as a model prepared them."""
    found = []
    for (prompt, params), others, _ in inputs:
        _check_extra(params)
        found.append(Input(encode_message("value", prompt, "the prompt"), params, encode_message("value", others)))
    return found


def read(inputs: Sequence[Input]) -> list[Prepared]:
    """Read requests.

    Raises:
        WireError: a prompt, or what else is said of it, is no data.
        NNsightError: they ask for what is the engine's own.
    """
    found: list[Prepared] = []
    for one in inputs:
        prompt, others = decode_message(one.prompt)[1], decode_message(one.others)[1]
        if type(prompt) is not dict or type(others) is not dict:
            raise NNsightError("a request has a prompt and options, and this one something else")
        _check_extra(one.params)
        found.append(((prompt, one.params), _known(others), 1))
    return found


def _check_extra(params: SamplingParams) -> None:
    if set(params.extra_args or ()) - {STANDING}:
        raise NNsightError(
            f"of `extra_args` a request to a server has {STANDING!r} only, for edits that stay on its engine; all else is "
            "between the engine and its plugins"
        )


def _known(others: dict[str, Any]) -> dict[str, Any]:
    unknown = sorted(set(others) - set(OF_REQUESTS))
    if unknown:
        raise NNsightError(f"nothing is known of {', '.join(map(repr, unknown))}, said of a request")
    return others
