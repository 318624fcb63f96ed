"""`Subscription`: the socket on which NDIF tells what happens to a job while somebody waits.

The one idea: it is opened before the job is sent, so that nothing is missed, and only ever listened to. What breaks here is
an error of httpx, as everywhere else on the way there and back, so that one place decides how long to be patient.
"""

from __future__ import annotations

import contextlib
import json
from typing import Any
from urllib.parse import urlsplit

import httpx
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidURI, WebSocketException
from websockets.sync.client import ClientConnection, connect

from ..client.errors import KeyRefusedError, ProtocolError
from .response import Response, read

_OPEN_SECONDS = 10.0
#: Bytes of one message; a small result may come in it, a large one is fetched.
_MESSAGE = 256 << 20


class Subscription:
    """An open socket.

    Attributes:
        session: the name by which the server knows it; a request that carries it is told of here.
    """

    def __init__(self, socket: ClientConnection, session: str, opened: contextlib.ExitStack) -> None:
        self._socket = socket
        self._opened = opened
        self.session = session

    @classmethod
    def open(cls, url: str, headers: dict[str, str]) -> Subscription:
        """Open one at a server.

        Raises:
            httpx.TransportError: nobody answers there.
            ProtocolError, KeyRefusedError: it does not open one.
        """
        scheme = "wss" if urlsplit(url).scheme == "https" else "ws"
        opening = contextlib.ExitStack()
        try:
            socket = opening.enter_context(
                connect(
                    f"{scheme}://{url.partition('://')[2]}/subscribe",
                    additional_headers=headers,
                    open_timeout=_OPEN_SECONDS,
                    close_timeout=1,
                    max_size=_MESSAGE,
                )
            )
        except InvalidHandshake as error:
            status = getattr(getattr(error, "response", None), "status_code", None)
            kind = KeyRefusedError if status in (401, 403) else ProtocolError
            raise kind(f"{url} does not tell what happens to a job: {error}") from error
        except InvalidURI as error:
            raise ProtocolError(f"{url} is no address of a socket: {error}") from error
        except TimeoutError as error:
            raise httpx.ConnectTimeout(f"{url} did not open a socket in time") from error
        except OSError as error:
            raise httpx.ConnectError(str(error)) from error
        with opening:
            return cls(socket, _session(socket), opening.pop_all())

    def receive(self, seconds: float) -> Response:
        """Wait for the next message.

        Raises:
            httpx.ReadTimeout: none came for so long.
            httpx.ReadError: the connection ended.
            ProtocolError: it is not understood.
        """
        return read(_receive(self._socket, seconds))

    def close(self) -> None:
        """Close it."""
        self._opened.close()


def _session(socket: ClientConnection) -> str:
    said: Any = _receive(socket, _OPEN_SECONDS)
    try:
        session = json.loads(said)["session_id"]
        if not (isinstance(session, str) and session.isascii() and session.isprintable()):
            raise TypeError("the name is no text")
    except (ValueError, LookupError, TypeError, RecursionError):
        raise ProtocolError(f"the server opened a socket, and did not say its name: {str(said)[:100]!r}") from None
    return session


def _receive(socket: ClientConnection, seconds: float) -> str | bytes:
    try:
        found: str | bytes = socket.recv(timeout=seconds)
        return found
    except TimeoutError as error:
        raise httpx.ReadTimeout("the server said nothing") from error
    except ConnectionClosed as error:
        raise httpx.ReadError(f"the server closed the socket: {error}") from error
    except (WebSocketException, OSError) as error:
        raise httpx.ReadError(str(error)) from error
