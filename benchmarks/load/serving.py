"""`Serving`: a real server, `nnsight serve`, in a process of its own, with as many users as are wanted."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nnsight_remote.server.keys import Keyring
from nnsight_remote.server.store import Store

_HERE = Path(__file__).parent


class Serving:
    """A server on the loopback interface, for the time of a `with`.

    Args:
        folder: where its store and its log are; must not exist.
    """

    def __init__(self, folder: Path) -> None:
        self.store = folder / "store"
        self._log = folder / "server.log"
        self.url = ""

    def __enter__(self) -> Serving:
        line = ["serve", "served:mlp", "--port", "0", "--store", str(self.store), "--threads", "1"]
        path = os.pathsep.join([str(_HERE), *filter(None, [os.environ.get("PYTHONPATH")])])
        with open(self._log, "wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "nnsight", *line],
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env={**os.environ, "PYTHONPATH": path},
            )
        said = self.process.stdout.readline()
        if " at http://" not in said:
            raise RuntimeError(f"the server did not start:\n{self._log.read_text()}")
        self.url = said.split(" at ")[1].split()[0]
        return self

    def __exit__(self, *error: object) -> None:
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(60)
        self.process.stdout.close()

    def keys(self, names: Sequence[str], **limits: float) -> dict[str, str]:
        """Make keys for new users, as `nnsight serve keys add` does."""
        store = Store(self.store)
        try:
            keyring = Keyring(store)
            return {name: keyring.add(name, "user", limits) for name in names}
        finally:
            store.close()

    def jobs(self, columns: str, where: str = "true", *values: Any) -> list[tuple[Any, ...]]:
        """Read what the server wrote down of its jobs."""
        reading = sqlite3.connect(f"file:{self.store / 'jobs.sqlite'}?mode=ro", uri=True)
        try:
            return reading.execute(f"select {columns} from jobs where {where}", values).fetchall()
        finally:
            reading.close()

    def problems(self) -> list[str]:
        """Lines of the server's log that say that something went wrong."""
        return [
            line for line in self._log.read_text().splitlines() if '"level": "error"' in line or "Traceback" in line
        ]
