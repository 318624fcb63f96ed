"""What the tests of the server share: a server in a process of its own, and a backend that is just enough to use it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from nnsight.plugin import Request, decode_error, decode_results, encode_request
from nnsight_remote.server.keys import Keyring
from nnsight_remote.server.store import Store

HERE = Path(__file__).parent
FINAL = ("completed", "failed", "cancelled")
SECONDS = 60.0  # no test waits so long for anything; one that would, fails


class Server:
    """A real server on the loopback interface; started again, it has another port and the same store."""

    def __init__(
        self,
        store: Path,
        *arguments: str,
        models: Sequence[str] = ("served_models:mlp",),
        program: str = "nnsight_remote.server.command",
    ) -> None:
        self.store = store
        self._program = program
        self._line = [*models, "--port", "0", "--store", str(store), "--threads", "1", *arguments]
        self.url = self.admin = ""
        self.process: subprocess.Popen[str]

    def start(self, *, limit: Any = None) -> Server:
        """Start it; `limit` is called in its process before anything else."""
        path = os.pathsep.join([str(HERE), *filter(None, sys.path)])
        self.log = open(self.store.with_suffix(".log"), "ab")
        self.process = subprocess.Popen(
            [sys.executable, "-m", self._program, *self._line],
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
            env={**os.environ, "PYTHONPATH": path},
            preexec_fn=limit,
        )
        said = self.process.stdout.readline()
        assert " at http://" in said, (said, self.logged())
        self.url = said.split(" at ")[1].split()[0]
        if not self.admin and "--open" not in self._line:
            self.admin = self.process.stdout.readline().split(": ")[1].strip()
        return self

    def kill(self) -> None:
        """End it as a loss of power would."""
        self.process.kill()
        self._gone()

    def stop(self) -> None:
        """Ask it to end."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        self._gone()

    def _gone(self) -> None:
        self.process.wait(SECONDS)
        self.process.stdout.close()
        self.log.close()

    def logged(self) -> str:
        return self.store.with_suffix(".log").read_text()

    def key(self, name: str, **limits: float) -> str:
        """Make a key for a user, as `nnsight serve keys add` does, or a new one."""
        store = Store(self.store)
        try:
            keyring = Keyring(store)
            keyring.remove(name)
            return keyring.add(name, "user", limits)
        finally:
            store.close()

    def user(self, name: str, **limits: float) -> Client:
        return Client(self.url, self.key(name, **limits))

    @contextmanager
    def running(self) -> Iterator[Server]:
        self.start()
        try:
            yield self
        finally:
            self.stop()


class Client:
    """One user of a server; a backend too, so that `backend=client` sends a block there."""

    def __init__(self, url: str, key: str = "", model: str = "") -> None:
        headers = {"authorization": f"Bearer {key}"} if key else {}
        self.http = httpx.Client(base_url=url, headers=headers, timeout=SECONDS)
        self.model = model
        self.job: dict[str, Any] = {}
        self.log = ""

    def submit(self, data: bytes, **headers: str) -> dict[str, Any]:
        named = {"nnsight-model": self.model} if self.model else {}
        answer = self.http.post("/request", content=data, headers={**named, **headers})
        assert answer.status_code in (200, 202), answer.text
        return answer.json()

    def begin(self, endless: bytes) -> str:
        """Send a block that says that it runs, wait until it does, and return its job."""
        job = self.submit(endless)["id"]
        self.until(job, "log", "it runs")
        return job

    def get(self, job: str) -> dict[str, Any]:
        return self.http.get(f"/jobs/{job}").json()

    def wait(self, job: str) -> dict[str, Any]:
        """Wait until a job is finished."""
        while (found := self.http.get(f"/jobs/{job}", params={"wait": SECONDS}).json())["state"] not in FINAL:
            pass
        return found

    def follow(self, job: str, after: int = 0) -> Iterator[dict[str, Any]]:
        """The events of a job, as they come."""
        with self.http.stream("GET", f"/jobs/{job}/events", params={"after": after}) as answer:
            assert answer.status_code == 200
            for line in answer.iter_lines():
                if line.startswith("data: "):
                    yield json.loads(line[6:])

    def until(self, job: str, kind: str, text: str) -> None:
        """Wait until a job is in a state, or has printed something."""
        for event in self.follow(job):
            if event["kind"] == kind and text in event["text"]:
                return
        raise AssertionError(f"the job ended without {kind} {text!r}: {self.get(job)}")

    def printed(self, job: str) -> str:
        return "".join(event["text"] for event in self.follow(job) if event["kind"] == "log")

    def result(self, job: str) -> Any:
        """What a finished job saved; raises what it raised."""
        answer = self.http.get(f"/jobs/{job}/result")
        if answer.headers["content-type"] == "application/vnd.nnsight.error":
            raise decode_error(answer.content)
        assert answer.status_code == 200, answer.text
        return decode_results(answer.content)

    def run(self, request: Request) -> dict[str, Any]:
        """Run a block there."""
        self.job = self.wait(self.submit(encode_request(request))["id"])
        return self.result(self.job["id"])


class Encoded:
    """A backend that runs nothing and keeps a block as it would be sent."""

    data = b""

    def run(self, request: Request) -> dict[str, Any]:
        self.data = encode_request(request)
        return {}
