"""`Envelope`: what a client of nnsight 0.8 asks besides the block, and how both lie in the store.

The one idea: the file of a request says itself in which format it is, so nothing else has to remember it.
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_MAGIC = b"nnsight 0.8 request\n"
_LENGTH = struct.Struct("<I")
#: How their results begin: compressed, or the archive that torch writes.
_RESULTS = (b"\x28\xb5\x2f\xfd", b"PK\x03\x04")


@dataclass(frozen=True)
class Envelope:
    """What travels beside the block.

    Attributes:
        compress: whether the block is compressed, and the result is to be.
        env: what is to be set on the model for this run.
    """

    compress: bool
    env: dict[str, Any] = field(default_factory=dict)

    def around(self, blob: bytes) -> bytes:
        """Return what is stored of a request."""
        said = json.dumps({"compress": self.compress, "env": self.env}).encode()
        return b"".join((_MAGIC, _LENGTH.pack(len(said)), said, blob))


def is_enveloped(data: bytes) -> bool:
    """Whether a stored request is one of theirs."""
    return data.startswith(_MAGIC)


def opened(data: bytes) -> tuple[Envelope, bytes]:
    """Take a stored request apart."""
    start = len(_MAGIC) + _LENGTH.size
    (length,) = _LENGTH.unpack(data[len(_MAGIC) : start])
    return Envelope(**json.loads(data[start : start + length])), data[start + length :]


def holds_results(path: Path) -> bool:
    """Whether a stored result is in their format."""
    with open(path, "rb") as file:
        return file.read(4) in _RESULTS
