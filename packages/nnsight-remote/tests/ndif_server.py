"""A server that speaks NDIF's protocol, as far as its clients see: real HTTP and sockets, in a process of its own.

What runs a block is either nnsight 0.8.1 in its own Python (`ndif_peer.py`), or nobody: then a job's result is what the test
said. How it behaves (breaks the socket, keeps results, puts them elsewhere) a test says with `POST /behave`.
"""

from __future__ import annotations

import asyncio
import email
import email.policy
import io
import json
import socket
import subprocess
import sys
import tempfile
import time
import uuid
import zipfile
from pathlib import Path
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

KEY = "nnsight.modeling.transformers.TransformersModel:" + json.dumps(
    {"repo_id": "tests/tiny-gpt2", "revision": None, "task": "text-generation"}
)


class Ndif:
    """What the server knows."""

    def __init__(self, peer: str | None, runs: str = "ndif_peer.py") -> None:
        self.sockets: dict[str, WebSocket] = {}
        self.responses: dict[str, str] = {}
        self.results: dict[str, bytes] = {}
        self.seen: list[dict[str, Any]] = []
        self.behaviour: dict[str, Any] = {}
        self.tasks: set[asyncio.Task[None]] = set()
        self.folder = Path(tempfile.mkdtemp(prefix="ndif-"))
        self.peer = None
        if peer is not None:
            self.peer = subprocess.Popen(
                [peer, "-I", str(Path(__file__).with_name(runs))],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )

    # -- routes ------------------------------------------------------------------------------------------------------

    async def subscribe(self, ws: WebSocket) -> None:
        await ws.accept()
        session = uuid.uuid4().hex
        self.sockets[session] = ws
        await ws.send_text(json.dumps({"session_id": session}))
        try:
            while True:
                await ws.receive_text()
        except WebSocketDisconnect:
            self.sockets.pop(session, None)

    async def request(self, request: Request) -> Response:
        if self.behaviour.get("refuse"):
            return JSONResponse({"detail": self.behaviour["refuse"][1]}, self.behaviour["refuse"][0])
        form = parts(request.headers["content-type"], await request.body())
        envelope = json.loads(form["data"])
        self.seen.append({"envelope": envelope, "headers": dict(request.headers), "size": len(form["blob"])})
        job = str(uuid.uuid4())
        task = asyncio.create_task(self.work(job, envelope, form["blob"], str(request.base_url)))
        self.tasks.add(task)
        return JSONResponse({"id": job, "status": "RECEIVED", "description": "Your job has been received."})

    async def response(self, request: Request) -> Response:
        found = self.responses.get(request.path_params["job"])
        return Response(found, media_type="application/json") if found else JSONResponse({"detail": "none yet"}, 404)

    async def result(self, request: Request) -> Response:
        if self.behaviour.get("failing", 0) > 0:
            self.behaviour["failing"] -= 1
            return PlainTextResponse("busy", 503)
        return Response(self.results[request.path_params["job"]], media_type="application/octet-stream")

    async def behave(self, request: Request) -> Response:
        said = await request.body()
        self.behaviour = json.loads(said) if said else {}
        return JSONResponse(self.seen)

    # -- a job -------------------------------------------------------------------------------------------------------

    async def work(self, job: str, envelope: dict[str, Any], blob: bytes, base: str) -> None:
        session = envelope["session_id"]
        for status in ("QUEUED", "DISPATCHED", "RUNNING"):
            await self.tell(job, session, status=status)
        outcome = await asyncio.to_thread(self.run, blob, envelope)
        for line in outcome.get("log", []):
            await self.tell(job, session, status="LOG", description=line)
        if "error" in outcome:
            await self.tell(job, session, status="ERROR", description=outcome["error"])
            return
        self.results[job] = outcome["result"]
        if self.behaviour.get("by_url") or not session:
            await self.tell(job, session, status="COMPLETED", data=f"{base}result/{job}", meta={"seconds": 1})
        elif session in self.sockets:
            await self.sockets[session].send_bytes(packed(job, outcome["result"]))
        else:
            await self.tell(job, "", status="COMPLETED", data=f"{base}result/{job}")

    async def tell(self, job: str, session: str, **said: Any) -> None:
        text = json.dumps({"id": job, "description": "", **said})
        if (not session or self.behaviour.get("keeps")) and said["status"] != "LOG":
            self.responses[job] = text
        ws = self.sockets.get(session)
        if ws is not None:
            await ws.send_text(text)
            if self.behaviour.get("drop") == said["status"]:
                del self.sockets[session]
                await ws.close()

    def run(self, blob: bytes, envelope: dict[str, Any]) -> dict[str, Any]:
        time.sleep(self.behaviour.get("seconds", 0))
        if "outcome" in self.behaviour:
            outcome = dict(self.behaviour["outcome"])
            outcome["result"] = bytes.fromhex(outcome.get("result", ""))
            return outcome
        assert self.peer is not None and self.peer.stdin is not None and self.peer.stdout is not None
        source, target = self.folder / "blob", self.folder / "result"
        source.write_bytes(blob)
        order = {"blob": str(source), "result": str(target), **envelope}
        self.peer.stdin.write(json.dumps(order) + "\n")
        self.peer.stdin.flush()
        outcome = json.loads(self.peer.stdout.readline())
        if "error" not in outcome:
            outcome["result"] = target.read_bytes()
        return outcome


