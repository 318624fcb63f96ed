"""Blocks on NDIF: `Jobs` in its protocol, generation B (the server's version 0.1.0, clients of nnsight 0.8).

GET /subscribe (a socket)   what happens to a job, while somebody waits for it
POST /request               hand a block in
GET /response/ID            what was said last of a job that nobody waits for, or whose socket broke

The one idea: a job is told of on its socket, and looked up by its id when that breaks, so that a result is lost only if the
server keeps none. A request is sent once: a server that got it twice would run it twice.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, Protocol
from urllib.parse import quote

import httpx

from nnsight.plugin import Request

from ..client.connection import CONNECT_SECONDS, Connection
from ..client.errors import DownloadError, JobError, JobGoneError, ProtocolError, RefusedError
from ..client.patience import Patience
from ..client.protocol import Event, Progress, Sight
from .model import check_key, env_of, key_of
from .payload import encode
from .response import Response, read
from .results import MOST, decode
from .subscription import Subscription

#: The version of nnsight whose language is spoken.
SPOKEN = "0.8.1"
POSTING = httpx.Timeout(CONNECT_SECONDS, read=600.0)
#: Seconds between two looks at a job without a socket, at first and at last.
_OFTEN, _SELDOM = 0.2, 5.0
#: Seconds after which somebody who listens is told that the connection is alive.
_BEAT = 5.0
#: Seconds for which a server may know nothing of a job; it notes what it says a moment after it took it.
_UNKNOWN = 30.0
_CHUNK = 128 * 1024


class Socket(Protocol):
    """What tells of a job, under the name `session`."""

    session: str

    @classmethod
    def open(cls, url: str, headers: dict[str, str]) -> Socket:
        """Open one."""

    def receive(self, seconds: float) -> Response:
        """Wait for the next message; httpx's errors if there is none."""

    def close(self) -> None:
        """Close it."""


