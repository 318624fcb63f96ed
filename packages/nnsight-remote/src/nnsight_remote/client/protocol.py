"""What a server is asked for, whatever it speaks: `Jobs` to run blocks, `Facts` to know beforehand what is there.

The one idea: everything about a job can be asked for again with its id alone, from any process, so a connection that is
cut costs nothing but time. Another protocol is another pair of these, chosen in `handshake.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from nnsight.plugin import Request

#: States of a job that do not change any more.
FINAL = frozenset(("completed", "failed", "cancelled"))
STATES = ("queued", "running", *sorted(FINAL))
#: Called with the number of bytes that are there, and how many there will be (0 if nobody says).
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Event:
    """Something that happened to a job.

    Attributes:
        number: 1, 2, 3, ...; with it one asks for what came after. 0 says only that the connection is alive.
        kind: "state" (`text` is the new state), "log" (`text` was printed), "value" (one was handed over), "cut" (no more
            are, and `text` says why), or "alive".
        data: a value, encoded, if it came along.
    """

    number: int
    kind: str
    text: str = ""
    data: bytes | None = None


@dataclass(frozen=True)
class Sight:
    """A job as it is now.

    Attributes:
        state: "queued", "running", "completed", "failed" or "cancelled".
        position: how many jobs run before it, while it is queued.
        reason, message, traceback: why it failed, if it did: a word, a sentence, and the other end's traceback.
        has_result: whether there is something to fetch: what it saved, or the exception that it raised.
        streams: whether it hands values over while it runs.
        details: all that the server says of it.
    """

    id: str
    state: str
    model: str = ""
    position: int | None = None
    reason: str = ""
    message: str = ""
    traceback: str = ""
    has_result: bool = False
    streams: bool = False
    details: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @property
    def is_final(self) -> bool:
        """Whether it will not change any more."""
        return self.state in FINAL


class Jobs(Protocol):
    """Blocks on a server."""

    def post(
        self,
        request: Request,
        model: str,
        remark: Callable[[str], None],
        *,
        followed: bool = True,
        stream: bool = False,
    ) -> str:
        """Hand in a block, however often the connection is cut meanwhile once, and return the id of its job.

        `followed` says whether this process is going to watch it; `stream`, whether values are to arrive while it runs.
        """

    def look(self, job: str) -> Sight:
        """Look at a job. Raises JobGoneError for one that is not there."""

    def watch(self, job: str, after: int, seconds: float, *, values: bool = False) -> Iterator[Event]:
        """Give what happens to a job after an event, until it is finished; httpx's errors where the connection ends.

        It is an error of httpx, too, if nothing at all comes for `seconds`. With `values`, small values come along.
        """

    def value(self, job: str, number: int, patience: float) -> bytes | memoryview:
        """Fetch the value that was handed over with an event."""

    def fetch(self, job: str, progress: Progress, patience: float, trusted: bool) -> dict[str, Any]:
        """Return what a finished job saved, or raise what it raised."""

    def cancel(self, job: str, seconds: float | None = None) -> None:
        """End a job; one that is finished stays as it is. The server may be silent for so many seconds."""


@dataclass(frozen=True)
class Offer:
    """A model on a server.

    Attributes:
        name: what the server calls it.
        source: what it was loaded from, a hub id for instance.
        state: the server's word; `is_ready` says whether its weights are there.
        queued: how many jobs wait for it; None if the server does not say.
    """

    name: str
    source: str
    state: str
    is_ready: bool
    queued: int | None = None
    note: str = ""


@dataclass(frozen=True)
class Environment:
    """What is installed on a server.

    Attributes:
        python: the version of Python.
        packages: the versions of packages, by the name they are installed under.
        foreign: packages that this kind of server never has, so that nothing is missing without them.
    """

    python: str
    packages: Mapping[str, str]
    foreign: frozenset[str] = frozenset()


class Facts(Protocol):
    """What is known of a server without running anything."""

    def offers(self) -> list[Offer]:
        """The models."""

    def environment(self, model: str = "") -> Environment:
        """The versions that a block of this model meets."""

    def whoami(self) -> Mapping[str, Any]:
        """Whose key it is, and what it allows: `name` and whatever else the server says."""

    def jobs(self, count: int) -> list[Sight]:
        """The user's newest jobs."""


@dataclass(frozen=True)
class Spoken:
    """What one server speaks."""

    jobs: Jobs
    facts: Facts
