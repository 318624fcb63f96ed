"""`Told`: what a server says of a job as it happens, and the result where that comes along.

The one idea: the answer to a request and the answer to `GET /jobs/ID/events` are read alike, so that a job whose first
answer was cut goes on with another.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx

from . import bounded, fields
from .connection import understood
from .protocol import Event

MEDIA_TYPE = "text/event-stream"
#: Bytes of a result that may come with the events. In text it is a third longer, and read at once: what is larger is better
#: off with a request of its own, which can be taken up where it was cut.
WITH_EVENTS = 256 << 10


@dataclass(frozen=True)
class Result:
    """What became of a job: bytes, and what kind of bytes."""

    media_type: str
    data: bytes | memoryview


class Told:
    """The events of a job, from one answer of a server.

    Attributes:
        result: what came at the end of the events.
    """

    def __init__(self, answer: httpx.Response, url: str) -> None:
        self._answer = answer
        self._url = url
        self.result: Result | None = None

    def __iter__(self) -> Iterator[Event]:
        try:
            for line in bounded.lines(self._answer):
                if line.startswith("data:"):
                    with understood(self._url):
                        event = self._read(json.loads(line[5:]))
                    if event is not None:
                        yield event
                elif line.startswith(":"):
                    yield Event(0, "alive")
        finally:
            self.close()

    def close(self) -> None:
        """Hear no more of it."""
        self._answer.close()

    def _read(self, said: dict[str, Any]) -> Event | None:
        if said["kind"] == "result":
            self.result = Result(fields.text(said["type"]), base64.b64decode(said["data"], validate=True))
            return None
        data = base64.b64decode(said["data"], validate=True) if "data" in said else None
        kind = fields.text(said["kind"])
        text = fields.state(said["text"]) if kind == "state" else fields.text(said["text"])
        return Event(fields.number(said["number"]), kind, text, data)
