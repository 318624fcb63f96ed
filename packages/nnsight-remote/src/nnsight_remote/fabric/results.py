"""What a block saved, as NDIF sends it: decoded without running anything of theirs.

The one idea: their own client unpickles whatever comes, and so runs what a server wants. Here torch's own reader for
weights decides, which builds tensors and plain values only; a few more that are plain as well are named to it.
"""

from __future__ import annotations

import importlib
import io
import pickle
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from nnsight.plugin import WireError

from .. import packed
from ..client.errors import ProtocolError
from .objects import Opening, is_possible

_PACKED = b"\x28\xb5\x2f\xfd"  # how every frame of zstandard begins
#: The most bytes that a result may have unpacked: it is read in memory.
MOST = 16 << 30
_PLAIN: tuple[Any, ...] = (range, slice, set, frozenset, bytearray, complex)


def decode(data: bytes | memoryview, *, trusted: bool = False) -> dict[str, Any]:
    """Read what a block saved, by name. Tensors come to lie on the CPU.

    Args:
        data: the bytes, compressed or not.
        trusted: also build objects of any class that is here; this can run code of whoever runs the server.

    Raises:
        WireError: they hold something else than tensors and plain values, and are not trusted.
        ProtocolError: they are no results.
    """
    found = _load(_unpacked(bytes(data)), trusted)
    if not isinstance(found, dict) or not all(isinstance(name, str) for name in found):
        raise ProtocolError("the result of the job is no table of values by name")
    return found


def _unpacked(data: bytes) -> bytes:
    if not data.startswith(_PACKED):
        return data
    found = io.BytesIO()
    try:
        # A stream need not say how large it will be.
        packed.unpack(io.BytesIO(data), found, MOST)
        return found.getvalue()
    except packed.PackedWrongly as error:
        raise ProtocolError(f"the result of the job arrived damaged: {error}") from error


def _load(data: bytes, trusted: bool) -> Any:
    if not zipfile.is_zipfile(io.BytesIO(data)):  # the older formats of torch are none that a server writes
        raise ProtocolError("the result of the job is not in the format that NDIF uses")
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            if sum(one.file_size for one in archive.infolist()) > len(data):  # torch packs nothing
                raise ProtocolError("the result of the job is an archive that holds more than it has bytes")
        if trusted:
            return torch.load(io.BytesIO(data), map_location="cpu", weights_only=False)
        opening = Opening(data)
        with _named((*_PLAIN, *_numpy(), *opening.names)):
            return opening.close(torch.load(io.BytesIO(data), map_location="cpu", weights_only=True))
    except pickle.UnpicklingError as error:
        raise WireError(
            "the result holds something that is neither a tensor nor a plain value, so it is not built here, as that could "
            f"run code of the server: {_reason(error)}. Save what is in it instead, register its class (`nnsight.register`), "
            "or trust the server: `RemoteBackend(..., trusted=True)`"
        ) from error
    except ProtocolError:
        raise
    except Exception as error:  # bytes that are written for it make a reader raise anything
        raise ProtocolError(f"the result of the job cannot be read: {str(error)[:500]}") from error


def _reason(error: Exception) -> str:
    """Return what of torch's explanation is about the value."""
    text = str(error)
    for start in ("Unsupported global: GLOBAL ", "Unsupported class ", "WeightsUnpickler error: "):
        if start in text:
            return text.split(start, 1)[1].split(" was not an allowed", 1)[0].split("\n", 1)[0].strip()[:200]
    return text.split("\n", 1)[0][:200]


def _numpy() -> list[Any]:
    """Return what arrays and numbers of numpy are made of, if numpy is here."""
    try:
        numpy = importlib.import_module("numpy")
    except ImportError:
        return []
    core = importlib.import_module("numpy._core" if hasattr(numpy, "_core") else "numpy.core")
    kinds = {type(numpy.dtype(one)) for one in "?bBhHiIlLqQefdgFDG"}
    makers = [core.multiarray._reconstruct, core.multiarray.scalar]
    if is_possible():
        # numpy 1 and 2 name them otherwise, and the other end may have another than we.
        makers += [
            (one, f"{place}.multiarray.{one.__name__}") for one in makers for place in ("numpy.core", "numpy._core")
        ]
    return [numpy.ndarray, numpy.dtype, *makers, *kinds]


@contextmanager
def _named(things: tuple[Any, ...]) -> Iterator[None]:
    """Name further things to torch's reader for the time being."""
    if hasattr(torch.serialization, "safe_globals"):  # torch 2.5
        with torch.serialization.safe_globals(list(things)):
            yield
        return
    before = torch.serialization.get_safe_globals()
    torch.serialization.add_safe_globals(list(things))
    try:
        yield
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(before)
