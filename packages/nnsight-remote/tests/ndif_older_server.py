"""A server that speaks NDIF's protocol for clients of nnsight up to 0.7, as far as they see: real HTTP and socket.io.

What runs a block is nnsight 0.7 in its own Python (`ndif_older_peer.py`), or nobody, as in `ndif_server.py`. It refuses what
is not sent as those clients send it.
"""

from __future__ import annotations

import asyncio
import enum
import io
import json
import sys
import types
import uuid
from typing import Any

import socketio
import torch
import zstandard
from ndif_server import Ndif, serve
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

KEY = "nnsight.modeling.language.LanguageModel:" + json.dumps({"repo_id": "tests/tiny-gpt2", "revision": None})
HEADERS = ("ndif-api-key", "ndif-callback", "ndif-timestamp", "nnsight-model-key", "nnsight-version", "python-version")


class JobStatus(enum.Enum):
    """The states, as the class that a message names."""

    QUEUED = "QUEUED"
    DISPATCHED = "DISPATCHED"
    RUNNING = "RUNNING"
    COMPLETED = "COMPLETED"
    LOG = "LOG"
    STREAM = "STREAM"
    ERROR = "ERROR"


# Messages name the class by the place that it has in nnsight 0.7, which is not on this side.
theirs = types.ModuleType("nnsight.schema.response")
theirs.ResponseModel = type("ResponseModel", (), {"JobStatus": JobStatus})  # type: ignore[attr-defined]
JobStatus.__module__, JobStatus.__qualname__ = theirs.__name__, "ResponseModel.JobStatus"
theirs.ResponseModel.__module__ = theirs.__name__  # type: ignore[attr-defined]
sys.modules[theirs.__name__] = theirs


class Older(Ndif):
    """What the server knows."""

    def __init__(self, peer: str | None) -> None:
        super().__init__(peer, "ndif_older_peer.py")
        self.io = socketio.AsyncServer(async_mode="asgi", max_http_buffer_size=100_000_000, always_connect=True)
        self.connected: set[str] = set()
        self.io.on("connect", self.connect)
        self.io.on("disconnect", self.disconnect)

    async def connect(self, session: str, environ: dict[str, Any]) -> None:
        self.connected.add(session)

    async def disconnect(self, session: str, *_: Any) -> None:
        self.connected.discard(session)

    async def request(self, request: Request) -> Response:
        if self.behaviour.get("refuse"):
            return JSONResponse({"detail": self.behaviour["refuse"][1]}, self.behaviour["refuse"][0])
        headers, body = request.headers, await request.body()
        session = headers.get("ndif-session_id")
        envelope = {"session_id": session or "", "compress": headers.get("nnsight-compress") == "True"}
        fault = self.fault(headers, body)
        if fault:
            return JSONResponse({"detail": fault}, 400)
        self.seen.append({"envelope": envelope, "headers": dict(headers), "size": len(body)})
        job = str(uuid.uuid4())
        base = str(request.base_url)
        envelope["own_client"] = headers.get("user-agent", "").startswith("python-httpx")
        said = {"id": job, "status": "RECEIVED", "description": "received", "session_id": session}
        if not session:
            self.responses[job] = json.dumps(said)
        task = asyncio.create_task(self.work(job, envelope, body, base))
        self.tasks.add(task)
        return JSONResponse(said)

    def fault(self, headers: Any, body: bytes) -> str:
        """Say what in a request is not as 0.7's client writes it."""
        missing = [name for name in HEADERS if name not in headers]
        if missing:
            return f"no header {missing[0]}"
        if headers["content-type"] != "application/octet-stream":
            return "the body is no block"
        if headers["nnsight-model-key"] != KEY:
            return f"no model {headers['nnsight-model-key']}"
        if headers.get("nnsight-compress") not in ("True", "False"):
            return "it is not said whether the body is compressed"
        if headers["nnsight-compress"] == "True":
            body = zstandard.ZstdDecompressor().decompress(body)
        if body[:2] != b"\x80\x04":
            return "the body is no pickle of protocol 4"
        session = headers.get("ndif-session_id")
        if session is not None and session not in self.connected:
            return f"nobody is connected as {session}"
        float(headers["ndif-timestamp"])
        return ""

    async def response(self, request: Request) -> Response:
        found = self.responses.get(request.path_params["job"])
        # Theirs had no answer for a job that it did not know.
        return Response(found or "Internal Server Error", 200 if found else 500, media_type="application/json")

    async def work(self, job: str, envelope: dict[str, Any], blob: bytes, base: str) -> None:
        session = envelope["session_id"]
        for status in ("QUEUED", "DISPATCHED", "RUNNING"):
            await self.say(job, session, status)
        if self.behaviour.get("stream"):
            await self.say(job, session, "STREAM", data=b"a function")
        outcome = await asyncio.to_thread(self.run, blob, envelope)
        for line in outcome.get("log", []):
            await self.say(job, session, "LOG", description=line)
        if "error" in outcome:
            await self.say(job, session, "ERROR", description=outcome["error"])
            return
        self.results[job] = outcome["result"]
        await self.say(job, session, "COMPLETED", data=(f"{base}result/{job}", len(outcome["result"])))

    async def say(self, job: str, session: str, status: str, **more: Any) -> None:
        said = {"id": job, "status": JobStatus(status), "description": "", **more, "session_id": session or None}
        if not session or self.behaviour.get("keeps"):
            self.responses[job] = json.dumps({**said, "status": status}, default=repr)
        if session:
            file = io.BytesIO()
            torch.save(said, file)
            await self.io.emit("blocking_response", data=file.getvalue(), to=session)
            if self.behaviour.get("drop") == status:
                await self.io.disconnect(session)


def application(peer: str | None) -> socketio.ASGIApp:
    """Make the server."""
    ndif = Older(peer)
    deployment = {
        "model_key": KEY,
        "repo_id": "tests/tiny-gpt2",
        "revision": None,
        "deployment_level": "HOT",
        "application_state": "RUNNING",
        "dedicated": True,
    }
    facts: dict[str, Any] = {
        "/status": {"deployments": {"one": deployment}},
        "/env": {"python_version": sys.version, "packages": {"torch": "2.13.0", "nnsight": "0.7.0"}},
        "/ping": "pong",
    }

    async def fact(request: Request) -> Response:
        said = facts[request.url.path]
        if request.url.path == "/env" and ndif.behaviour.get("unnamed"):
            said = {"python_version": sys.version, "packages": {"torch": "2.13.0"}}
        return JSONResponse(said)

    http = Starlette(
        routes=[
            *(Route(path, fact) for path in facts),
            Route("/request", ndif.request, methods=["POST"]),
            Route("/response/{job}", ndif.response),
            Route("/result/{job}", ndif.result),
            Route("/behave", ndif.behave, methods=["POST"]),
        ]
    )
    return socketio.ASGIApp(ndif.io, http, socketio_path="/ws/socket.io")


if __name__ == "__main__":
    serve(application(sys.argv[1] if len(sys.argv) > 1 else None))
