"""`Connection`: one HTTP client for each server, and what its refusals mean.

The one idea: a caller gets an answer that it can use, or one of our errors with a sentence about what to do. Sending
something again is left to `patience.py`, and is safe for everything that is asked here: whoever posts gives the request a
name, by which the server knows it again.
"""

from __future__ import annotations

import atexit
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import httpx

from nnsight_remote._version import __version__

from . import bounded
from .address import Address
from .errors import KeyRefusedError, ProtocolError, RefusedError, UnreachableError
from .patience import Busy, Patience, worth_another_try

#: Seconds until we give up on a server that never answered, and on one that did.
FIRST_CONTACT, AFTERWARDS = 3.0, 60.0
CONNECT_SECONDS = 10.0
# Whoever waits for a job holds a connection, and many jobs can be waited for at once.
_LIMITS = httpx.Limits(max_connections=None, max_keepalive_connections=20)
_TIMEOUT = httpx.Timeout(30.0, connect=CONNECT_SECONDS)


class Connection:
    """A server, and the client that talks to it. Threads may share it.

    Attributes:
        address: which server.
        answered: whether it answered before.
    """

    def __init__(self, address: Address) -> None:
        self.address = address
        self.answered = False
        headers = {"user-agent": f"nnsight-remote/{__version__}", "accept-encoding": "identity"}
        if address.key:
            if not address.key.isascii() or not address.key.isprintable():
                raise KeyRefusedError("the key has characters that no key has; copy it again")
            headers["authorization"] = f"Bearer {address.key}"
        # Redirections are not followed: the key would go to somebody else. This machine is reached without a proxy.
        self._client = httpx.Client(
            base_url=address.url,
            headers=headers,
            timeout=_TIMEOUT,
            limits=_LIMITS,
            trust_env=not address.is_this_machine,
            # Reading the certificates takes longer than a block does, and nothing will be encrypted.
            verify=not (address.is_this_machine and address.url.startswith("http:")),
        )

    def ask(
        self,
        method: str,
        path: str,
        *,
        seconds: float | None = None,
        remark: Callable[[str], None] | None = None,
        accepted: tuple[int, ...] = (),
        unread: str = "",
        **options: Any,
    ) -> httpx.Response:
        """Send a request, again if need be, and return the answer, which is no refusal.

        Args:
            seconds: how long the server may be silent.
            remark: told in words why we wait.
            accepted: further statuses to return.
            unread: a media type; an answer of this type is returned when it begins, and whoever asked reads and closes it.
            options: what httpx takes.
        """

        def once() -> httpx.Response:
            answer = self._client.send(self._client.build_request(method, path, **options), stream=True)
            if not (unread and answer.is_success and answer.headers.get("content-type", "").startswith(unread)):
                answer = bounded.whole(answer)
            if worth_another_try(answer):
                raise Busy(answer)
            return answer

        if seconds is None:
            seconds = AFTERWARDS if self.answered else FIRST_CONTACT
        with self.in_words():
            answer = Patience(seconds, remark).keep_trying(once)
        self.answered = True
        if answer.is_success or answer.status_code in accepted:
            return answer
        refuse(answer, self.address)

    @contextmanager
    def stream(self, path: str, **options: Any) -> Iterator[httpx.Response]:
        """Open an answer that is read as it comes; what is wrong with the way there is raised as httpx raises it."""
        with self._client.stream("GET", path, **options) as answer:
            if not answer.is_success:
                refusal = bounded.whole(answer)
                if worth_another_try(refusal):
                    raise Busy(refusal)
                refuse(refusal, self.address)
            self.answered = True
            yield answer

    @contextmanager
    def in_words(self) -> Iterator[None]:
        """Let errors of the way there be ours."""
        try:
            yield
        except httpx.TransportError as error:
            url = self.address.url
            kind = "did not answer in time" if isinstance(error, httpx.TimeoutException) else "cannot be reached"
            hint = "is it running, and is the address right?"
            if url.startswith("https:") and "SSL" in str(error):
                hint = "if it does not encrypt its connections, write http:// before its name"
            said = f"{url} {kind} ({str(error) or type(error).__name__}); {hint}"
            raise UnreachableError(said) from error.with_traceback(None)
        except Busy as error:
            refuse(error.response, self.address)
        except httpx.InvalidURL as error:  # httpx reads where an answer leads, though nobody goes there
            raise ProtocolError(f"{self.address.url} says that it is at no address: {error}") from error.with_traceback(
                None
            )

    def close(self) -> None:
        """Hang up."""
        self._client.close()


_connections: dict[tuple[int, Address], Connection] = {}
_lock = threading.Lock()


@atexit.register
def _hang_up() -> None:
    for (process, _), connection in list(_connections.items()):
        if process == os.getpid():
            connection.close()


def connect(address: Address) -> Connection:
    """Return the connection of this process to a server; a forked process has others than its parent."""
    key = (os.getpid(), address)
    with _lock:
        known = _connections.get(key)
        if known is None:
            known = _connections[key] = Connection(address)
        return known


def as_json(answer: httpx.Response) -> Any:
    """Read an answer that is to be JSON."""
    try:
        return answer.json()
    except (ValueError, RecursionError) as error:
        url = str(answer.request.url)
        said = f"{url} answered with something that is no JSON; it is no server that is known here"
        raise ProtocolError(said) from error.with_traceback(None)


@contextmanager
def understood(url: str) -> Iterator[None]:
    """Let an answer that does not have the form it should have be an error of ours."""
    try:
        yield
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RecursionError) as error:
        said = f"{url} said something that is not understood here ({type(error).__name__}: {str(error)[:500]})"
        raise ProtocolError(said) from error.with_traceback(None)


def refuse(answer: httpx.Response, address: Address) -> NoReturn:
    """Raise what a refusal means."""
    status = answer.status_code
    reason, said = _read(answer)
    if status in (401, 403) and reason != "trust":
        hint = "the key that it was sent is another" if address.key else "no key was sent"
        raise KeyRefusedError(
            f"{address.url} refused the key: {said} ({hint}). `nnsight login {address.url}` keeps a key for this server; "
            "`CONFIG.set_default_api_key(...)` or the variable NDIF_API_KEY gives one for all"
        )
    if status >= 500 and reason in ("", "internal", "http"):
        raise RefusedError(f"{address.url} failed ({status}): {said}", status, reason)
    if 300 <= status < 400:
        there = answer.headers.get("location", "elsewhere")[:500]
        raise ProtocolError(f"{address.url} says that it is at {there}; give that address, if it is the right one")
    raise RefusedError(f"{address.url} refused this: {said}", status, reason)


def _read(answer: httpx.Response) -> tuple[str, str]:
    """Return the word and the sentence of a refusal."""
    try:
        said = answer.json()
    except (ValueError, RecursionError):
        said = None
    if isinstance(said, dict):
        for name in ("message", "detail"):
            if isinstance(said.get(name), str):
                reason = said.get("reason")
                return reason[:100] if isinstance(reason, str) else "", said[name][:2000]
    text = answer.text[:200].strip()
    return "", text if text and "<" not in text else f"{answer.status_code} {answer.reason_phrase}"
