"""What can go wrong between a block and its result. Each error says what is still there, and how to get at it.

Errors of the block itself are raised as what they are; these are about the way there and back::

    RemoteError (nnsight)
    ├── UnreachableError (ConnectionError)   nobody answers, or the connection broke for too long
    ├── ProtocolError                        somebody answers in a language that is not known here
    ├── KeyRefusedError (PermissionError)    the server wants a key, or another one
    ├── RefusedError (ValueError)            the server does not take a request
    ├── DownloadError (OSError)              a result cannot be kept here; it is still there
    ├── StreamCutError                       no more values arrive while a job runs; the rest comes with its result
    └── JobError                             a job ended without a result that can be fetched
        ├── JobCancelledError
        └── JobGoneError (LookupError)       the server does not know the job (any more)
"""

from __future__ import annotations

from nnsight.plugin import RemoteError


class UnreachableError(RemoteError, ConnectionError):
    """A server does not answer."""


class ProtocolError(RemoteError):
    """A server answers in a way that is not understood here."""


class KeyRefusedError(RemoteError, PermissionError):
    """A server does not know the key it was given, or was given none, or the key does not allow this."""


class RefusedError(RemoteError, ValueError):
    """A server does not take a request.

    Attributes:
        status: the status of HTTP.
        reason: the server's word for it: "size", "rate", "queued", "model", ...
    """

    def __init__(self, message: str, status: int = 0, reason: str = "") -> None:
        super().__init__(message)
        self.status, self.reason = status, reason


class DownloadError(RemoteError, OSError):
    """A result cannot be kept on this machine; the server still has it."""


class StreamCutError(RemoteError):
    """A job hands over no more values while it runs. It goes on, and its result has all of them."""


class JobError(RemoteError):
    """A job ended without a result.

    Attributes:
        job: its id.
        reason: the server's word for it: "time", "memory", "result", "crash", "host", "model", "storage", "restart", ...
    """

    def __init__(self, message: str, job: str = "", reason: str = "") -> None:
        super().__init__(message)
        self.job, self.reason = job, reason


class JobCancelledError(JobError):
    """A job was cancelled, so it has no result."""


class JobGoneError(JobError, LookupError):
    """A server does not know a job: it expired, was deleted, or belongs to somebody else."""
