"""`Channel`: what the server and the process of a host say to each other.

The one idea: lines of JSON on a socket that only these two have, with open files beside them. Files are handed over open
(the request, the place of the result, a pipe for what is printed, a pipe for the outcome), so the host needs no folder of
the server's, and what a job writes reaches the server without the host copying it.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
from collections.abc import Sequence
from typing import Any

_LONGEST = 1 << 20
_MOST_FILES = 8


class Channel:
    """One end. The server's is used from an event loop, the host's blocks."""

    def __init__(self, end: socket.socket) -> None:
        self.socket = end
        self._read = b""
        self._files: list[int] = []

    def send(self, message: dict[str, Any], files: Sequence[int] = ()) -> None:
        """Say something, and hand over files. Raises OSError if the other end is gone."""
        line = json.dumps({**message, "files": len(files)} if files else message).encode() + b"\n"
        # The files travel with the first byte; what a full buffer leaves of the line follows.
        sent = socket.send_fds(self.socket, [line], files) if files else self.socket.send(line)
        if sent < len(line):
            self.socket.settimeout(10)
            self.socket.sendall(line[sent:])
            self.socket.setblocking(False)

    def receive(self) -> tuple[dict[str, Any], list[int]] | None:
        """Wait for a message and its files; None at the end. For the end that blocks."""
        # Those of a message may have come with the bytes of one before it.
        while (message := self._next()) is None:
            data, files, _, _ = socket.recv_fds(self.socket, 1 << 16, _MOST_FILES)
            self._files += files
            if not data:
                return None
            self._read += data
        count = message.pop("files", 0)
        taken, self._files = self._files[:count], self._files[count:]
        return message, taken

    @property
    def has_message(self) -> bool:
        """Whether `receive` would return at once, though nothing more may come."""
        return b"\n" in self._read

    async def hear(self) -> dict[str, Any] | None:
        """Wait for a message; None at the end, or if what comes is no message."""
        loop = asyncio.get_running_loop()
        while (message := self._next()) is None:
            try:
                data = await loop.sock_recv(self.socket, 1 << 16)
            except OSError:
                return None
            if not data or len(self._read) > _LONGEST:
                return None
            self._read += data
        return message

    def close(self) -> None:
        """Hang up."""
        for file in self._files:
            os.close(file)
        self.socket.close()

    def _next(self) -> dict[str, Any] | None:
        line, end, rest = self._read.partition(b"\n")
        if not end:
            return None
        self._read = rest
        try:
            message = json.loads(line)
        except ValueError:
            return {}
        return message if isinstance(message, dict) else {}
