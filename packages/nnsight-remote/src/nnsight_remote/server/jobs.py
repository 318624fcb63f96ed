"""`Job`: one request of one user, from the moment it lies on the disk to the moment its result is thrown away.

The one idea: a job is in one of five states, three of which are final; a job that failed says why in a `Failure`, which
names the reason in one word for programs and in a sentence for people. What a job's result looks like is the wire's
business: here it is a file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

State = Literal["queued", "running", "completed", "failed", "cancelled"]
FINAL: frozenset[State] = frozenset({"completed", "failed", "cancelled"})

#: Why a job failed: `error` the block raised; `refused` the request was not understood, or asks for what is not allowed;
#: `time`, `memory`, `result` a limit of the user was reached; `crash` the process of the job died; `host` the process
#: of the model died; `model` the model could not be loaded; `storage` the server's disk; `restart` it was running
#: when the server stopped, twice.
Reason = Literal["error", "refused", "time", "memory", "result", "crash", "host", "model", "storage", "restart"]
REASONS: tuple[str, ...] = get_args(Reason)


@dataclass(frozen=True)
class Failure:
    """Why a job has no result.

    Attributes:
        reason: one word, see `Reason`.
        message: a sentence, for a person.
        type: name of the exception, if there was one.
        traceback: its traceback as text, with the lines of the user's own files.
        encoded: whether the exception itself can be fetched, encoded, in place of the result.
    """

    reason: Reason
    message: str
    type: str = ""
    traceback: str = ""
    encoded: bool = False


@dataclass(frozen=True)
class Job:
    """One job, as the store knows it; times are seconds since the epoch.

    Attributes:
        id: 32 hexadecimal digits, drawn at random.
        user: name of whoever handed it in; nobody else sees it.
        model: name of the model it is for.
        request_id: what the client calls it, so that a request sent twice is one job; may be empty.
        attempts: how often it was begun; more than once only if the server stopped meanwhile.
        result_bytes: size of what can be fetched, the result or the encoded exception.
        expires: when what is left of it is thrown away; None while it is not finished.
        streams: whether values are handed over while it runs.
        streamed_bytes: how many bytes of them lie here.
        stages: seconds that it spent in each stage so far; see `stages.py`.
    """

    id: str
    user: str
    model: str
    state: State
    submitted: float
    request_id: str = ""
    request_bytes: int = 0
    attempts: int = 0
    started: float | None = None
    finished: float | None = None
    expires: float | None = None
    result_bytes: int = 0
    failure: Failure | None = None
    streams: bool = False
    streamed_bytes: int = 0
    stages: Mapping[str, float] = field(default_factory=dict)

    @property
    def is_final(self) -> bool:
        """Whether it will not change any more."""
        return self.state in FINAL

    @property
    def has_file(self) -> bool:
        """Whether there is something to fetch."""
        return self.state == "completed" or (self.failure is not None and self.failure.encoded)

    def but(self, **changes: Any) -> Job:
        """Return it with some attributes replaced."""
        return replace(self, **changes)
