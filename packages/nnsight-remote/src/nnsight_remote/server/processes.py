"""`ProcessEngine`: hosts as processes of this machine.

The one idea: the server believes nothing that a host says beyond one line of a known shape, and waits for nothing that a
host might not do. A job that must stop is killed; a host that does not say within seconds that it has done so is killed
too, and started again when the next job comes. What happens inside is in `host.py`.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import signal
import socket
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, cast

from .channel import Channel
from .confine import Confinement
from .engine import HostError, ModelSpec, Outcome, Task
from .jobs import REASONS, Failure, Reason
from .printed import Printed

_LONGEST_OUTCOME = 1 << 18
_ANY = 1 << 62  # of what is counted elsewhere


@dataclass(frozen=True)
class ProcessEngine:
    """Starts a process for each model.

    Attributes:
        confinement: what users' code may do in it.
        isolation: `fork`, `resident`, or `auto` for whichever the model allows.
        threads: how many threads a job computes with.
        startup_seconds: how long loading a model may take.
        at_once: how many jobs of a model may run at once that an engine serves.
    """

    confinement: Confinement
    isolation: str = "auto"
    threads: int = 1
    startup_seconds: float = 1800.0
    at_once: int = 16

    def host(self, spec: ModelSpec) -> ProcessHost:
        """Make a host for a model, not started yet."""
        return ProcessHost(self, spec)


class ProcessHost:
    """One model in a process of its own."""

    _program: ClassVar[str] = "nnsight_remote.server.host"
    _called: ClassVar[str] = "the process that held the model"
    _stopping_seconds: ClassVar[float] = 5.0  # that it has to say that a job was stopped

    def __init__(self, engine: ProcessEngine, spec: ModelSpec) -> None:
        self._engine = engine
        self._spec = spec
        self._life: _Life | None = None
        self._starting = asyncio.Lock()
        self._numbers = itertools.count(1)

    @property
    def alive(self) -> bool:
        """Whether the process is there, its model loaded."""
        return self._life is not None and self._life.there

    @property
    def pid(self) -> int | None:
        """The number of the process, for whoever watches the machine."""
        return self._life.process.pid if self._life and self.alive else None

    async def start(self) -> Mapping[str, Any]:
        """Start the process and load the model."""
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        try:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", self._program, str(theirs.fileno()), str(os.getpid())),
                pass_fds=[theirs.fileno()],
                stdin=asyncio.subprocess.DEVNULL,
                start_new_session=True,
                env={**os.environ, "TOKENIZERS_PARALLELISM": "false"},
            )
        finally:
            theirs.close()
        life = _Life(process, Channel(ours))
        try:
            life.channel.send({**self._order(), "do": "load"})
            said = await asyncio.wait_for(life.channel.hear(), self._engine.startup_seconds)
        except BaseException as error:
            await life.end()
            if isinstance(error, asyncio.TimeoutError):
                raise HostError(f"loading took longer than {self._engine.startup_seconds:.0f} s") from None
            raise
        if not said or said.get("is") != "ready":
            code = await life.end()
            raise HostError(str(said.get("message")) if said else f"the process {_end_in_words(code)} while it loaded")
        life.can_stop_jobs = said.get("stops") is True
        life.streams = said.get("streams") is True
        life.listen()
        self._life = life
        return {name: said.get(name) for name in ("isolation", "env", "node", "at_once")}

    async def run(self, task: Task) -> Outcome:
        """Run a job; see `Host.run`."""
        log, outcome = Printed(task.limits.log_bytes, task.log), Printed(_LONGEST_OUTCOME, None)
        job = next(self._numbers)
        life = self._started()
        try:
            with self._stream(task, [log, outcome]) as (pipes, files):
                life = await self._hand_over(job, task, [pipe.writing_end for pipe in pipes], files)
                for pipe in pipes:
                    pipe.start()
                said = await life.hear(job)
        except asyncio.CancelledError:
            await self._stop_job(job)
            raise
        finally:
            log.finish()
            reported = outcome.finish()
        if said is None or "status" not in said:
            code = await life.end()
            return Outcome(Failure("host", f"{self._called} {_end_in_words(code)} while the job ran"))
        life.forget(job)
        if said.get("spoilt"):
            await life.end()
        return self._read_outcome(reported, task) or Outcome(_crash(said["status"]))

    @contextmanager
    def _stream(self, task: Task, pipes: list[Printed]) -> Iterator[tuple[list[Printed], list[int]]]:
        """Open what a job needs that hands values over while it runs, if it does: a file, and another pipe."""
        stream = task.stream
        if stream is None:
            yield pipes, []
        elif not self._started().streams:
            stream.cut("the engine of this server does not hand over values while a job runs")
            yield pipes, []
        else:
            told = Printed(_ANY, stream.hear, lambda: not stream.is_over)
            try:
                with open(stream.path, "wb") as file:
                    yield [*pipes, told], [file.fileno()]
            finally:
                told.finish()

    async def _hand_over(self, job: int, task: Task, pipes: list[int], files: list[int]) -> _Life:
        """Give the process a job, and return the process. One that died before it began the job, which is no fault of the
        job, is started again."""
        with open(task.request, "rb") as request, open(task.result, "wb") as result:
            for last in (False, True):
                life = self._started()
                try:
                    order = {"do": "run", "job": job, "limit": asdict(task.limits)}
                    life.channel.send(order, [request.fileno(), result.fileno(), *pipes, *files])
                    said = await life.hear(job)
                except ConnectionError:
                    said = None
                if said is not None or last:
                    break
                await life.end()
                async with self._starting:
                    if not self.alive:  # else another job has done it
                        await self.start()
            return life

    def _started(self) -> _Life:
        assert self._life is not None, "a host is started before it runs jobs"
        return self._life

    async def stop(self) -> None:
        """End the process."""
        if self._life is not None:
            await self._life.end()

    async def _stop_job(self, job: int) -> None:
        life = self._started()
        if life.can_stop_jobs and life.there:
            try:
                life.channel.send({"do": "stop", "job": job})
                while said := await asyncio.wait_for(life.hear(job), self._stopping_seconds):
                    if said.get("is") == "done":
                        life.forget(job)
                        if said.get("spoilt"):
                            break
                        return
            except (OSError, asyncio.TimeoutError):
                pass  # then all of it is ended
        await life.end()

    def _order(self) -> dict[str, Any]:
        spec, engine = self._spec, self._engine
        return {
            "source": spec.source,
            "family": spec.family,
            "options": dict(spec.options),
            "confinement": asdict(engine.confinement),
            "isolation": engine.isolation,
            "threads": engine.threads,
            "at_once": engine.at_once,
        }

    def _read_outcome(self, line: bytes, task: Task) -> Outcome | None:
        return _read_outcome(line, task)


class _Life:
    """One process of a host, from its start to its end, and what it says of each job."""

    can_stop_jobs = streams = False

    def __init__(self, process: asyncio.subprocess.Process, channel: Channel) -> None:
        self.process = process
        self.channel = channel
        self._said: dict[int, asyncio.Queue[dict[str, Any] | None]] = {}
        self._listening: asyncio.Task[None] | None = None
        self._hung_up = False

    @property
    def there(self) -> bool:
        """Whether it can be spoken to."""
        return not self._hung_up and self.process.returncode is None

    def listen(self) -> None:
        """Hear what it says of jobs, from now on."""
        self._listening = asyncio.create_task(self._listen())

    async def _listen(self) -> None:
        while said := await self.channel.hear():
            job = said.get("job")
            if not isinstance(job, int):
                break  # it speaks of what it was not asked
            self._queue(job).put_nowait(said)
        self._hang_up()

    def _queue(self, job: int) -> asyncio.Queue[dict[str, Any] | None]:
        return self._said.setdefault(job, asyncio.Queue())

    async def hear(self, job: int) -> dict[str, Any] | None:
        """Wait for what it says of a job; None if it says nothing more."""
        queue = self._queue(job)
        return None if self._hung_up and queue.empty() else await queue.get()

    def forget(self, job: int) -> None:
        """Hear no more of a job."""
        self._said.pop(job, None)

    def _hang_up(self) -> None:
        self._hung_up = True
        for queue in self._said.values():
            queue.put_nowait(None)

    async def end(self) -> int:
        """End it, and return how it ended."""
        if self._listening is not None:
            self._listening.cancel()
        self._hang_up()
        self.channel.close()
        if self.process.returncode is None:
            try:
                os.killpg(self.process.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass  # it ended by itself
        return await self.process.wait()


def _read_outcome(line: bytes, task: Task) -> Outcome | None:
    """Read what a worker reports: it has run a user's code, so that anything may come."""
    try:
        said = json.loads(line)
    except ValueError:
        return None
    if not isinstance(said, dict):
        return None
    told = said.get("seconds")
    seconds = told if isinstance(told, dict) else {}
    if said.get("ok") is True:
        return Outcome(seconds=seconds)
    reason, limit = said.get("reason"), task.limits
    if reason not in REASONS:
        return None
    message, kind, text = (_printable(said.get(name, "")) for name in ("message", "type", "traceback"))
    if reason == "result":
        size = said.get("bytes")
        if isinstance(size, int) and size > limit.result_bytes:
            message = f"the result has {size} bytes, and {limit.result_bytes} are allowed; save less, or a part of it"
        else:
            reason, message = "storage", f"the server could not write the result: {message}"
    elif reason == "memory":
        message = f"the job needed more than the {limit.memory_bytes} bytes of memory that it may have: {message}"
    return Outcome(Failure(cast(Reason, reason), message, kind, text, said.get("encoded") is True), seconds)


def _printable(text: Any) -> str:
    # Half of a surrogate pair, which a text of the user's may hold, is in no answer that others can read.
    return str(text).encode("utf-8", "replace").decode()


def _crash(status: Any) -> Failure:
    return Failure("crash", f"the process of the job {_end_in_words(status)} before the block was done")


def _end_in_words(status: Any) -> str:
    if isinstance(status, int) and status < 0:
        try:
            name = signal.Signals(-status).name
        except ValueError:
            name = "unknown"
        hint = "; the machine may be out of memory" if status == -signal.SIGKILL else ""
        return f"was ended by signal {-status} ({name}{hint})"
    return f"ended with status {status}"
