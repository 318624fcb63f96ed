"""The least that nnsight 0.8.1's client can talk to, run by the Python that has it: what a round trip can cost at best.

    python benchmarks/peer_server.py         prints its address and serves until it is killed

One process holds the model and runs each block at once, with 0.8.1's own classes, in the thread that received it: no queue,
no store, no key, no limit, nothing between users. Of HTTP and websockets it speaks what that client uses, over plain
sockets, which costs less than any framework. A small result goes back on the websocket, as NDIF sends it, a large one by a
download, which is the quicker of NDIF's two ways.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import linecache
import socket
import struct
import threading
import uuid
from typing import Any, BinaryIO

import torch
import zstandard
from nnsight.schema.request import RequestModel
from nnsight.schema.response import ResponseModel, Status
from nnsight.tracing.globals import BLOCKS, SOURCES
from nnsight.tracing.tracer import _saves, dec, inc

import gpt2

_ON_THE_SOCKET = 1 << 20
_ACCEPT = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # of RFC 6455


class Server:
    """The model, and who listens."""

    def __init__(self) -> None:
        self.model = gpt2.wrapped()
        self.subscribed: dict[str, socket.socket] = {}
        self.results: dict[str, bytes] = {}
        self.listening = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.listening.getsockname()[1]}"

    def serve(self) -> None:
        """Take connections, a thread each."""
        while True:
            connection, _ = self.listening.accept()
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            threading.Thread(target=self.answer, args=(connection,), daemon=True).start()

    def answer(self, connection: socket.socket) -> None:
        """Answer the requests of one connection."""
        with connection, connection.makefile("rb") as reading:
            while line := reading.readline().decode().split():
                headers = _headers(reading)
                body = reading.read(int(headers.get("content-length", 0)))
                if line[1] == "/subscribe":
                    return self.subscribe(connection, reading, headers)
                if line[1] == "/request":
                    self.request(connection, headers, body)
                else:
                    _respond(connection, self.results.pop(line[1].rpartition("/")[2]), "application/octet-stream")

    def subscribe(self, connection: socket.socket, reading: BinaryIO, headers: dict[str, str]) -> None:
        """Open a websocket, and keep it until the client leaves."""
        accept = base64.b64encode(hashlib.sha1((headers["sec-websocket-key"] + _ACCEPT).encode()).digest()).decode()
        lines = ("HTTP/1.1 101 Switching Protocols", "Upgrade: websocket", "Connection: Upgrade")
        connection.sendall("\r\n".join([*lines, f"Sec-WebSocket-Accept: {accept}", "", ""]).encode())
        session = uuid.uuid4().hex
        self.subscribed[session] = connection
        _send(connection, json.dumps({"session_id": session}).encode(), 1)
        reading.read(1)  # its farewell
        del self.subscribed[session]

    def request(self, connection: socket.socket, headers: dict[str, str], body: bytes) -> None:
        """Take a block in, run it, and send what became of it."""
        envelope, blob = _form(headers["content-type"], body)
        job, listener = str(uuid.uuid4()), self.subscribed[envelope["session_id"]]
        received = ResponseModel(id=job, status=Status.RECEIVED)
        _respond(connection, received.model_dump_json().encode(), "application/json")
        for status in (Status.QUEUED, Status.RUNNING):
            _send(listener, ResponseModel(id=job, status=status).model_dump_json().encode(), 1)
        result: Any = run(self.model, blob, envelope)
        if len(result) <= _ON_THE_SOCKET:
            _send(listener, ResponseModel(id=job, status=Status.COMPLETED, data=result).pickle(), 2)
            return
        self.results[job] = result
        done = ResponseModel(id=job, status=Status.COMPLETED, data=f"{self.url}/result/{job}")
        _send(listener, done.model_dump_json().encode(), 1)


def run(model: Any, blob: bytes, envelope: dict[str, Any]) -> bytes:
    """Run a block as NDIF's server does, and return what it saved as the client reads it."""
    for known in (linecache.cache, SOURCES, BLOCKS):
        known.clear()
    tracer = RequestModel.deserialize(blob, model._remoteable_persistent_objects(), envelope["compress"])
    model._remoteable_set_env(envelope["env"])
    inc()
    try:
        tracer.execute(tracer.info.code)
        saved = {name: value for name, value in tracer.info.frame.f_locals.items() if id(value) in _saves()}
        file = io.BytesIO()
        torch.save(saved, file)
    finally:
        dec()
    data = file.getvalue()
    return zstandard.ZstdCompressor(level=3).compress(data) if envelope["compress"] else data


def _headers(reading: BinaryIO) -> dict[str, str]:
    found = {}
    while line := reading.readline().strip():
        name, _, text = line.decode("latin-1").partition(":")
        found[name.lower()] = text.strip()
    return found


def _respond(connection: socket.socket, body: bytes, kind: str) -> None:
    connection.sendall(f"HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n".encode())
    connection.sendall(body)


def _send(listener: socket.socket, data: bytes, kind: int) -> None:
    """Send a frame: 1 for text, 2 for bytes."""
    size = len(data)
    short = bytes([0x80 | kind, size if size < 126 else 126 if size < 1 << 16 else 127])
    listener.sendall(short + (b"" if size < 126 else struct.pack(">H" if size < 1 << 16 else ">Q", size)) + data)


def _form(kind: str, body: bytes) -> tuple[dict[str, Any], bytes]:
    """Take the two fields of a form apart: the envelope and the block."""
    boundary = b"\r\n--" + kind.partition("boundary=")[2].encode()
    envelope, blob = ((b"\r\n" + body).split(boundary))[1:3]
    return json.loads(envelope.partition(b"\r\n\r\n")[2]), blob.partition(b"\r\n\r\n")[2]


if __name__ == "__main__":
    torch.set_num_threads(1)
    server = Server()
    print(server.url, flush=True)
    server.serve()
