"""Following a job while it runs: over plain HTTP as server-sent events, and over socket.io.

The one idea: both give the same numbered events from the same place, so a client that was cut off goes on from the last
number it has, over either. Polling `GET /jobs/ID?wait=30` needs neither.
"""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncGenerator, Callable
from typing import Any

import socketio

from .admission import Refused
from .auth import Door
from .events import Event, Events
from .jobs import Job
from .keys import User

PATH = "/ws/socket.io"
#: The most bytes of a value or a result that come with the events.
MOST_AT_ONCE = 1 << 20
_ALIVE_SECONDS = 15.0


def as_json(events: Events, job: str, event: Event, most: int = 0) -> dict[str, Any]:
    """An event as it is sent; a value of no more than `most` bytes comes along."""
    said = {"job": job, "number": event.number, "at": event.at, "kind": event.kind, "text": event.text}
    piece = event.piece
    if piece is None:
        return said
    said |= {"text": "", "bytes": piece.size}
    data = events.read(job, piece) if piece.size <= most else None
    return said if data is None else {**said, "data": base64.b64encode(data).decode()}


async def server_sent(events: Events, job: str, after: int, most: int = 0) -> AsyncGenerator[bytes, None]:
    """The events of a job as `text/event-stream`, with a comment now and then, by which a dead connection is noticed."""
    following = events.follow(job, after)
    ahead = asyncio.ensure_future(anext(following))
    try:
        while True:
            await asyncio.wait({ahead}, timeout=_ALIVE_SECONDS)
            if not ahead.done():
                yield b": still here\n\n"
                continue
            try:
                event = ahead.result()
            except StopAsyncIteration:
                return
            said = json.dumps(as_json(events, job, event, most))
            yield f"id: {event.number}\nevent: {event.kind}\ndata: {said}\n\n".encode()
            ahead = asyncio.ensure_future(anext(following))
    finally:
        ahead.cancel()
        await asyncio.gather(ahead, return_exceptions=True)
        await following.aclose()  # type: ignore[attr-defined]  # it is a generator


def make_sockets(events: Events, door: Door, find: Callable[[User, str], Job]) -> socketio.AsyncServer:
    """Serve `follow {job, after, values}`, answered by `event`s and at the end of the job by `end`."""
    # No page of another site may connect: it would come with no key anyway.
    sockets = socketio.AsyncServer(async_mode="asgi", cors_allowed_origins=None, max_http_buffer_size=1 << 16)

    @sockets.event
    async def connect(sid: str, environ: dict[str, Any], auth: Any) -> None:
        headers = {
            name[5:].lower().replace("_", "-"): text for name, text in environ.items() if name.startswith("HTTP_")
        }
        key = auth.get("key") if isinstance(auth, dict) else None
        try:
            user = door.enter(headers, key if isinstance(key, str) else "")
        except Refused as refused:
            raise socketio.exceptions.ConnectionRefusedError(refused.message) from None
        await sockets.save_session(sid, {"user": user})

    @sockets.event
    async def follow(sid: str, asked: Any) -> dict[str, Any]:
        user = (await sockets.get_session(sid))["user"]
        job = asked.get("job") if isinstance(asked, dict) else None
        after, most = (asked.get(name, 0) if isinstance(asked, dict) else None for name in ("after", "values"))
        if not (isinstance(job, str) and isinstance(after, int) and isinstance(most, int)) or not (
            0 <= after <= 1 << 53 and most <= MOST_AT_ONCE
        ):
            return {"reason": "request", "message": "`follow` takes {job: ID, after: NUMBER, values: BYTES}"}
        try:
            find(user, job)
        except Refused as refused:
            return {"reason": refused.reason, "message": refused.message}

        async def tell() -> None:
            async for event in events.follow(job, after):
                await sockets.emit("event", as_json(events, job, event, most), to=sid)
            await sockets.emit("end", {"job": job}, to=sid)

        session = await sockets.get_session(sid)
        telling = session.setdefault("telling", {})
        if job in telling:
            telling[job].cancel()
        telling[job] = asyncio.create_task(tell())
        telling[job].add_done_callback(lambda done: telling.pop(job, None) if telling.get(job) is done else None)
        await sockets.save_session(sid, session)
        return {"job": job}

    @sockets.event
    async def disconnect(sid: str, *reason: Any) -> None:
        for telling in list((await sockets.get_session(sid)).get("telling", {}).values()):
            telling.cancel()

    return sockets
