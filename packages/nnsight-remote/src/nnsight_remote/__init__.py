"""Models on a server for nnsight: run a block where the weights are.

    with model.trace("...", remote="http://localhost:8787"):
        hidden = model.layers[5].output.save()

The names here are for what `remote=` does not say; importing the package imports nothing of them until they are used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from nnsight_remote._version import __version__

if TYPE_CHECKING:
    from nnsight_remote.client import ndif
    from nnsight_remote.client.backend import RemoteBackend
    from nnsight_remote.client.errors import (
        DownloadError,
        JobCancelledError,
        JobError,
        JobGoneError,
        KeyRefusedError,
        ProtocolError,
        RefusedError,
        StreamCutError,
        UnreachableError,
    )
    from nnsight_remote.client.job import Job, job
    from nnsight_remote.client.stream import Piece

__all__ = [
    "DownloadError",
    "Job",
    "JobCancelledError",
    "JobError",
    "JobGoneError",
    "KeyRefusedError",
    "Piece",
    "ProtocolError",
    "RefusedError",
    "RemoteBackend",
    "StreamCutError",
    "UnreachableError",
    "__version__",
    "job",
    "ndif",
]
_HOMES = {"RemoteBackend": "backend", "Job": "job", "job": "job", "Piece": "stream"}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name == "ndif":
        return importlib.import_module("nnsight_remote.client.ndif")
    return getattr(importlib.import_module(f"nnsight_remote.client.{_HOMES.get(name, 'errors')}"), name)


def __dir__() -> list[str]:
    return __all__
