"""A server of the remote package in a process of its own, which hosts a model of vLLM."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

FINAL = ("completed", "failed", "cancelled")


class Server:
    """`nnsight serve` on a free port, and what an administrator asks it."""

    def __init__(self, url: str, key: str, store: Path) -> None:
        self.url = url
        self.http = httpx.Client(base_url=url, headers={"authorization": f"Bearer {key}"}, timeout=120)
        self._store = store

    def key(self, name: str, *limits: str) -> str:
        """Make a key for a user, or a new one."""
        line = [sys.executable, "-m", "nnsight", "serve", "keys", "add", name, "--replace", "--store", str(self._store)]
        for limit in limits:
            line += ["--limit", limit]
        return subprocess.run(line, check=True, stdout=subprocess.PIPE, text=True).stdout.split()[-1]

    def wait(self, job: str) -> dict[str, Any]:
        """Wait until a job is finished."""
        while (found := self.http.get(f"/jobs/{job}", params={"wait": 60}).json())["state"] not in FINAL:
            pass
        return found

    def until_printed(self, job: str, text: str) -> None:
        """Wait until a job has printed something."""
        with self.http.stream("GET", f"/jobs/{job}/events") as answer:
            for line in answer.iter_lines():
                if line.startswith("data: "):
                    said = json.loads(line[6:])
                    if said["kind"] == "log" and text in said["text"]:
                        return
        raise AssertionError(f"the job ended without {text!r}: {self.http.get(f'/jobs/{job}').json()}")


@contextmanager
def serving(store: Path, model: str, options: Mapping[str, Any], *arguments: str) -> Iterator[Server]:
    """Start a server, and end it."""
    line = [sys.executable, "-m", "nnsight", "serve", model, "--family", "VLLM", "--port", "0", "--store", str(store)]
    for name, value in options.items():
        line += ["--option", f"{name}={json.dumps(value)}"]
    path = os.pathsep.join(filter(None, sys.path))
    with open(store.with_suffix(".log"), "wb") as log:
        process = subprocess.Popen(
            [*line, "--threads", "1", *arguments],
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env={**os.environ, "PYTHONPATH": path},
        )
        assert process.stdout is not None
        try:
            said = process.stdout.readline()
            assert " at http://" in said, (said, store.with_suffix(".log").read_text())
            key = process.stdout.readline().split(": ")[1].strip()
            yield Server(said.split(" at ")[1].split()[0], key, store)
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(60)
            process.stdout.close()
