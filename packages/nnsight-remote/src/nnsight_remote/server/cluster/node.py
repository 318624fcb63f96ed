"""`Place`: the actor, which holds a host on its node as the server would hold it on its own machine.

The one idea: all that is said about users' code is said by `ProcessHost`, here as there: limits, walls, and how a job ended
in words. What belongs to a job lies in files that have no name, so that nothing of it is left on the node when the actor,
in whatever way, ends. Bytes come and go in pieces.
"""

from __future__ import annotations

import asyncio
import os
import platform
import socket
import sys
import tempfile
from collections.abc import AsyncIterator
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

import ray

from ..confine import Confinement
from ..engine import HostError, ModelSpec, Outcome, Task
from ..jobs import Failure
from ..limits import Limits
from ..processes import ProcessEngine, ProcessHost
from ..versions import packages


class Place:
    """A model on a node."""

    def __init__(self) -> None:
        self._host: ProcessHost | None = None
        self._request: IO[bytes] = tempfile.TemporaryFile()
        self._result: IO[bytes] = tempfile.TemporaryFile()
        self._running: asyncio.Task[Any] | None = None
        self._stopped = -1

    async def about(self) -> dict[str, Any]:
        """Where this is, and which versions are installed here."""
        context = ray.get_runtime_context()
        name = f"{socket.gethostname()} ({ray.util.get_node_ip_address()}, Ray's node {context.get_node_id()[:12]})"
        versions = {"python": platform.python_version(), "ray": ray.__version__, **packages()}
        return {"node": name, "system": sys.platform, "versions": versions}

    async def load(self, order: dict[str, Any]) -> dict[str, Any]:
        """Start the host's process and load the model; return what a host says then."""
        told = order["confinement"]
        confinement = Confinement(told["trusted"], tuple(told["imports"]), tuple(told["readable"]))
        spec = ModelSpec(order["name"], order["source"], order["family"], order["options"])
        engine = ProcessEngine(confinement, order["isolation"], order["threads"], order["startup_seconds"])
        self._host = engine.host(spec)
        try:
            return {"is": "ready", **await self._host.start()}
        except HostError as error:
            return {"is": "failed", "message": str(error)}

    async def take(self, data: bytes) -> None:
        """Take the next piece of a request."""
        self._request.write(data)

    async def run(self, number: int, data: bytes, limits: dict[str, Any]) -> AsyncIterator[tuple[str, Any]]:
        """Run the job whose request, with these last bytes, is here.

        Yields ("begun", None), ("log", bytes) as it prints, and ("end", how it ended, with the size of what can be read).
        """
        assert self._host is not None, "a model is loaded before jobs run"
        self._request.write(data)
        self._request.flush()
        self._result.truncate(0)
        said: asyncio.Queue[tuple[str, Any] | None] = asyncio.Queue()
        task = Task(
            _path(self._request), _path(self._result), Limits(**limits), lambda line: said.put_nowait(("log", line))
        )
        running = self._running = asyncio.create_task(self._host.run(task))
        running.add_done_callback(lambda _: said.put_nowait(None))
        if number == self._stopped:
            running.cancel()
        yield "begun", None
        while (item := await said.get()) is not None:
            yield item
        self._request.seek(0)
        self._request.truncate()
        outcome, size = Outcome(), 0
        if not running.cancelled():
            if error := running.exception():
                outcome = Outcome(Failure("host", f"the job could not be run on its node: {error}"))
            else:
                outcome = running.result()
            if outcome.failure is None or outcome.failure.encoded:
                size = os.fstat(self._result.fileno()).st_size
        yield "end", {**asdict(outcome), "size": size, "alive": self._host.alive}

    async def read(self, start: int, size: int) -> bytes:
        """Read a piece of what the last job saved."""
        return os.pread(self._result.fileno(), size, start)

    async def forget(self) -> None:
        """Throw away what the last job saved."""
        self._result.truncate(0)

    async def stop(self, number: int) -> None:
        """Stop a job, whatever it is doing, or before it begins; nothing of it runs when this returns."""
        self._stopped = number
        if self._running:
            self._running.cancel()
            await asyncio.wait([self._running])


def _path(file: IO[bytes]) -> Path:
    # Opened again by this name, a file without one has a position of its own.
    return Path(f"/proc/self/fd/{file.fileno()}")
