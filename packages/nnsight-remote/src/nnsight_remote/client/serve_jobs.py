"""`Jobs` on a server that was started with `nnsight serve`: our wire, over plain HTTP.

POST /request                 hand a block in; who waits for it hears in the same answer what happens to it
GET /jobs/ID/events?after=N   what happens to it, as server-sent events
GET /jobs/ID/values/N         a value that it handed over, if it was too large to come with its event
GET /jobs/ID/result           what it saved, or what it raised
GET, DELETE /jobs/ID          look at it, end it
"""

from __future__ import annotations

import io
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import httpx

from nnsight.plugin import Request, decode_error, decode_results, encode_request

from .. import packed
from . import fields
from .connection import CONNECT_SECONDS, Connection, as_json, understood
from .display import in_bytes
from .download import Download
from .errors import JobCancelledError, JobError, JobGoneError, ProtocolError, RefusedError
from .protocol import Event, Progress, Sight
from .serve_facts import ServeFacts, sight
from .told import MEDIA_TYPE, WITH_EVENTS, Result, Told

_ERROR, _RESULTS = "application/vnd.nnsight.error", "application/vnd.nnsight.results"
#: Seconds for which a running server may not answer a request that is sent to it; a large one takes its time.
_POSTING = 120.0
#: Bytes of a request from which on it is asked beforehand whether so many are taken.
_WORTH_ASKING = 1 << 20


