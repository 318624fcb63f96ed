"""`Patience`: how long a server may stay silent before we give up, and what is done about it until then.

The one idea: what counts is how long ago the server was last heard of, not how often it was asked. A server that says when
to come back is asked then.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

import httpx
import tenacity

T = TypeVar("T")

#: Answers that another try may change: a proxy without its server, a server that is full or busy, too many requests.
_WORTH_ANOTHER = frozenset((429, 502, 503, 504))


class Busy(Exception):
    """An answer that another try may change.

    Attributes:
        after: the seconds after which the server wants to be asked again; None if it said nothing.
    """

    def __init__(self, response: httpx.Response) -> None:
        super().__init__(f"status {response.status_code}")
        self.response = response
        said = response.headers.get("retry-after", "")
        self.after = float(said) if said.isascii() and said.isdigit() else None


def worth_another_try(response: httpx.Response) -> bool:
    """Whether another try may change an answer. A refusal that names no time (a full account) does not pass by itself."""
    status = response.status_code
    return status in _WORTH_ANOTHER and (status != 429 or "retry-after" in response.headers)


class Patience:
    """Tries again, with pauses that grow, until a server was silent for so many seconds.

    Args:
        seconds: how long.
        remark: told why we wait, in words.
    """

    def __init__(self, seconds: float, remark: Callable[[str], None] | None = None) -> None:
        self._seconds = seconds
        self._remark = remark
        self._pause = tenacity.wait_random_exponential(multiplier=0.05, max=5)
        self.heard()

    def heard(self) -> None:
        """Note that the server was heard of just now."""
        self._since = time.monotonic()

    def keep_trying(self, ask: Callable[[], T]) -> T:
        """Call `ask` until it returns; what it raises at last is raised."""
        return tenacity.Retrying(
            retry=tenacity.retry_if_exception_type((httpx.TransportError, Busy)),
            wait=self._wait,
            stop=self._is_over,
            before_sleep=self._say,
            reraise=True,
        )(ask)

    def _wait(self, state: tenacity.RetryCallState) -> float:
        error = _error_of(state)
        return error.after if isinstance(error, Busy) and error.after is not None else self._pause(state)

    def _is_over(self, state: tenacity.RetryCallState) -> bool:
        error = _error_of(state)
        wanted = error.after if isinstance(error, Busy) and error.after is not None else 0.0
        return time.monotonic() - self._since + wanted > self._seconds

    def _say(self, state: tenacity.RetryCallState) -> None:
        if self._remark is not None:
            error = _error_of(state)
            self._remark("the server is busy" if isinstance(error, Busy) else "the connection is lost, trying again")


def _error_of(state: tenacity.RetryCallState) -> BaseException | None:
    return state.outcome.exception() if state.outcome is not None else None