class NdifJobs:
    """Hands blocks in, and fetches what became of them."""

    #: What tells of jobs.
    _socket: type[Socket] = Subscription
    #: Answers that mean that the server knows nothing of a job.
    _unknown_by: tuple[int, ...] = (404,)

    def __init__(self, connection: Connection, *, unknown: float = _UNKNOWN) -> None:
        self._connection = connection
        self._unknown = unknown
        key = connection.address.key
        self._headers = {"ndif-api-key": key} if key else {}
        self._told: dict[str, Told] = {}

    def post(
        self,
        request: Request,
        model: str,
        remark: Callable[[str], None],
        *,
        followed: bool = True,
        stream: bool = False,
    ) -> str:
        """Hand in a block and return the id of its job.

        Args:
            request: the block.
            model: the key of the model, as the server lists it, or its name on the hub.
            remark: told in words why we wait.
            followed: whether this process waits for it. If not, the server keeps what it says of it, for any process.
            stream: NDIF does not hand over values while a job runs, so this is refused.
        """
        if stream:
            raise RefusedError(
                f"{self._connection.address.url} is NDIF, which sends values when a job is finished only"
            )
        hand_in = self._prepared(request, model)
        with self._connection.in_words():
            socket = self._socket.open(self._connection.address.url, self._headers) if followed else None
        try:
            first = hand_in(socket.session if socket is not None else "")
        except BaseException:
            if socket is not None:
                socket.close()
            raise
        if first.status == "ERROR":
            raise RefusedError(f"{self._connection.address.url} refused this: {first.description}")
        if socket is not None:
            self._told[first.id] = Told(socket)
        return first.id

    def look(self, job: str) -> Sight:
        """Look at a job."""
        told = self._told.get(job)
        last = told.last if told is not None and (told.socket is not None or told.is_over) else None
        if last is None:
            last = self._ask(job)
        if last is None:
            if told is not None and told.socket is not None:
                return Sight(job, "queued")
            raise self._gone(job)
        message = last.description if last.status == "ERROR" else ""
        return Sight(
            job, last.state, message=message, has_result=last.status == "COMPLETED", details={"meta": last.meta or {}}
        )

    def watch(self, job: str, after: int, seconds: float, *, values: bool = False) -> Iterator[Event]:
        """Give what happens to a job after an event."""
        told = self._told.setdefault(job, Told(None))
        number = after
        while True:
            while number < len(told.events):
                number += 1
                yield Event(number, *told.events[number - 1])
            if told.is_over:
                return
            # A socket that nobody answers at is closed by its keepalive, so one that is silent is alive.
            if not (told.hear(min(seconds, _BEAT)) if told.socket is not None else self._look_up(job, told, seconds)):
                yield Event(0, "alive")

    def fetch(self, job: str, progress: Progress, patience: float, trusted: bool) -> dict[str, Any]:
        """Return what a finished job saved, or raise why there is nothing."""
        told = self._told.get(job)
        last = told.last if told is not None and told.is_over else self._ask(job)
        if last is None or not last.is_final:
            raise self._gone(job)
        if last.status == "ERROR":
            self._told.pop(job, None)
            raise JobError(f"{last.description} (job {job})", job, "error")
        if last.data is None:
            return {}
        data = last.data if isinstance(last.data, bytes) else self._download(last.data, progress, patience)
        found = decode(data, trusted=trusted)
        self._told.pop(job, None)
        return found

    def value(self, job: str, number: int, patience: float) -> bytes | memoryview:
        """NDIF does not hand over values while a job runs."""
        raise self._gone(job)

    def cancel(self, job: str, seconds: float | None = None) -> None:
        """NDIF has no way to end a job; what can be done is to stop listening."""
        told = self._told.pop(job, None)
        if told is not None and told.socket is not None:
            told.socket.close()
        raise RefusedError(f"NDIF cannot end a job: {job} goes on at {self._connection.address.url}", 0, "cancel")

    def _prepared(self, request: Request, model: str) -> Callable[[str], Response]:
        """Write a block, and return what hands it in, given the name of the socket on which it is told of."""
        blob = encode(request)
        root = request.node.root
        key = check_key(root, model) if ":" in model else key_of(root, model)

        def hand_in(session: str) -> Response:
            envelope = {"model_key": key, "session_id": session, "compress": True, "env": env_of(root)}
            return self._hand_in(json.dumps(envelope), blob)

        return hand_in

    def _hand_in(self, envelope: str, blob: bytes) -> Response:
        headers = {
            **self._headers,
            "ndif-timestamp": repr(time.time()),
            "nnsight-version": SPOKEN,
            "python-version": sys.version,
        }
        answer = self._connection.ask(
            "POST",
            "/request",
            seconds=0.0,
            data={"data": envelope},
            files={"blob": ("request", blob, "application/octet-stream")},
            headers=headers,
            timeout=POSTING,
        )
        return read(answer.text)

    def _ask(self, job: str) -> Response | None:
        """Ask what was said last of a job; None if the server knows nothing."""
        path = f"/response/{quote(job, safe='')}"
        answer = self._connection.ask("GET", path, headers=self._headers, accepted=self._unknown_by)
        return None if answer.status_code in self._unknown_by else read(answer.text)

    def _look_up(self, job: str, told: Told, seconds: float) -> bool:
        """Look a job up, and return whether there is something new; wait a moment if not."""
        found = self._ask(job)
        now = time.monotonic()
        if found is None and now - told.since > self._unknown:
            raise self._gone(job)
        if found is not None:
            told.since = now
            if told.note(found):
                told.pause = _OFTEN
                return True
        time.sleep(min(told.pause, seconds))
        told.pause = min(told.pause * 1.5, _SELDOM)
        return False

    def _download(self, url: str, progress: Progress, patience: float) -> bytes:
        if not url.lower().startswith(("http://", "https://")):
            raise ProtocolError(f"the server says that the result is at {url[:100]!r}, which is no address")
        try:
            httpx.URL(url)
        except httpx.InvalidURL as error:
            raise ProtocolError(f"the server says that the result is at {url[:100]!r}: {error}") from None
        tries = Patience(patience)

        def once() -> bytes:
            # Whoever keeps the results is not the server, so the key does not go there.
            parts, have = [], 0
            plain = {"accept-encoding": "identity"}
            with httpx.stream("GET", url, timeout=POSTING, headers=plain) as answer:
                if answer.status_code >= 500:
                    raise httpx.RemoteProtocolError(f"the place of the result answered {answer.status_code}")
                if not answer.is_success:
                    raise JobGoneError(f"the result is not at its place any more ({answer.status_code})", "", "gone")
                said = answer.headers.get("content-length", "")
                size = int(said) if said.isascii() and said.isdigit() and len(said) < 19 else 0
                for part in answer.iter_raw(_CHUNK):
                    have += len(part)
                    if max(have, size) > MOST:
                        raise DownloadError(f"the result has more than the {MOST} bytes that are taken")
                    parts.append(part)
                    tries.heard()
                    progress(have, size)
            return b"".join(parts)

        with self._connection.in_words():
            return tries.keep_trying(once)

    def _gone(self, job: str) -> JobGoneError:
        return JobGoneError(
            f"{self._connection.address.url} knows nothing of job {job}. NDIF keeps what it says of a job only if nobody "
            "waited for it; where connections break, hand it in with `blocking=False`",
            job,
            "gone",
        )


class Told:
    """What was heard of a job."""

    def __init__(self, socket: Socket | None) -> None:
        self.socket = socket
        self.last: Response | None = None
        self.events: list[tuple[str, str]] = []
        self.since = time.monotonic()
        self.pause = _OFTEN

    @property
    def is_over(self) -> bool:
        return self.last is not None and self.last.is_final

    def hear(self, seconds: float) -> bool:
        """Wait for the next message on the socket, and return whether one came.

        Once the socket breaks, the job is looked up instead.
        """
        assert self.socket is not None
        try:
            told = self.note(self.socket.receive(seconds))
        except httpx.ReadTimeout:
            return False
        except httpx.ReadError:
            self._leave()
            return False
        if self.is_over:
            self._leave()
        return told

    def note(self, response: Response) -> bool:
        """Note a message; return whether it says anything new."""
        if response.status == "LOG":
            text = response.description
            self.events.append(("log", text if text.endswith("\n") else text + "\n"))
            return True
        if self.last is not None and response.status == self.last.status:
            return False
        if response.status == "STREAM":
            raise ProtocolError("the server wants a function of the block to be run here, which is not done")
        self.last = response
        state = response.state if response.is_final or response.status == "RUNNING" else response.status.lower()
        self.events.append(("state", state))
        return True

    def _leave(self) -> None:
        if self.socket is not None:
            self.socket.close()
            self.socket = None
            self.since = time.monotonic()