class ServeJobs:
    """Hands blocks in, and fetches what became of them."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._posted: dict[str, _Posted] = {}

    def post(
        self,
        request: Request,
        model: str,
        remark: Callable[[str], None],
        *,
        followed: bool = True,
        stream: bool = False,
    ) -> str:
        """Hand in a block and return the id of its job."""
        data = encode_request(request)
        self._check_size(len(data))
        headers = {
            "nnsight-request-id": secrets.token_hex(16),  # sent again, it is the same job
            "content-type": "application/vnd.nnsight.request",
        }
        if model:
            headers["nnsight-model"] = model
        if not self._connection.address.is_this_machine:
            data, headers["content-encoding"] = _packed(data)
        if stream:
            headers["nnsight-stream"] = "1"
        options: dict[str, Any] = {"content": data, "headers": headers, "seconds": _POSTING, "remark": remark}
        if followed:
            headers["accept"] = f"{MEDIA_TYPE}, application/json;q=0.5"
            options |= {"params": {"result": WITH_EVENTS}, "unread": MEDIA_TYPE}
        answer = self._connection.ask("POST", "/request", **options)
        if not answer.is_closed:
            try:
                with understood(self._url):
                    job = fields.identity(answer.headers.get("location", "").rpartition("/")[2])
            except ProtocolError:
                answer.close()
                raise
            self._posted[job] = _Posted(Told(answer, self._url))
            return job
        said = as_json(answer)
        with understood(self._url):
            return fields.identity(said["id"])

    def look(self, job: str) -> Sight:
        """Look at a job."""
        return self._look(job)

    def _look(self, job: str, seconds: float | None = None) -> Sight:
        with self._gone(job):
            said = as_json(self._connection.ask("GET", f"/jobs/{quote(job, safe='')}", seconds=seconds))
        with understood(self._url):
            return sight(said)

    def watch(self, job: str, after: int, seconds: float, *, values: bool = False) -> Iterator[Event]:
        """Give what happens to a job after an event."""
        posted = self._posted.get(job)
        told, asked = posted.take() if posted else None, {"after": after}
        if told is None:
            if posted:
                asked["result"] = WITH_EVENTS
            if values:
                asked["values"] = WITH_EVENTS
            timeout, path = httpx.Timeout(CONNECT_SECONDS, read=seconds), f"/jobs/{quote(job, safe='')}/events"
            with self._gone(job), self._connection.stream(path, params=asked, timeout=timeout) as answer:
                told = Told(answer, self._url)
                yield from told
        else:
            yield from told
        if posted:
            posted.result = told.result

    def fetch(self, job: str, progress: Progress, patience: float, trusted: bool) -> dict[str, Any]:
        """Return what a finished job saved, or raise what it raised."""
        posted = self._posted.pop(job, None)
        result = posted.result if posted else None
        if result is None:
            result = self._download(job, progress, patience)
        if result.media_type == _ERROR:
            raise decode_error(result.data)
        if result.media_type != _RESULTS:
            raise ProtocolError(f"the result of job {job} is of a kind that is not known here: {result.media_type!r}")
        return decode_results(result.data, trusted=trusted)

    def _download(self, job: str, progress: Progress, patience: float) -> Result:
        try:
            with self._gone(job):
                download = Download(
                    self._connection,
                    f"/jobs/{quote(job, safe='')}/result",
                    progress,
                    patience,
                    job,
                    lambda: self._announced(job),
                )
                data = download.read()
        except RefusedError as refused:
            if refused.status != 409:
                raise
            raise self._failure(job) from None
        return Result(download.media_type, data)

    def _announced(self, job: str) -> int | None:
        """Return how large the server says that a result is, unpacked."""
        with understood(self._url):
            said = self._look(job).details.get("result_bytes")
            return fields.number(said) or None if said is not None else None

    def value(self, job: str, number: int, patience: float) -> bytes | memoryview:
        """Fetch the value that was handed over with an event."""
        with self._gone(job):
            path = f"/jobs/{quote(job, safe='')}/values/{number}"
            return Download(self._connection, path, lambda done, size: None, patience, job).read()

    def cancel(self, job: str, seconds: float | None = None) -> None:
        """End a job."""
        if posted := self._posted.pop(job, None):
            posted.close()
        if not self._look(job, seconds).is_final:  # a finished one would be thrown away
            with self._gone(job):
                self._connection.ask("DELETE", f"/jobs/{quote(job, safe='')}", seconds=seconds)

    @property
    def _url(self) -> str:
        return self._connection.address.url

    def _check_size(self, size: int) -> None:
        """Refuse what the server would refuse, before it is sent: it may hang up in the middle of it."""
        if size < _WORTH_ASKING:
            return
        most = ServeFacts(self._connection).whoami().get("limits", {}).get("request_bytes")
        if isinstance(most, (int, float)) and size > most >= 0:
            raise RefusedError(
                f"the block and what it takes along have {in_bytes(size)}, and {self._url} takes {in_bytes(most)} at most. "
                "Let it load or compute there what is large, or send it in parts",
                413,
                "size",
            )

    @contextmanager
    def _gone(self, job: str) -> Iterator[None]:
        """Say what it means that a server knows no such job."""
        try:
            yield
        except RefusedError as refused:
            if refused.status != 404:
                raise
            said = f"{self._url} has no job {job} for this key: it expired, was deleted, or is another's"
            raise JobGoneError(said, job, "gone") from None

    def _failure(self, job: str) -> JobError:
        seen = self.look(job)
        if seen.state == "cancelled":
            return JobCancelledError(f"the job {job} was cancelled", job, "cancelled")
        error = JobError(f"{seen.message} (job {job})", job, seen.reason)
        if seen.traceback:
            vars(error)["__notes__"] = ["The traceback at the other end:\n\n" + seen.traceback.rstrip()]
        return error


def _packed(data: bytes) -> tuple[bytes, str]:
    """Return a request as it is sent to another machine, and the encoding."""
    source, target = io.BytesIO(data), io.BytesIO()
    if not packed.pays(source, len(data)):
        return data, "identity"
    packed.pack(source, len(data), target)
    return target.getvalue(), packed.ENCODING


@dataclass
class _Posted:
    """A job that is told of in the answer to its request, until that is read or lost."""

    told: Told | None
    result: Result | None = None

    def take(self) -> Told | None:
        """Give the answer to whoever reads it, once."""
        told, self.told = self.told, None
        return told

    def close(self) -> None:
        """Hear no more of it."""
        if told := self.take():
            told.close()
