"""`Response`: what NDIF says of a job, one message after another.

The one idea: a message is data. One that is packed as torch packs things is read by a reader that knows a single name, that
of its own list of states, so that nobody who answers can have anything run here.
"""

from __future__ import annotations

import io
import json
import pickle
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ..client.errors import ProtocolError

#: In the order in which a job goes through them; LOG is no state.
STATES = ("RECEIVED", "QUEUED", "PROVISIONING", "DEPLOYING", "DISPATCHED", "RUNNING", "COMPLETED", "ERROR")
# By STREAM a server of older clients asked them to run something.
_KNOWN = frozenset((*STATES, "LOG", "STREAM"))


@dataclass(frozen=True)
class Response:
    """One message.

    Attributes:
        id: the job.
        status: one of `STATES`, or "LOG".
        description: what was printed, why it failed, or what the server says of the state.
        data: for COMPLETED: the result's bytes, or the address that it can be fetched from.
        meta: what the run cost the server.
    """

    id: str
    status: str
    description: str = ""
    data: bytes | str | None = None
    meta: Mapping[str, Any] | None = None

    @property
    def state(self) -> str:
        """The state of the job, in our words."""
        return {"COMPLETED": "completed", "ERROR": "failed", "RUNNING": "running", "LOG": "running"}.get(
            self.status, "queued"
        )

    @property
    def is_final(self) -> bool:
        """Whether nothing comes after it."""
        return self.status in ("COMPLETED", "ERROR")


def read(message: str | bytes) -> Response:
    """Read a message of the socket, or an answer over HTTP.

    Raises:
        ProtocolError: it is none.
    """
    try:
        said = json.loads(message) if isinstance(message, str) else _unpack(message)
    except Exception as error:  # a pickle that is written for it makes its reader raise anything
        raise ProtocolError(f"NDIF's server said something that is not understood here: {str(error)[:500]}") from error
    if (
        not isinstance(said, dict)
        or not isinstance(said.get("status"), str)
        or said["status"] not in _KNOWN
        or not isinstance(said.get("id"), str)
    ):
        raise ProtocolError(f"NDIF's server said something that is not understood here: {str(said)[:200]!r}")
    data, meta = said.get("data"), said.get("meta")
    if isinstance(data, (tuple, list)) and data:  # an address, and how much is there
        data = data[0]
    return Response(
        id=said["id"],
        status=str(said["status"]),
        description=str(said.get("description") or ""),
        data=data if isinstance(data, (bytes, str)) else None,
        meta=meta if isinstance(meta, dict) else None,
    )


def _unpack(message: bytes) -> Any:
    """Read what `torch.save` wrote of a dictionary without tensors: one pickle in an archive."""
    with zipfile.ZipFile(io.BytesIO(message)) as archive:
        names = [name for name in archive.namelist() if name.endswith("/data.pkl")]
        if len(names) != 1:
            raise ValueError("the archive does not hold one pickle")
        if archive.getinfo(names[0]).file_size > len(message):  # torch packs nothing
            raise ValueError("the archive holds more than it has bytes")
        return _Plain(io.BytesIO(archive.read(names[0]))).load()


class _Plain(pickle.Unpickler):
    """Reads plain values, and the states of jobs as their names."""

    def find_class(self, module: str, name: str) -> Callable[..., Any]:
        if (module, name) in (
            ("nnsight.schema.response", "Status"),
            ("nnsight.schema.response", "ResponseModel.JobStatus"),
        ):
            return _state
        if (module, name) == ("nnsight.schema.response", "ResponseModel"):
            return _older
        if (module, name) == ("_codecs", "encode"):  # how bytes are written by older protocols of pickle
            return _bytes
        if name == "getattr" and module in ("builtins", "__builtin__"):  # how some versions of Python write a state
            return _named
        raise pickle.UnpicklingError(f"it holds {module}.{name}, which is no plain value")

    def persistent_load(self, name: Any) -> Any:
        raise pickle.UnpicklingError("it holds a tensor")


def _state(value: Any) -> str:
    return str(value)


def _bytes(text: Any, encoding: Any) -> bytes:
    if not isinstance(text, str) or encoding != "latin1":
        raise pickle.UnpicklingError("it holds bytes that are not written as bytes are")
    return text.encode("latin1")


def _older(*_: Any) -> str:
    """Stand for the class that the states were in before; it is not called."""
    raise pickle.UnpicklingError("it holds a response of a class, which is no plain value")


def _named(of: Any, name: Any) -> Any:
    return _state if of is _older and name == "JobStatus" else str(name)
