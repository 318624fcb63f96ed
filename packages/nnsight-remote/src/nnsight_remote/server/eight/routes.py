"""The routes that clients of nnsight 0.8 use, as they use those of NDIF.

    GET  /subscribe                      a socket: its name first, then what happens to the jobs that carry it
    POST /request (a multipart form)     hand a block in
    GET  /response/ID                    how a job is now
    GET  /response/ID/result?...         what it saved: the address says who may have it, and until when

The one idea: a job is asked for with a key, as everywhere; but their client fetches a result from an address, and sends no
key there. So the address that it is told carries a signature, for one result and one hour, which only this process can make.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import secrets
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import Depends, FastAPI, Query, Request, Response, WebSocket
from fastapi.responses import FileResponse, JSONResponse
from starlette.background import BackgroundTask

from ..admission import Refused
from ..intake import Intake
from ..keys import User
from . import named, told
from .envelope import Envelope, holds_results
from .form import FormError, parts
from .sockets import Sockets

if TYPE_CHECKING:
    from ..api import Parts

_LINK_SECONDS = 3600


class EightRoutes:
    """Answers clients of nnsight 0.8."""

    def __init__(self, parts: Parts, intake: Intake) -> None:
        self._parts = parts
        self._intake = intake
        self._secret = secrets.token_bytes(32)
        self._sockets = Sockets(parts.dispatcher, lambda user: user.limits_under(parts.general).queued)

    @staticmethod
    def speaks(request: Request) -> bool:
        """Whether a request is one of theirs: what is handed in to us is no form."""
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        return kind == "multipart/form-data" or request.url.path.startswith("/response/")

    async def submit(self, user: User, request: Request) -> Response:
        """Take a request in; raise Refused."""
        session = ""

        async def unwrap(path: Path) -> str:
            nonlocal session
            key, session = await asyncio.to_thread(_unwrap, request.headers["content-type"], path)
            if session:
                self._sockets.find(user, session)
            return named.find(key, self._parts.dispatcher.models).spec.name

        job, _ = await self._intake.take(user, request.headers, request.stream(), unwrap=unwrap)
        self._sockets.tell(session, job.id, self._address(request, job.id))
        return Response(told.received(job.id), media_type="application/json")

    async def subscribe(self, socket: WebSocket) -> None:
        """Open a socket."""
        try:
            await self._sockets.serve(self._parts.door.enter(socket.headers), socket)
        except Refused as refused:
            self._parts.dispatcher.metrics.refused(refused.reason)
            if "websocket.http.response" not in socket.scope.get("extensions", {}):
                await socket.close(1008)
            else:
                said = {"detail": refused.message, "reason": refused.reason, "message": refused.message}
                await socket.send_denial_response(JSONResponse(said, refused.status))

    def look(self, user: User, id: str, request: Request) -> Response:
        """Say how a job is now; raise Refused."""
        job = self._parts.find(user, id)
        try:
            theirs = job.state != "completed" or holds_results(self._parts.dispatcher.store.result_path(id))
        except FileNotFoundError:
            raise Refused(404, "job", "there is no result here any more") from None
        if not theirs:
            raise Refused(409, "format", "this job was handed in by another kind of client; ask with that")
        return Response(told.state(job, self._address(request, id)), media_type="application/json")

    def result(self, id: str, until: int, signature: str) -> Response:
        """Give what a job saved to whoever has its address; raise Refused."""
        if not hmac.compare_digest(signature.encode(), self._signature(id, until).encode()) or until < time.time():
            raise Refused(403, "address", "this address is not valid any more; ask for the job again")
        job = self._parts.dispatcher.store.get(id)
        if job is None or job.state != "completed":
            raise Refused(404, "job", "there is no result here; it may have expired")
        done = BackgroundTask(self._parts.dispatcher.fetched, job, time.monotonic())
        path = self._parts.dispatcher.store.result_path(id)
        return FileResponse(path, media_type="application/octet-stream", background=done)

    def _address(self, request: Request, id: str) -> str:
        until = int(time.time()) + _LINK_SECONDS
        base = str(request.base_url).rstrip("/")
        return f"{base}/response/{id}/result?until={until}&signature={self._signature(id, until)}"

    def _signature(self, id: str, until: int) -> str:
        return hmac.new(self._secret, f"{id} {until}".encode(), hashlib.sha256).hexdigest()


def add_routes(api: FastAPI, routes: EightRoutes, user: Callable[..., Any]) -> None:
    """Add them to an application."""

    @api.get("/response/{id}", tags=["clients of nnsight 0.8"])
    async def response(id: str, request: Request, who: User = Depends(user)) -> Response:
        """How a job is now, as nnsight 0.8 reads it; a finished one names the address of its result."""
        return routes.look(who, id, request)

    @api.get("/response/{id}/result", tags=["clients of nnsight 0.8"], response_class=FileResponse)
    async def result(
        id: str, until: Annotated[int, Query(ge=0, le=1 << 53)], signature: Annotated[str, Query(max_length=64)]
    ) -> Response:
        """What a job saved, as nnsight 0.8 reads it. No key is asked for: the address, which `/response/ID` gives, is one."""
        return routes.result(id, until, signature)

    api.add_api_websocket_route("/subscribe", routes.subscribe)


def _unwrap(content_type: str, path: Path) -> tuple[Any, str]:
    """Leave of a form what is to be stored; return the key of the model, and the name of a socket. Raise Refused."""
    try:
        found = parts(content_type, path.read_bytes())
        said = json.loads(found["data"])
        blob, key, session = found["blob"], said["model_key"], said.get("session_id") or ""
        compress, env = said.get("compress", False), said.get("env") or {}
        if not (isinstance(session, str) and isinstance(compress, bool) and isinstance(env, dict)):
            raise Refused(422, "form", "`session_id` is a text, `compress` true or false, `env` a table")
        stored = Envelope(compress, env).around(blob)
    except FormError as error:
        raise Refused(400, "form", str(error)) from None
    except (KeyError, TypeError, AttributeError, ValueError, RecursionError):
        said = "a request is a form of `data`, a table that names the `model_key`, and `blob`, the block"
        raise Refused(422, "form", said) from None
    if not blob:
        raise Refused(400, "form", "the block is empty")
    path.write_bytes(stored)
    return key, session
