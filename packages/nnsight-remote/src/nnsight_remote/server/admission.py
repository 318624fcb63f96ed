"""`Admission`: whether a user may hand in another job, asked before a byte of it is read.

The one idea: every refusal names the limit, what it is now, and when it is worth trying again.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

from .keys import User
from .limits import Limits
from .models import Model, Models
from .store import Store


class Refused(Exception):
    """A request that is not accepted: an HTTP status, a word for programs, a sentence for people.

    Attributes:
        retry_after: seconds after which another try may be worth it; None if it will not be.
    """

    def __init__(self, status: int, reason: str, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.status, self.reason, self.message, self.retry_after = status, reason, message, retry_after


def too_large(most: int) -> Refused:
    """Make the refusal of a request that has more bytes than it may."""
    return Refused(413, "size", f"the request has more than the {most} bytes that are allowed")


class Admission:
    """Keeps users to their rate, their share of the queue, and their share of the disk."""

    def __init__(
        self,
        store: Store,
        models: Models,
        general: Limits,
        unfinished: Callable[[str], int],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._models = models
        self._general = general
        self._unfinished = unfinished
        self._clock = clock
        self._recent: dict[str, deque[float]] = {}

    def model(self, name: str) -> Model:
        """Find the model that a request is for; an empty name is the only one there is."""
        offered = list(self._models)
        if not name and len(offered) == 1:
            return offered[0]
        found = self._models.get(name)
        if found is None:
            there = ", ".join(model.spec.name for model in offered) or "none"
            asked = f"there is no model {name!r} here" if name else "the request names no model"
            raise Refused(404 if name else 400, "model", f"{asked}; there are: {there}")
        return found

    def size(self, user: User, size: int) -> None:
        """Raise Refused for a request that is too large."""
        most = self.most(user)
        if size > most:
            raise too_large(most)

    def most(self, user: User) -> int:
        """How many bytes a request of a user's may have."""
        return user.limits_under(self._general).request_bytes

    def admit(self, user: User) -> None:
        """Raise Refused unless the user may hand in a job now; counts it as handed in."""
        limits = user.limits_under(self._general)
        waiting = self._unfinished(user.name)
        if waiting >= limits.queued:
            raise Refused(
                429,
                "queued",
                f"{waiting} of your jobs wait or run, and {limits.queued} may; wait for one, or cancel it",
                1,
            )
        kept = self._store.kept_bytes(user.name)
        if kept >= limits.kept_bytes:
            raise Refused(
                429,
                "kept",
                f"{kept} bytes of results lie here for you, and {limits.kept_bytes} may; fetch or delete some of them",
            )
        recent, now = self._recent.setdefault(user.name, deque()), self._clock()
        while recent and recent[0] <= now - 60:
            recent.popleft()
        if len(recent) >= limits.requests_per_minute:
            raise Refused(
                429,
                "rate",
                f"you handed in {len(recent)} jobs within a minute, and {limits.requests_per_minute} are allowed",
                recent[0] + 60 - now,
            )
        recent.append(now)
