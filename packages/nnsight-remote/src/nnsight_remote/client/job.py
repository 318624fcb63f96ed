"""`Job`: the handle of a block that a server runs.

The one idea: a handle holds an id and looks at the server; what happens to the job does not depend on it. So a handle can be
lost and made again, in another process too (`nnsight_remote.job`), and waiting can be broken off and taken up.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import httpx

from nnsight import CONFIG

from .address import Address
from .connection import connect
from .display import Display, make_display
from .errors import RefusedError, UnreachableError
from .handshake import speak
from .later import later
from .patience import Patience
from .protocol import FINAL, Event, Sight
from .stream import Stream

#: Seconds for which a server may be gone while we wait for a job: it may be started again, and has the job still.
PATIENCE = 300.0
#: A server says something four times in this time, if only that it is there.
_SILENCE = 60.0


class Job:
    """A block on a server.

    Await it for what it saved: `values = await job`.

    Args:
        id: what the server calls it.
        address: the server.
        patience: for how many seconds the server may be gone while we wait.
        trusted: whether results may be more than data; as `CONFIG.API.TRUSTED` says if None.
        quiet: show nothing; as `CONFIG.APP.REMOTE_LOGGING` says if None.
    """

    def __init__(
        self,
        id: str,
        address: Address,
        *,
        patience: float = PATIENCE,
        trusted: bool | None = None,
        quiet: bool | None = None,
    ) -> None:
        self.id = id
        self.address = address
        #: What it printed, as far as it was heard of.
        self.log = ""
        self._patience = patience
        self._trusted = address.is_trusted if trusted is None else trusted
        self._quiet = quiet
        self._heard = 0
        self._bind: Callable[[Mapping[str, Any]], None] | None = None
        self._values: dict[str, Any] | None = None
        self._lock = threading.RLock()

    @property
    def host(self) -> str:
        """The server's address."""
        return self.address.url

    @property
    def status(self) -> str:
        """Its state now: "queued", "running", "completed", "failed" or "cancelled"."""
        return self.look().state

    def look(self) -> Sight:
        """Look at it: its state, its place in the queue, why it failed."""
        return self._jobs.look(self.id)

    def cancel(self, patience: float | None = None) -> None:
        """End it. One that is finished stays as it is.

        Args:
            patience: for how many seconds the server may be gone.
        """
        self._jobs.cancel(self.id, patience)

    def wait(self, timeout: float | None = None) -> Job:
        """Wait until it is finished, and return it. What it prints is printed here.

        Args:
            timeout: seconds; None for as long as it takes.

        Raises:
            TimeoutError: it is not finished by then. It goes on; wait again.
            UnreachableError: the server is gone for too long. The job may go on; wait again.
        """
        with make_display(self._label, self._quiet) as display:
            self.follow(display, timeout)
        return self

    def result(self, timeout: float | None = None) -> dict[str, Any]:
        """Wait until it is finished, and return what it saved, by name; the names are bound where the block stands.

        Raises:
            JobError: it ended without a result; otherwise what the block raised.
        """
        with self._lock:
            if self._values is None:
                try:
                    with make_display(self._label, self._quiet) as display:
                        self.follow(display, timeout)
                        self._values = self.fetch(display)
                except Exception as error:
                    if CONFIG.APP.DEBUG:
                        raise
                    raise error.with_traceback(None)  # noqa: B904  # the same error, without what lies between
            if self._bind is not None:
                bind, self._bind = self._bind, None
                bind(self._values)
            return self._values

    def stream(self, after: int = 0) -> Stream:
        """Give what it saves while it runs, piece by piece, in the order in which that happens; with `for` or `async for`.

        A piece is a saved value under its name, or an item by which a saved list or dict has grown; see `Piece`. What came
        before this call is given, too. The result is the truth: what is changed afterwards is not given again. A job that
        is run again, because its server stopped, gives everything again from the beginning.

        Args:
            after: leave out what came until this event, by its number (`Piece.number`).

        Raises:
            RefusedError: it was not handed in with `stream=True`.
            StreamCutError: it saved more than may arrive while it runs; it goes on, and `result` gives all.
            JobError: after all pieces, that it ended without a result; otherwise what the block raised.

        Example::

            with model.generate(prompt, backend=RemoteBackend(url, stream=True)) as run:
                hidden = [].save()
                for step in run.iter[:]:
                    hidden.append(model.layers[5].output)
            for piece in run.stream():
                print(piece.name, piece.at, piece.value.shape)
        """
        return Stream(self, after)

    def deliver_to(self, bind: Callable[[Mapping[str, Any]], None]) -> None:
        """Take what binds the saved values where the block stands; `result` calls it."""
        self._bind = bind

    def follow(self, display: Display, timeout: float | None = None) -> None:
        """Show what happens to it until it is finished, over as many connections as that takes."""
        end = None if timeout is None else time.monotonic() + timeout
        connection = connect(self.address)
        patience = Patience(self._patience, display.remark)
        state = ""

        def once() -> None:
            nonlocal state
            left = _SILENCE if end is None else max(0.001, min(_SILENCE, end - time.monotonic()))
            try:
                for event in self._jobs.watch(self.id, self._heard, left):
                    patience.heard()
                    self._hear(event, display)
                    if event.kind == "state":
                        state = event.text
                        if state not in FINAL:
                            display.show(state)
                    _check(end, self)
            except httpx.TimeoutException:
                _check(end, self)
                raise
            if state not in FINAL:
                # All that happened was heard of before, or the job was deleted meanwhile.
                state = self._jobs.look(self.id).state
            if state not in FINAL:
                raise httpx.RemoteProtocolError("the events ended before the job did")

        with self._lasting(), connection.in_words():
            patience.keep_trying(once)
        if state != "completed":
            display.show(state)

    def _hear(self, event: Event, display: Display) -> None:
        """Note that something happened; what it printed is printed once, whoever hears of it first."""
        if event.number > self._heard:
            self._heard = event.number
            if event.kind == "log":
                self.log += event.text
                display.print(event.text)

    def fetch(self, display: Display) -> dict[str, Any]:
        """Fetch what it saved, once it is finished."""
        show = display.state not in FINAL

        def progress(done: int, size: int) -> None:
            if show:
                display.show("fetching")
            display.loaded(done, size)

        with self._lasting():
            values: dict[str, Any] = self._jobs.fetch(self.id, progress, self._patience, self._trusted)
        display.show("completed")
        return values

    def __await__(self) -> Generator[Any, None, dict[str, Any]]:
        return later(self.result, f"nnsight job {self.id}").__await__()

    # -- as earlier releases spelled it ------------------------------------------------------------------------------

    @property
    def backend(self) -> Job:
        """Itself: what a trace that does not wait had as `tracer.backend`."""
        return self

    @property
    def job_id(self) -> str:
        """Its id."""
        return self.id

    @property
    def job_status(self) -> str:
        """Its state."""
        return self.status

    def __call__(self) -> dict[str, Any] | None:
        """Return what it saved if it is finished, and None if it is not."""
        return self.result() if self.look().is_final else None

    @property
    def _jobs(self) -> Any:
        return speak(self.address).jobs

    @property
    def _label(self) -> str:
        return f"job {self.id[:8]} on {self.host.partition('://')[2]}"

    @contextmanager
    def _lasting(self) -> Iterator[None]:
        """Say of what is wrong with the server that the job outlasts it."""
        hint = f"The job is not lost; later: `nnsight_remote.job({self.id!r}, host={self.host!r}).result()`"
        try:
            yield
        except UnreachableError as error:
            raise UnreachableError(f"{error}. {hint}") from error.__cause__
        except RefusedError as error:
            raise RefusedError(f"{error}. {hint}", error.status, error.reason) from None

    def __reduce__(self) -> Any:
        # What travels is what it takes to take the job up; the key stays here.
        return job, (self.id, self.host)

    def __repr__(self) -> str:
        return f"<Job {self.id} on {self.host}>"


def _check(end: float | None, job: Job) -> None:
    if end is not None and time.monotonic() >= end:
        raise TimeoutError(f"{job!r} is not finished yet; it goes on, and can be waited for again")


def job(id: str, host: str | None = None, *, key: str | None = None) -> Job:
    """Take up a job by its id, in any process.

    Args:
        id: what `job.id` said.
        host: the server; the configured one if not given.
        key: the key for it; see `nnsight login`.
    """
    return Job(id, Address.find(host, key))
