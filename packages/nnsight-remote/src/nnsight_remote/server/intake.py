"""Taking a request in: from the socket into a file, and then into the queue.

The one idea: whatever can be known without the body is decided before the body is read, and what is read never exceeds
what is allowed, whether the client announced its size or not. Of the bytes it is seen that they arrived whole, and in a
version that is understood; what they say is the business of the process that runs them.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from pathlib import Path

from starlette.requests import ClientDisconnect

from .. import packed
from .admission import Admission, Refused, too_large
from .dispatch import Dispatcher
from .jobs import Job
from .keys import User
from .queue import QueueFull

_CHUNK_SECONDS = 60.0
_SLOWEST = 1024  # bytes a second, on the whole
_LONGEST_ID = 200


class Intake:
    """Takes requests in."""

    def __init__(self, admission: Admission, dispatcher: Dispatcher) -> None:
        self._admission = admission
        self._dispatcher = dispatcher
        self._store = dispatcher.store

    async def take(
        self,
        user: User,
        headers: Mapping[str, str],
        body: AsyncIterator[bytes],
        unwrap: Callable[[Path], Awaitable[str]] | None = None,
    ) -> tuple[Job, bool]:
        """Return the job that a request became, and whether it is new; raise Refused.

        `unwrap` is for a request in another format: given the file that the body was read into, it leaves there what is to
        be stored, and returns the name of the model.
        """
        began = time.monotonic()
        request_id = headers.get("nnsight-request-id", "")
        if len(request_id) > _LONGEST_ID:
            raise Refused(400, "request", f"a request's id has {_LONGEST_ID} characters at most")
        if request_id and (known := self._store.find(user.name, request_id)):
            return known, False
        encoding = headers.get("content-encoding", "identity").strip().lower().replace("identity", "")
        if encoding not in ("", packed.ENCODING):
            raise Refused(415, "encoding", f"a request is sent as it is or packed with {packed.ENCODING}")
        streams = headers.get("nnsight-stream", "0")
        if streams not in ("0", "1"):
            raise Refused(
                400, "request", "the header nnsight-stream is 1 for values that arrive while a job runs, or 0"
            )
        model = None if unwrap else self._admission.model(headers.get("nnsight-model", ""))
        self._admission.size(user, _announced(headers))
        self._admission.admit(user)
        name = self._dispatcher.new_id()
        path = self._store.request_path(name)
        try:
            size = await self._read(user, body, path)
            if encoding:
                size = await asyncio.to_thread(_unpack, path, self._admission.most(user))
            if unwrap:
                model = self._admission.model(await unwrap(path))
            else:
                await asyncio.to_thread(_check, path)
            assert model is not None
            if request_id and (known := self._store.find(user.name, request_id)):  # it was sent twice at once
                path.unlink()
                return known, False
            model = self._admission.model(model.spec.name)  # it may have been taken off meanwhile
            stages = {"receive": time.monotonic() - began}
            job = Job(name, user.name, model.spec.name, "queued", time.time(), request_id, size, stages=stages)
            job = job.but(streams=streams == "1")
            self._dispatcher.submit(model, job)
        except QueueFull as error:
            path.unlink(missing_ok=True)
            raise Refused(503, "full", f"the server's queue is full: {error}", 5) from None
        except BaseException:
            path.unlink(missing_ok=True)
            raise
        return job, True

    async def _read(self, user: User, body: AsyncIterator[bytes], path: Path) -> int:
        size, began = 0, time.monotonic()
        with open(path, "xb") as file:
            while True:
                left = began + _CHUNK_SECONDS + size / _SLOWEST - time.monotonic()
                try:
                    chunk = await asyncio.wait_for(anext(body, None), min(left, _CHUNK_SECONDS))
                except asyncio.TimeoutError:
                    said = f"{size} bytes came in {time.monotonic() - began:.0f} s, and then nothing"
                    raise Refused(408, "slow", said) from None
                except ClientDisconnect:
                    raise Refused(400, "cut", "the connection was cut before the request was here") from None
                if chunk is None:
                    break
                size += len(chunk)
                self._admission.size(user, size)
                file.write(chunk)
        if not size:
            raise Refused(400, "request", "the request is empty; its body is a block, as nnsight encodes it")
        return size


def _unpack(path: Path, most: int) -> int:
    """Put what is in a packed request in its place, and return its size."""
    unpacked = path.with_name(f"{path.name}.unpacked")
    try:
        with open(path, "rb") as source, open(unpacked, "xb") as target:
            size = packed.unpack(source, target, most)
        os.replace(unpacked, path)
    except packed.TooLarge:
        raise too_large(most) from None
    except packed.PackedWrongly as error:
        raise Refused(400, "encoding", str(error)) from None
    finally:
        unpacked.unlink(missing_ok=True)
    return size


def _check(path: Path) -> None:
    # Imported when the first request comes: the server itself needs neither torch nor the core, and is up sooner.
    from nnsight.plugin import WireError, check_bytes

    try:
        check_bytes(path.read_bytes())
    except WireError as error:
        raise Refused(400, "wire", str(error)) from None


def _announced(headers: Mapping[str, str]) -> int:
    text = headers.get("content-length", "0")
    if not (text.isascii() and text.isdigit()):
        raise Refused(400, "request", f"{text!r} is no content length")
    return int(text[:20])
