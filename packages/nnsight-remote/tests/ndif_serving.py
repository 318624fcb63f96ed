"""What the tests of NDIF's protocols share: the servers of `ndif_server.py` and its older kind, each in a process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

SERVER = Path(__file__).with_name("ndif_server.py")
#: One that speaks the protocol of clients up to 0.7.
OLDER_SERVER = Path(__file__).with_name("ndif_older_server.py")


class Ndif:
    """A running server."""

    def __init__(self, url: str) -> None:
        self.url = url

    def behave(self, **how: Any) -> list[dict[str, Any]]:
        """Say how it is to behave from now on, and return the requests that it got so far."""
        seen: list[dict[str, Any]] = httpx.post(f"{self.url}/behave", content=json.dumps(how)).json()
        return seen


@contextmanager
def serving(peer: str | None = None, server: Path = SERVER) -> Iterator[Ndif]:
    """Run a server, whose blocks the Python `peer` runs if it is given."""
    line = [sys.executable, str(server), *([peer] if peer else [])]
    path = os.pathsep.join(filter(None, sys.path))
    with subprocess.Popen(line, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": path}) as process:
        assert process.stdout is not None
        try:
            yield Ndif(process.stdout.readline().strip())
        finally:
            process.terminate()
            process.wait(30)