def parts(content_type: str, body: bytes) -> dict[str, bytes]:
    """Take a form apart."""
    message = email.message_from_bytes(
        f"content-type: {content_type}\r\n\r\n".encode() + body, policy=email.policy.HTTP
    )
    return {
        str(part.get_param("name", header="content-disposition")): part.get_payload(decode=True)
        for part in message.iter_parts()
    }


def packed(job: str, result: bytes) -> bytes:
    """Write a finished job as `torch.save` writes a dictionary, with a state of a class that is not on this side."""
    said = f"(dS'id'\nS'{job}'\nsS'status'\ncnnsight.schema.response\nStatus\n(S'COMPLETED'\ntRsS'data'\n".encode()
    pickle = b"\x80\x04" + said + b"B" + len(result).to_bytes(4, "little") + result + b"s."
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", pickle)
        archive.writestr("archive/version", "3")
    return file.getvalue()


def application(peer: str | None) -> Starlette:
    """Make the server."""
    ndif = Ndif(peer)
    deployment = {
        "model_key": KEY,
        "repo_id": "tests/tiny-gpt2",
        "revision": None,
        "task": "text-generation",
        "trust_remote_code": False,
        "deployment_level": "HOT",
        "application_state": "RUNNING",
    }
    cold = {**deployment, "deployment_level": "COLD", "model_key": "another", "repo_id": "tests/another"}
    facts: dict[str, Any] = {
        "/status": {"deployments": {"one": deployment, "replica": deployment, "cold": cold}},
        "/env": {"python_version": sys.version, "packages": {"torch": "2.13.0", "nnsight": "0.8.1"}},
        "/ping": "pong",
        "/whoami": {"email": "somebody@example.org", "tags": []},
    }

    async def fact(request: Request) -> Response:
        if request.url.path == "/whoami" and request.headers.get("ndif-api-key") != "a-key":
            return JSONResponse({"email": None, "tags": []})
        return JSONResponse(facts[request.url.path])

    return Starlette(
        routes=[
            *(Route(path, fact) for path in facts),
            WebSocketRoute("/subscribe", ndif.subscribe),
            Route("/request", ndif.request, methods=["POST"]),
            Route("/response/{job}", ndif.response),
            Route("/result/{job}", ndif.result),
            Route("/behave", ndif.behave, methods=["POST"]),
        ]
    )


def serve(app: Any) -> None:
    """Serve it at a free port, which is told on the standard output."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen()
    print(f"http://127.0.0.1:{listener.getsockname()[1]}", flush=True)
    config = uvicorn.Config(app, log_level="warning", ws="wsproto")
    asyncio.run(uvicorn.Server(config).serve([listener]))


if __name__ == "__main__":
    serve(application(sys.argv[1] if len(sys.argv) > 1 else None))
