"""What became of a job on its way out: its events as they happen, and its result.

The one idea: a small result comes at the end of the events, so that whoever hands a block in and waits needs one request
and one answer; a large one is fetched by itself, in parts if need be. Either way it is the same file, and the client that
lost an answer asks for what it lacks.
"""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import os
import re
import tempfile
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import BinaryIO, cast

from fastapi.responses import FileResponse, StreamingResponse
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import Response

from .. import packed
from .admission import Refused
from .dispatch import Dispatcher
from .eight.envelope import holds_results
from .jobs import Job
from .live import server_sent

log = logging.getLogger(__name__)
RESULTS, ERROR = "application/vnd.nnsight.results", "application/vnd.nnsight.error"
#: What a block of nnsight 0.8 saved, which its own client reads.
OTHERS = "application/octet-stream"
VALUE = "application/vnd.nnsight.message"
EVENTS = "text/event-stream"
_FROM = re.compile(r"bytes=(\d{1,18})-")


@dataclass(frozen=True)
class Most:
    """How many bytes of a result, and of each value before it, may come with the events."""

    result: int = 0
    value: int = 0


class Outgoing:
    """Answers with what became of jobs."""

    def __init__(self, dispatcher: Dispatcher) -> None:
        self._dispatcher = dispatcher
        self._store = dispatcher.store

    async def result(self, job: Job, request: Request) -> Response:
        """The result of a finished job, or the exception that it raised; a range of it can be asked for. Raises Refused.

        Args:
            job: a job that has one.
            request: who asks, and which encodings, and which part, they take.
        """
        accepted = request.headers.get("accept-encoding", "")
        done = BackgroundTask(self._dispatcher.fetched, job, time.monotonic())
        headers, path = {"vary": "accept-encoding"}, self._store.result_path(job.id)
        if _accepts(accepted) and await asyncio.to_thread(self._pack, job):
            # A file of its own, with a tag of its own: parts of it are asked for like parts of any other.
            headers["content-encoding"], path = packed.ENCODING, self._store.packed_path(job.id)
        try:
            found = path.stat()
        except FileNotFoundError:
            raise Refused(404, "job", f"the result of job {job.id} is not here any more") from None
        _check_range(found.st_size, request)
        return FileResponse(path, headers=headers, media_type=self._kind(job), background=done, stat_result=found)

    def _pack(self, job: Job) -> bool:
        """Pack a result if that pays and was not done yet; return whether it is packed."""
        target = self._store.packed_path(job.id)
        if target.exists():
            return True
        try:
            with open(self._store.result_path(job.id), "rb") as source:
                if not packed.pays(source, job.result_bytes):
                    return False
                with tempfile.NamedTemporaryFile(dir=target.parent, delete=False) as file:
                    try:
                        packed.pack(source, job.result_bytes, cast(BinaryIO, file))
                        # The first of several who pack it at once is the one whose file is sent.
                        os.link(file.name, target)
                    except FileExistsError:
                        pass
                    finally:
                        os.unlink(file.name)
        except OSError as error:
            # The disk is full, or the job was thrown away meanwhile: it is sent as it is, or not there.
            log.warning("a result could not be packed", extra={"job": job.id, "problem": str(error)})
            return False
        return True

    def value(self, job: Job, number: int, ranges: str) -> Response:
        """The value that a job handed over with an event, or what lies behind its first bytes; raises Refused."""
        event = self._dispatcher.events.numbered(job.id, number)
        piece = event.piece if event else None
        data = self._dispatcher.events.read(job.id, piece) if piece else None
        if data is None:
            raise Refused(404, "value", f"the job handed no value over with event {number}, or it is gone")
        asked = _FROM.fullmatch(ranges)
        start = int(asked[1]) if asked else 0
        headers = {"etag": f'"{job.id}-{number}"', "accept-ranges": "bytes"}
        if not 0 < start < len(data):
            return Response(data, 200, headers, VALUE)
        headers["content-range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        return Response(data[start:], 206, headers, VALUE)

    def events(self, job: str, after: int, most: Most, status: int = 200, headers: Mapping[str, str] = {}) -> Response:
        """The events of a job until it is finished, and then its result if that has no more than `most` bytes."""
        # A proxy that collects an answer before it passes it on would hold up what a block prints.
        headers = {**headers, "cache-control": "no-store", "x-accel-buffering": "no"}
        sent: list[tuple[Job, float]] = []
        stream = self._stream(job, after, most, sent)
        return StreamingResponse(stream, status, headers, EVENTS, BackgroundTask(self._note, sent))

    async def _note(self, sent: list[tuple[Job, float]]) -> None:
        for job, began in sent:
            await self._dispatcher.fetched(job, began)

    async def _stream(self, name: str, after: int, most: Most, sent: list[tuple[Job, float]]) -> AsyncIterator[bytes]:
        async with aclosing(server_sent(self._dispatcher.events, name, after, most.value)) as events:
            async for part in events:
                yield part
        job = self._store.get(name)
        if job is None or not job.has_file or job.result_bytes > most.result:
            return
        began = time.monotonic()
        try:
            data = self._store.result_path(name).read_bytes()
        except FileNotFoundError:  # it was thrown away this moment
            return
        said = {"job": name, "kind": "result", "type": self._kind(job), "data": base64.b64encode(data).decode()}
        yield f"event: result\ndata: {json.dumps(said)}\n\n".encode()
        sent.append((job, began))

    def _kind(self, job: Job) -> str:
        if job.state != "completed":
            return ERROR
        return OTHERS if holds_results(self._store.result_path(job.id)) else RESULTS


def _accepts(accepted: str) -> bool:
    for word in accepted.lower().split(","):
        name, _, weight = word.partition(";")
        if name.strip() == packed.ENCODING:
            return weight.replace(" ", "") not in ("q=0", "q=0.0", "q=0.00", "q=0.000")
    return False


def _check_range(size: int, request: Request) -> None:
    """Forget about a range that is none, or several, as if nobody had asked; refuse one that lies behind the end."""
    asked = request.headers.get("range")
    if asked is None:
        return
    found = re.fullmatch(r"bytes=(\d{1,18})-(\d{0,18})|bytes=-(\d{1,18})", asked, re.ASCII)
    if found is None or (found[1] and found[2] and int(found[1]) > int(found[2])):
        request.scope["headers"] = [pair for pair in request.scope["headers"] if pair[0] != b"range"]
    elif int(found[1] or 0) >= size or found[3] and not int(found[3]):
        raise Refused(416, "range", f"there are {size} bytes, and {asked} is behind them")
