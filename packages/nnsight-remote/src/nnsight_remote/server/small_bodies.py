"""`SmallBodies`: no body but that of a job is large, or slow.

The one idea: a framework reads a body before it asks who sent it, and all of it, so that anybody could fill the memory of the
server. Here a body is read first, as far as it may go, and refused or handed on whole. Jobs are left to `intake.py`, which
asks for the key before it reads. Nor does anything else that comes with a body take long.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable, Collection
from typing import Any

log = logging.getLogger(__name__)
#: What Engine.IO and socket.io let through of packets that are none.
_UNREADABLE = (ValueError, RecursionError)
MOST_BYTES = 1 << 16
SECONDS = 10.0


class SmallBodies:
    """Stands before an ASGI application.

    Args:
        app: the application.
        but: the paths whose bodies it reads itself, with care.
    """

    def __init__(self, app: Any, but: Collection[str]) -> None:
        self._app = app
        self._but = frozenset(but)

    async def __call__(self, scope: dict[str, Any], receive: Callable[..., Any], send: Callable[..., Any]) -> None:
        """Serve a connection."""
        if scope["type"] == "websocket":
            await self._socket(scope, receive, send)
            return
        if scope["type"] != "http" or scope["path"] in self._but or not _has_body(scope["headers"]):
            await self._app(scope, receive, send)
            return
        body = bytearray()
        try:
            whole = await asyncio.wait_for(_read(receive, body), SECONDS)
        except asyncio.TimeoutError:
            await _refuse(send, 408, "slow", f"the body of the request was not here after {SECONDS:g} s")
            return
        if len(body) > MOST_BYTES:
            await _refuse(send, 413, "size", f"the body of the request has more than {MOST_BYTES} bytes")
            return
        if not whole:
            return  # it hung up
        pending: list[dict[str, Any]] = [{"type": "http.request", "body": bytes(body), "more_body": False}]

        async def again() -> Any:
            return pending.pop() if pending else await receive()

        answered = False

        async def answer(message: dict[str, Any]) -> None:
            nonlocal answered
            answered = True
            await send(message)

        # Engine.IO answers some farewells only when everything was fetched that it had to say: maybe never.
        working = asyncio.ensure_future(self._app(scope, again, answer))
        try:
            await asyncio.wait({working}, timeout=SECONDS)
        finally:
            working.cancel()
        if working.done():
            try:
                working.result()
            except _UNREADABLE:
                if answered:
                    raise
                await _refuse(send, 400, "request", "the body of the request cannot be read")
        elif not answered:
            await _refuse(send, 408, "slow", f"nothing came of this in {SECONDS:g} s")

    async def _socket(self, scope: dict[str, Any], receive: Callable[..., Any], send: Callable[..., Any]) -> None:
        try:
            await self._app(scope, receive, send)
        except _UNREADABLE as error:
            log.warning(
                "a socket was sent what cannot be read", extra={"problem": f"{type(error).__name__}: {error}"[:200]}
            )
            await send({"type": "websocket.close", "code": 1007})


def _has_body(headers: list[tuple[bytes, bytes]]) -> bool:
    return any(name == b"transfer-encoding" or (name == b"content-length" and text != b"0") for name, text in headers)


async def _read(receive: Callable[..., Any], body: bytearray) -> bool:
    """Read a body as far as it is allowed; whether that was all of it, or enough."""
    while len(body) <= MOST_BYTES:
        message = await receive()
        if message["type"] == "http.disconnect":
            return False
        body += message.get("body", b"")
        if not message.get("more_body"):
            return True
    return True


async def _refuse(send: Callable[..., Any], status: int, reason: str, message: str) -> None:
    said = json.dumps({"reason": reason, "message": message}).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", b"%d" % len(said)),
        (b"connection", b"close"),
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": said})
