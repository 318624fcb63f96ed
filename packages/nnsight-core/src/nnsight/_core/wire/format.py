"""The bytes: a header, a document in JSON, and the buffers.

The one idea: everything with a structure is JSON, which no reader executes, and everything that is large is a buffer that
is neither copied nor looked into. What the document says is left to `encoder.py` and `decoder.py`.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Iterable, Sequence
from typing import Any

from ..errors import WireError

MAGIC = b"nnswire\n"
VERSION = 1
_HEADER = struct.Struct("<8sHHIQ")
_ALIGN = 64
Buffer = bytes | bytearray | memoryview


def pack(document: dict[str, Any], buffers: Sequence[Buffer]) -> list[Buffer]:
    """Write a document and its buffers, in pieces that follow each other; `document["buffers"]` is filled in."""
    places, at = [], 0
    for buffer in buffers:
        size = memoryview(buffer).nbytes
        places.append([at, size])
        at += _padded(size)
    document["buffers"] = places
    text = _WRITER.encode(document).encode("utf-8", _LONE)
    parts: list[Buffer] = [text]
    filled = _HEADER.size + len(text)
    for buffer, (_, size) in zip(buffers, places):
        parts += [bytes(-filled % _ALIGN), buffer]
        filled += -filled % _ALIGN + size
    checksum = 0
    for part in parts:
        checksum = zlib.crc32(part, checksum)
    return [_HEADER.pack(MAGIC, VERSION, 0, checksum, len(text)), *parts]


def unpack(data: Buffer, kinds: Iterable[str]) -> tuple[dict[str, Any], list[memoryview]]:
    """Read a document of one of these kinds and its buffers, which lie in `data` as before.

    Raises:
        WireError: the bytes are cut, changed, of another version, or not ours.
    """
    view = memoryview(data).cast("B") if not isinstance(data, bytes) else memoryview(data)
    text = _text(view)
    try:
        document = _READER.decode(bytes(text).decode("utf-8", _LONE))
    except (ValueError, RecursionError) as error:
        raise WireError(f"the document in these bytes cannot be read: {_brief(error)}") from None
    if not isinstance(document, dict) or not isinstance(document.get("buffers"), list):
        raise WireError("the document in these bytes is not of the form that it should have")
    kind = document.get("kind")
    if kind not in (allowed := list(kinds)):
        raise WireError(f"these bytes hold {_shown(kind)}, where {' or '.join(allowed)} was expected")
    start = _HEADER.size + len(text)
    rest = view[start + -start % _ALIGN :]
    buffers, free = [], 0
    for place in document["buffers"]:
        buffers.append(_cut(rest, place, free))
        free = sum(place)
    return document, buffers


def about(data: Buffer) -> dict[str, Any]:
    """Read what bytes say about themselves, and build nothing of them.

    `kind` is the kind, and `packages` maps the installed packages that are needed to the sender's versions of them.
    """
    document, _ = unpack(data, ("request", "results", "error", "message", "model", "bodies", "edits"))
    facts, packages = document.get("about"), document.get("packages")
    said = {"kind": document["kind"], "packages": packages if isinstance(packages, dict) else {}}
    return {**(facts if isinstance(facts, dict) else {}), **said}


def check(data: Buffer) -> None:
    """Raise WireError unless these bytes are whole, unchanged and of this version; nothing in them is looked at."""
    _text(memoryview(data).cast("B"))


_LONE = "surrogatepass"  # a text may hold half of a pair: names of files do


def _text(view: memoryview) -> memoryview:
    if len(view) < _HEADER.size:
        raise WireError(f"{len(view)} bytes are too few to be a message of ours")
    magic, version, _, checksum, length = _HEADER.unpack(view[: _HEADER.size])
    if magic != MAGIC:
        raise WireError("these bytes are no message of ours: they begin otherwise")
    if version != VERSION:
        raise WireError(
            f"these bytes are in version {version} of the format, and this nnsight reads version {VERSION}: upgrade "
            f"nnsight-core {'here' if version > VERSION else 'at the other end'}"
        )
    rest = view[_HEADER.size :]
    if length > len(rest):
        raise WireError(f"these bytes are cut short: {length} were to follow and {len(rest)} do")
    if zlib.crc32(rest) != checksum:
        raise WireError("these bytes were changed or cut on their way: their checksum does not fit")
    return rest[:length]


def _cut(view: memoryview, place: Any, free: int) -> memoryview:
    if not (isinstance(place, list) and len(place) == 2 and all(type(n) is int and n >= 0 for n in place)):
        raise WireError("the place of a buffer is not stated as it should be")
    offset, size = place
    if offset < free:
        raise WireError("the buffers in these bytes are no sequence: one lies in another")
    if offset + size > len(view):
        raise WireError(f"a buffer of {size} bytes was to lie at {offset}, and there are {len(view)} bytes")
    return view[offset : offset + size]


def _padded(size: int) -> int:
    return size + -size % _ALIGN


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


#: Made once: `json.dumps` and `json.loads` would make them for each message.
_WRITER = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"))
_READER = json.JSONDecoder(parse_constant=_refuse_constant)


def _brief(error: Exception) -> str:
    return str(error).partition("\n")[0][:200] or type(error).__name__


def _shown(kind: object) -> str:
    return repr(kind)[:40] if isinstance(kind, str) else "no kind of message"
