"""`Events`: what happens to a job, and everybody who follows it.

The one idea: an event is written down and numbered before anybody hears of it, so a follower who was cut off asks for
what came after the last number it has, and misses nothing. Followers read from the store; what they wait on is only a bell.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass

from .store import Store


@dataclass(frozen=True)
class Piece:
    """Where a value lies in the file of those that a job has handed over."""

    start: int
    size: int


@dataclass(frozen=True)
class Event:
    """One thing that happened to a job.

    Attributes:
        number: 1, 2, 3, ... within the job.
        at: seconds since the epoch.
        kind: `state` (its new state), `log` (what it printed), `value` (it handed one over), or `cut` (it hands over
            no more).
        text: the state, the text, where the value lies, or why.
    """

    number: int
    at: float
    kind: str
    text: str

    @property
    def piece(self) -> Piece | None:
        """Where the value lies that was handed over, if one was."""
        return Piece(*map(int, self.text.split())) if self.kind == "value" else None


class Events:
    """The events of all jobs, for one event loop."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._bells: dict[str, asyncio.Event] = {}
        self._numbers: dict[str, int] = {}

    def add(self, job: str, kind: str, text: str) -> None:
        """Write an event down. Who follows hears of it with `ring`, once all that belongs to it is written."""
        known = self._numbers.get(job)
        number = (self._store.last_event(job) if known is None else known) + 1
        self._store.add_event(job, number, kind, text)
        self._numbers[job] = number

    def ring(self, job: str, *, final: bool = False) -> None:
        """Wake whoever follows a job; nothing more will happen to one that is `final`."""
        bell = self._bells.pop(job, None)
        if bell:
            bell.set()
        if final:
            self._numbers.pop(job, None)

    async def heard(self, job: str) -> None:
        """Wait for the bell of a job. What may have happened before the call, the caller has looked at."""
        await self._bells.setdefault(job, asyncio.Event()).wait()

    def since(self, job: str, number: int) -> list[Event]:
        """What happened after an event."""
        return [Event(*row) for row in self._store.events(job, number)]

    def numbered(self, job: str, number: int) -> Event | None:
        """The event of a number."""
        found = next((Event(*row) for row in self._store.events(job, number - 1, 1)), None)
        return found if found and found.number == number else None

    def read(self, job: str, piece: Piece) -> bytes | None:
        """The bytes of a value that a job handed over; None if they are not there any more."""
        try:
            with open(self._store.values_path(job), "rb") as file:
                file.seek(piece.start)
                data = file.read(piece.size)
        except FileNotFoundError:
            return None
        return data if len(data) == piece.size else None

    async def follow(self, job: str, after: int = 0) -> AsyncIterator[Event]:
        """Give what happened after an event and what happens, until the job is finished or forgotten."""
        while True:
            # The end is looked for before the events: one that comes in between is then seen in the next round.
            found = self._store.get(job)
            for event in self.since(job, after):
                after = event.number
                yield event
            if found is None or found.is_final:
                return
            # Nothing can ring between the look and the wait, unless the reader of an event let others run.
            if self._store.last_event(job) == after:
                await self.heard(job)
