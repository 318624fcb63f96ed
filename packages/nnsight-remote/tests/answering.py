"""A server that says what a test wants it to say, for answers that ours never gives."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

#: Status, headers and body; a body that is no bytes is sent as JSON, and one that can be called gives parts that are sent
#: until the client hangs up.
Answer = tuple[int, dict[str, str], Any]


class InTurn(list[Answer]):
    """Answers that are given one after another; the last one stays."""


class Answering:
    """A server on the loopback interface.

    Attributes:
        url: where it is.
        answers: by "METHOD /path", an answer, a body alone, or several answers `InTurn`.
        asked: what was asked for, with the headers.
    """

    def __init__(self, answers: dict[str, Any]) -> None:
        self.answers = answers
        self.asked: list[tuple[str, dict[str, str]]] = []
        around = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True  # the head and the body are sent by themselves

            def answer(self) -> None:
                self.rfile.read(int(self.headers.get("content-length", 0)))
                status, headers, body = around.find(f"{self.command} {self.path.partition('?')[0]}", dict(self.headers))
                if callable(body):
                    return self.send_parts(status, headers, body())
                data = body if isinstance(body, bytes) else json.dumps(body).encode()
                self.send_response(status)
                for name, text in {"content-length": str(len(data)), **headers}.items():
                    self.send_header(name, text)
                self.end_headers()
                self.wfile.write(data)

            def send_parts(self, status: int, headers: dict[str, str], parts: Iterator[bytes]) -> None:
                self.send_response(status)
                for name, text in {"connection": "close", **headers}.items():
                    self.send_header(name, text)
                self.end_headers()
                with contextlib.suppress(OSError):  # the client had enough
                    for part in parts:
                        self.wfile.write(part)

            do_GET = do_POST = do_DELETE = answer

            def log_message(self, *args: Any) -> None:
                return

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def find(self, line: str, headers: dict[str, str]) -> Answer:
        self.asked.append((line, headers))
        found = self.answers.get(line, (404, {}, {"reason": "http", "message": "Not Found"}))
        if isinstance(found, InTurn):
            found = found.pop(0) if len(found) > 1 else found[0]
        return found if isinstance(found, tuple) else (200, {}, found)

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@contextmanager
def answering(answers: dict[str, Any]) -> Iterator[Answering]:
    server = Answering(answers)
    try:
        yield server
    finally:
        server.close()


def serving(result: bytes = b"", kind: str = "results", **others: Any) -> dict[str, Any]:
    """What a server says through the whole life of one job, whose result is `result`."""
    event = {"job": "j1", "number": 1, "at": 0, "kind": "state", "text": "completed"}
    model = {"name": "mlp", "source": "mlp", "state": "ready", "queued": 0, "problem": ""}
    view = {"id": "j1", "state": "completed", "model": "mlp", "position": None, "failure": None}
    return {
        "GET /env": {"protocol": 1, "python": "3.11.0", "packages": {}, "models": {}},
        "GET /models": [model],
        "POST /request": (202, {}, view),
        "GET /jobs/j1": view,
        "GET /jobs/j1/events": (200, {}, f"id: 1\ndata: {json.dumps(event)}\n\n".encode()),
        "GET /jobs/j1/result": (200, {"content-type": f"application/vnd.nnsight.{kind}"}, result),
        **others,
    }
