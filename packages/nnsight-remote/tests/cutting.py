"""What stands between a client and a server in the tests of faults: a proxy that cuts connections where it is told to."""

from __future__ import annotations

import re
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

#: How a request begins; what comes in one piece may hold the end of another before it.
_LINE = re.compile(rb"((?:GET|POST|DELETE) /[!-~]* HTTP/1\.1)\r\n")
_RESET = struct.pack("ii", 1, 0)


class Proxy:
    """Passes bytes on, between a port of its own and a server's.

    Attributes:
        url: where a client finds it.
        passed: how many bytes of answers went through.
        cuts: how many connections it has cut.
        seen: the first lines of the requests that went through.
    """

    def __init__(self, url: str) -> None:
        self.lead_to(url)
        self.passed = self.cuts = 0
        self.seen: list[str] = []
        self._plan: list[tuple[bytes, int]] = []
        self._open: list[socket.socket] = []
        self._lock = threading.Lock()
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listening.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def lead_to(self, url: str) -> None:
        """Lead new connections to another server."""
        parts = urlsplit(url)
        self._target = (parts.hostname, parts.port)

    def cut(self, line: str, *answered: int) -> None:
        """Cut the connections of the next requests that begin with a line, one for each of `answered`.

        Each is how many bytes of the answer pass before: -1 lets not even the request through, 0 nothing of the answer.
        """
        self._plan += [(line.encode(), after) for after in answered]

    def close(self) -> None:
        """Answer nobody any more."""
        self._shut(self._listening, *self._open)

    @property
    def is_done(self) -> bool:
        """Whether all that was to be cut has been."""
        return not self._plan

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listening.accept()
            except OSError:
                return
            try:
                server = socket.create_connection(self._target)
            except OSError:
                self._break(client)
                continue
            self._open += [client, server]
            left = _Left()
            threading.Thread(target=self._forth, args=(client, server, left), daemon=True).start()
            threading.Thread(target=self._back, args=(client, server, left), daemon=True).start()

    def _forth(self, client: socket.socket, server: socket.socket, left: _Left) -> None:
        while data := _receive(client):
            for line in _LINE.findall(data):
                self.seen.append(line.decode())
                with self._lock:
                    left.bytes = None
                    if self._plan and line.startswith(self._plan[0][0]):
                        left.bytes = self._plan.pop(0)[1]
                if left.bytes == -1:
                    self._break(client, server)
                    return
            if not _send(server, data):
                break
        self._shut(client, server)

    def _back(self, client: socket.socket, server: socket.socket, left: _Left) -> None:
        while data := _receive(server):
            if left.bytes is not None:
                data = data[: left.bytes]
                left.bytes -= len(data)
            self.passed += len(data)
            if not _send(client, data):
                break
            if left.bytes == 0:
                self._break(client, server)
                return
        self._shut(client, server)

    def _break(self, *sockets: socket.socket) -> None:
        self.cuts += 1
        for one in sockets:
            try:
                one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            except OSError:
                pass
        self._shut(*sockets)

    def _shut(self, *sockets: socket.socket) -> None:
        for one in sockets:
            try:
                one.shutdown(socket.SHUT_RD)  # wakes the thread that waits for it
            except OSError:
                pass
            one.close()


class _Left:
    """How many bytes of the answer may pass; None for all of them."""

    bytes: int | None = None


def _receive(end: socket.socket) -> bytes:
    try:
        return end.recv(1 << 16)
    except OSError:
        return b""


def _send(end: socket.socket, data: bytes) -> bool:
    try:
        end.sendall(data)
    except OSError:
        return False
    return True


@contextmanager
def proxy_to(url: str) -> Iterator[Proxy]:
    proxy = Proxy(url)
    try:
        yield proxy
    finally:
        proxy.close()
