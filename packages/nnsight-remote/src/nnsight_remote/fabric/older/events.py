"""`Events`: the connection of socket.io on which a server of that time tells what happens to a job.

The one idea: like the socket of today, it is opened before the job is sent and only listened to. It is not opened anew once
it breaks: what is told then goes to the name that it had before.
"""

from __future__ import annotations

import contextlib
import queue
from typing import Any

import httpx
import socketio
from socketio.exceptions import ConnectionError as Refused
from socketio.exceptions import SocketIOError

from ...client.connection import Connection
from ...client.errors import KeyRefusedError, ProtocolError
from ..response import Response, read

_OPEN_SECONDS = 10
PATH = "/ws/socket.io"


class Events:
    """An open connection.

    Attributes:
        session: the name by which the server knows it; a request that carries it is told of here.
    """

    def __init__(self, client: Any, told: queue.SimpleQueue[Any]) -> None:
        self._client = client
        self._told = told
        self.session = str(client.get_sid())

    @classmethod
    def open(cls, url: str, headers: dict[str, str]) -> Events:
        """Open one at a server.

        Raises:
            httpx.TransportError: nobody answers there.
            KeyRefusedError: it does not open one for this key.
        """
        told: queue.SimpleQueue[Any] = queue.SimpleQueue()
        # Signals are the program's own.
        client = socketio.Client(reconnection=False, handle_sigint=False)
        client.on("blocking_response", told.put)
        client.on("disconnect", lambda *_: told.put(None))
        try:
            # Not by requests that wait: those servers are several behind one address, and each knows its own.
            client.connect(
                url, headers=headers, transports=["websocket"], socketio_path=PATH, wait_timeout=_OPEN_SECONDS
            )
        except Refused as error:
            said = _reason(error)
            if "401" in said or "403" in said:
                raise KeyRefusedError(f"{url} does not tell what happens to a job: {said}") from error
            raise httpx.ConnectError(said) from error
        except OSError as error:
            raise httpx.ConnectError(str(error)) from error
        return cls(client, told)

    def receive(self, seconds: float) -> Response:
        """Wait for the next message.

        Raises:
            httpx.ReadTimeout: none came for so long.
            httpx.ReadError: the connection ended.
            ProtocolError: it is not understood.
        """
        try:
            said = self._told.get(timeout=seconds)
        except queue.Empty:
            raise httpx.ReadTimeout("the server said nothing") from None
        if said is None:
            raise httpx.ReadError("the server closed the connection")
        if not isinstance(said, (bytes, str)):
            raise ProtocolError(f"the server told of a job in a way that is not understood here: {str(said)[:100]!r}")
        return read(said)

    def close(self) -> None:
        """Close it."""
        with contextlib.suppress(SocketIOError, OSError):  # it may be closed already
            self._client.disconnect()


def _reason(error: BaseException) -> str:
    """Return why a connection was not made: what it began with, which the library says nothing of itself."""
    found: BaseException | None = error
    while found is not None:
        if isinstance(found, OSError) or type(found).__module__.startswith("websocket"):
            return str(found) or type(found).__name__
        found = found.__context__
    return str(error)


def is_there(connection: Connection) -> bool:
    """Whether a server speaks socket.io."""
    answer = connection.ask("GET", f"{PATH}/", params={"EIO": "4", "transport": "polling"}, accepted=(400, 404, 405))
    return answer.is_success and answer.text.startswith("0{")
