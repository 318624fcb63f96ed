"""`Stream`: what a block saves, while it runs.

The one idea: each piece has the number of the event that told of it, and whoever was cut off asks for what came after that:
nothing is lost, and nothing comes twice. What a piece is, the server's `pieces.py` says; the result is a matter of
`job.py`, and the truth in the end.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import httpx

from nnsight.plugin import decode_message

from .connection import connect, understood
from .display import Display
from .errors import RefusedError, StreamCutError
from .later import later
from .patience import Patience
from .protocol import Event

if TYPE_CHECKING:
    from .job import Job

_SILENCE = 60.0
_END: Any = object()


@dataclass(frozen=True)
class Piece:
    """A value that a block has saved so far.

    Attributes:
        name: the name it is saved under.
        at: where in that name's value it belongs: `()` if it is the whole, `(3,)` for item 3 of a list, `("mlp", 3)` for item
            3 of the list under "mlp" in a dict.
        value: the value.
        number: which event told of it; `job.stream(after=number)` goes on behind it.
    """

    name: str
    at: tuple[Any, ...]
    value: Any
    number: int

    def put_into(self, values: dict[str, Any]) -> None:
        """Put it where it belongs, among values by name; after all pieces, those are what was saved."""
        if not self.at:
            values[self.name] = self.value
            return
        holder = values[self.name]
        for key in self.at[:-1]:
            holder = holder[key]
        if isinstance(holder, list) and self.at[-1] == len(holder):
            holder.append(self.value)
        else:
            holder[self.at[-1]] = self.value


class Stream:
    """The pieces of a job, as they come: an iterator, and an asynchronous one. Made by `Job.stream`."""

    def __init__(self, job: Job, after: int) -> None:
        self._job = job
        self._pieces = _pieces(job, after)
        self._ahead: asyncio.Future[Piece] | None = None

    def __iter__(self) -> Stream:
        return self

    def __next__(self) -> Piece:
        return next(self._pieces)

    def __aiter__(self) -> Stream:
        return self

    async def __anext__(self) -> Piece:
        # If whoever waits is cancelled, the piece that is on its way is for the next one who waits.
        ahead = self._ahead
        if ahead is None:
            waiting = later(lambda: next(self._pieces, _END), f"nnsight job {self._job.id}")
            ahead = self._ahead = asyncio.ensure_future(waiting)
        try:
            piece = await asyncio.shield(ahead)
        finally:
            if ahead.done():
                self._ahead = None
        if piece is _END:
            raise StopAsyncIteration
        return piece

    def close(self) -> None:
        """Hear no more; the job goes on."""
        self._pieces.close()


def _pieces(job: Job, after: int) -> Any:
    with job._lasting(), connect(job.address).in_words():
        if not job.look().streams:
            raise RefusedError(
                f"{job!r} was not asked to hand values over while it runs. Send the block with "
                f"`backend=nnsight_remote.RemoteBackend({job.host!r}, stream=True)`; what this one saves, `result()` gives"
            )
        state = ""
        for event in _events(job, after):
            if event.kind == "value":
                yield _read(job, event)
            elif event.kind == "cut":
                raise StreamCutError(f"{event.text} (job {job.id}); `result()` gives all of it")
            elif event.kind == "state":
                state = event.text
    if state in ("failed", "cancelled") or not state and job.look().state != "completed":
        job.result()  # raises why


def _events(job: Job, after: int) -> Iterator[Event]:
    """Give what happens to a job after an event, over as many connections as that takes."""
    patience = Patience(job._patience)
    display = Display()
    watching: Any = None

    def ahead() -> Event | None:
        nonlocal watching
        if watching is None:
            watching = job._jobs.watch(job.id, after, _SILENCE, values=True)
        try:
            event: Event | None = next(watching, None)
        except BaseException:
            watching = None
            raise
        if event is None:
            watching = None
            if not job.look().is_final:
                raise httpx.RemoteProtocolError("the events ended before the job did")
        return event

    try:
        while (event := patience.keep_trying(ahead)) is not None:
            patience.heard()
            if event.number > after:
                after = event.number
                job._hear(event, display)
                yield event
    finally:
        if watching is not None:
            watching.close()


def _read(job: Job, event: Event) -> Piece:
    data = job._jobs.value(job.id, event.number, job._patience) if event.data is None else event.data
    _, said = decode_message(data, trusted=job._trusted)
    with understood(job.host):
        name, at = said["name"], said["at"]
        if not (isinstance(name, str) and isinstance(at, tuple)):
            raise TypeError(f"{name!r} at {at!r} is no place")
        return Piece(name, at, said["value"], event.number)
