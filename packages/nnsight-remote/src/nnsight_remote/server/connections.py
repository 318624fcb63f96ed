"""`Connections`: HTTP/1.1 as uvicorn speaks it, but that nobody may take for ever to ask something.

The one idea: a connection on which no request is being answered has some seconds to send the head of one. Who sends it byte
by byte would otherwise hold connections until there are none left. How large a head may be, h11 knows; bodies are the
business of `small_bodies.py` and `intake.py`.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

# relies on: `H11Protocol` with `cycle`, `conn`, `transport`, `send_400_response`, uvicorn 0.30 to 0.54
from uvicorn.protocols.http.h11_impl import H11Protocol

HEAD_SECONDS = 30.0


class Connections(H11Protocol):
    """One connection."""

    _slow: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """Begin to wait for the head of a request."""
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        """Take what came; stop waiting once it was a whole head."""
        super().data_received(data)
        self._watch()

    def on_response_complete(self) -> None:
        """Wait for the head of the next request, if a part of it is here."""
        super().on_response_complete()
        if self.conn.trailing_data[0]:
            self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop waiting."""
        self._settle()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        """Refuse what is no HTTP, in the form of all refusals."""
        self._settle()
        if self.cycle is not None and not self.cycle.response_complete:
            self.transport.close()  # it stands in the body of a request, whose answer may be on its way
            return
        said = json.dumps({"reason": "http", "message": msg}).encode()
        head = f"HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\ncontent-length: {len(said)}\r\n"
        self.transport.write(f"{head}connection: close\r\n\r\n".encode() + said)
        self.transport.close()

    def _watch(self) -> None:
        answering = self.cycle is not None and not self.cycle.response_complete
        if answering or self.transport.is_closing() or self.transport.get_protocol() is not self:
            self._settle()
        elif self._slow is None:
            self._slow = self.loop.call_later(HEAD_SECONDS, self.transport.close)

    def _settle(self) -> None:
        if self._slow is not None:
            self._slow.cancel()
            self._slow = None
