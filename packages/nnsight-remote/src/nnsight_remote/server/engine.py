"""`Engine` and `Host`: behind these two, it is decided where models run.

The one idea: a host holds one model and runs one job at a time; an engine makes hosts. The server asks for nothing else,
so hosts can be processes of this machine (`processes.py`) or actors of a cluster, and nothing above this file changes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

from .jobs import Failure
from .limits import Limits


@dataclass(frozen=True)
class ModelSpec:
    """A model that a server offers.

    Attributes:
        name: what clients call it.
        source: what the family is given, such as the id of a repository; or "module:attribute", a function that makes
            the wrapped model, and then `family` is empty.
        family: name of the model family, as in `nnsight.LanguageModel`.
        options: further arguments of the family.
    """

    name: str
    source: str
    family: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not (self.name and self.name.isascii() and self.name.isprintable() and self.name == self.name.strip()):
            raise ValueError(
                f"{self.name!r} cannot be the name of a model: clients send it in a header, so it is ASCII"
            )

    def as_json(self) -> str:
        """Write it down; `from_json` reads it."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> ModelSpec:
        """Read what `as_json` wrote."""
        return cls(**json.loads(text))

    @classmethod
    def parse(cls, text: str, family: str, options: Mapping[str, Any]) -> ModelSpec:
        """Read `[NAME=]SOURCE` from a command line; raise ValueError for a name that cannot be one."""
        name, equals, source = text.partition("=")
        source = source if equals else name
        return cls(name, source, "" if ":" in source else family, dict(options))


class HostError(Exception):
    """A host cannot be started: its model does not load, or the machine lacks something. The text says what."""


class Stream(Protocol):
    """Takes what a job hands over while it runs."""

    @property
    def path(self) -> Path:
        """The file that values go into, one after the other."""

    @property
    def is_over(self) -> bool:
        """Whether no more are taken."""

    def hear(self, data: bytes) -> None:
        """Take what the process of the job says of the file; see `pieces.py`."""

    def cut(self, why: str) -> None:
        """Say that no more come."""


@dataclass(frozen=True)
class Task:
    """One job, as a host gets it.

    Attributes:
        request: the file with the request.
        result: the file that the result goes into, or the exception that the block raised.
        limits: what it may take. The time is the caller's to keep: it cancels `Host.run`.
        log: called with what the block prints, as it prints it.
        stream: takes what it saves while it runs; None if nobody asked for that.
    """

    request: Path
    result: Path
    limits: Limits
    log: Callable[[bytes], None]
    stream: Stream | None = None


@dataclass(frozen=True)
class Outcome:
    """How a task ended; there is a result if there is no failure.

    Attributes:
        failure: why there is none.
        seconds: how long its process says that `decode`, `run` and `encode` took, as far as it came.
    """

    failure: Failure | None = None
    seconds: Mapping[str, Any] = field(default_factory=dict)


class Host(Protocol):
    """Where one model is held."""

    async def start(self) -> Mapping[str, Any]:
        """Load the model; return what there is to know of the place (versions, isolation). Raise HostError."""

    async def run(self, task: Task) -> Outcome:
        """Run a job. Cancelled, it stops the job, whatever that is doing, and leaves nothing of it running."""

    @property
    def alive(self) -> bool:
        """Whether another job can be run without starting it again."""

    async def stop(self) -> None:
        """Throw the model away, with whatever runs."""


class Engine(Protocol):
    """Where hosts come from."""

    def host(self, spec: ModelSpec) -> Host:
        """Make a host for a model, not started yet."""
