"""What a client of nnsight 0.8 is told of a job: its `ResponseModel`, one message after another.

The one idea: a message is a table of plain values. Its client reads one that carries a result as torch reads an archive, so
such a message is packed here by hand: the server's own process has no torch.
"""

from __future__ import annotations

import io
import json
import pickle
import zipfile
from collections.abc import Iterator

from ..events import Event
from ..jobs import Job

_RECEIVED = "The job was received and waits for its turn."
_SAID = {"QUEUED": "The job waits for its turn.", "RUNNING": "The job runs."}
_STATUS = {"queued": "QUEUED", "running": "RUNNING"}


def message(job: str, status: str, description: str = "", data: str | None = None) -> str:
    """Write a message as text."""
    said = {"id": job, "status": status, "description": description}
    return json.dumps(said if data is None else {**said, "data": data})


def received(job: str) -> str:
    """Write the answer to a request that was taken in."""
    return message(job, "RECEIVED", _RECEIVED)


def state(job: Job, result: str) -> str:
    """Write how a job is now; of a finished one, `result` is the address of what it saved."""
    if job.state == "completed":
        return message(job.id, "COMPLETED", "The job is done.", result)
    if not job.is_final:
        return message(job.id, _STATUS[job.state], _SAID[_STATUS[job.state]])
    failure = job.failure
    if failure is None:
        return message(job.id, "ERROR", "The job was cancelled.")
    return message(job.id, "ERROR", failure.traceback if failure.reason == "error" else failure.message)


def with_result(job: Job, result: bytes) -> bytes:
    """Write that a job is done, and what it saved, as one message."""
    said = {"id": job.id, "status": "COMPLETED", "description": "The job is done.", "data": result}
    file = io.BytesIO()
    # relies on: an archive of torch is a zip with these two members below one folder, torch 2.4 to 2.13
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(said, 4))
        archive.writestr("archive/version", "3\n")
    return file.getvalue()


class Telling:
    """Turns the events of one job into messages; what is printed goes out by whole lines."""

    def __init__(self, job: str) -> None:
        self._job = job
        self._line = ""

    def of(self, event: Event) -> Iterator[str]:
        """Write what one event says; the last state is left to `state` and `with_result`."""
        if event.kind == "log":
            *lines, self._line = (self._line + event.text).split("\n")
            yield from (message(self._job, "LOG", line) for line in lines)
        elif event.text in _STATUS:
            yield message(self._job, _STATUS[event.text], _SAID[_STATUS[event.text]])

    def rest(self) -> Iterator[str]:
        """Write what was printed without a line's end."""
        if self._line:
            yield message(self._job, "LOG", self._line)
            self._line = ""
