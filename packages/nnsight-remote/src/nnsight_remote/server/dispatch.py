"""`Dispatcher`: the life of a job.

    queued -> running -> completed | failed | cancelled

The one idea: what happens to a job is written down before anybody hears of it, and one loop for each model takes the next
job, has the model loaded, and lets it run, by itself or, where the model's host takes several, beside others. Whatever goes
wrong with a job is that job's end, never the loop's. A job that was running when the server stopped is run again, once: it
has not changed anything outside its process; after a second time it has failed, for it may be what stopped the server.
"""

from __future__ import annotations

import asyncio
import codecs
import functools
import logging
import secrets
import sqlite3
import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from .engine import HostError, Outcome, Task
from .events import Events
from .jobs import Failure, Job, State
from .limits import Limits
from .metrics import Metrics
from .models import Model, Models
from .stages import of_run
from .store import Store
from .streamed import Streamed

log = logging.getLogger(__name__)
_ATTEMPTS = 2
_NOTHING: Mapping[str, Any] = {}
RETRY_SECONDS = 1.0  # between tries to write to a disk that is full


class Dispatcher:
    """Takes jobs in, runs them, and keeps their results.

    Args:
        store, events, models, metrics: what it works with.
        limits_of: the limits of a user, by name, as they are when a job begins.
        kept_seconds: how long what is left of a finished job is kept.
        fetched_seconds: how long it is kept once it was fetched.
    """

    def __init__(
        self,
        store: Store,
        events: Events,
        models: Models,
        metrics: Metrics,
        limits_of: Callable[[str], Limits],
        kept_seconds: float,
        fetched_seconds: float,
    ) -> None:
        self.store, self.events, self.models, self.metrics = store, events, models, metrics
        self._limits_of = limits_of
        self._kept_seconds, self._fetched_seconds = kept_seconds, fetched_seconds
        self._unfinished: Counter[str] = Counter()
        self._stops: dict[str, asyncio.Event] = {}
        self._loops: dict[str, asyncio.Task[None]] = {}

    def unfinished(self, user: str) -> int:
        """How many jobs of a user wait or run."""
        return self._unfinished[user]

    def recover(self) -> None:
        """Take up what a server before this one left: jobs that waited, and those that ran."""
        strays = self.store.sweep()
        for job in self.store.unfinished():
            self._unfinished[job.user] += 1
            model = self.models.get(job.model)
            if model is None:
                said = Failure("model", f"the server was started again without the model {job.model!r}")
                self._write_end(job, "failed", said)
            elif job.attempts >= _ATTEMPTS:
                said = Failure("restart", f"the server stopped {job.attempts} times while this job was running")
                self._write_end(job, "failed", said)
            else:
                if job.state == "running":
                    self._write(job.but(state="queued", started=None))
                model.queue.push(job.user, job.id, beyond_bound=True)
        log.info("jobs were taken up", extra={"jobs": sum(self._unfinished.values()), "stray_files": strays})

    def start(self, model: Model, *, preload: bool = False) -> None:
        """Begin to run the jobs of a model; with `preload`, load it before the first of them comes."""
        self._loops[model.spec.name] = asyncio.create_task(self._serve(model, preload))

    def retire(self, model: Model) -> None:
        """Run no more jobs of a model, which is offered no more, and forget it."""
        self._loops.pop(model.spec.name).cancel()
        self.store.drop_model(model.spec.name)

    async def stop(self) -> None:
        """Stop running jobs. Those that run go back into the queue, for the next server."""
        for loop in self._loops.values():
            loop.cancel()
        await asyncio.gather(*self._loops.values(), return_exceptions=True)
        await self.models.stop()

    def new_id(self) -> str:
        """Draw the id of a job."""
        return secrets.token_hex(16)

    def submit(self, model: Model, job: Job) -> None:
        """Take in a job whose request lies in its file. Raises QueueFull, and then nothing is written."""
        model.queue.push(job.user, job.id)
        try:
            self._write(job)
        except BaseException:
            model.queue.remove(job.id)
            raise
        self._unfinished[job.user] += 1
        self.metrics.accepted(job)
        log.info("a job came in", extra={"job": job.id, "user": job.user, "model": job.model})

    def cancel(self, job: Job) -> None:
        """End a job that is not finished: one that waits at once, one that runs as soon as its process is dead."""
        model = self.models.get(job.model)
        if model and model.queue.position(job.id) is not None:
            self._write_end(job, "cancelled", None)  # first: what cannot be written has not happened
            model.queue.remove(job.id)
        elif job.id in self._stops:
            self._stops[job.id].set()

    def forget(self, job: Job) -> None:
        """Throw a finished job away."""
        self.store.delete(job.id)
        self.events.ring(job.id, final=True)

    async def fetched(self, job: Job, began: float) -> None:
        """Note that a result was fetched to its end: it is kept a while longer, in case that it did not arrive.

        Args:
            job: whose.
            began: when the answer began, on the monotonic clock.
        """
        found, took = self.store.get(job.id), time.monotonic() - began
        if found and found.expires:
            expires = min(found.expires, time.time() + self._fetched_seconds)
            self.metrics.passed(job.model, {"send": took})
            try:
                self.store.save(found.but(expires=expires, stages={**found.stages, "send": took}))
            except sqlite3.OperationalError as error:  # then it is kept as long as if nobody had fetched it
                log.warning("that a result was fetched is not noted", extra={"job": job.id, "problem": str(error)})

    async def _serve(self, model: Model, preload: bool) -> None:
        running: set[asyncio.Task[None]] = set()
        try:
            while True:
                if not preload:
                    await model.queue.arrival()
                preload = False
                running = {task for task in running if not task.done()}
                while running and not self.models.takes_more(model):
                    _, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                try:
                    await self.models.make_ready(model)
                except HostError as error:
                    await self._fail_waiting(model, str(error))
                    continue
                except Exception as error:
                    log.exception("a host could not be started", extra={"model": model.spec.name})
                    await self._fail_waiting(model, f"{type(error).__name__}: {error}")
                    continue
                if len(model.queue):
                    name = model.queue.pop()
                    model.jobs.add(name)
                    self._stops[name] = asyncio.Event()
                    running.add(asyncio.create_task(self._run_on(model, name)))
                elif not model.jobs:  # all may have been cancelled while it was loaded
                    await self.models.release(model)
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)

    async def _run_on(self, model: Model, name: str) -> None:
        try:
            await self._run(model, name)
        except Exception:
            log.exception("a job came to no end", extra={"job": name})
        finally:
            del self._stops[name]
            model.jobs.discard(name)
            if not model.jobs:
                await self.models.release(model)

    async def _run(self, model: Model, name: str) -> None:
        job = self.store.get(name)
        if job is None or job.state != "queued":
            return
        stop = self._stops[job.id]
        try:
            now = time.time()
            stages = {**job.stages, "queue": max(0.0, now - job.submitted)}
            job = job.but(state="running", started=now, attempts=job.attempts + 1, stages=stages)
            await self._until_written(functools.partial(self._begin, job))
            limits = self._limits_of(job.user)
            streamed = self._streamed(job, limits)
            state, outcome = await self._run_until(stop, model, job, limits, streamed)
            if streamed is not None:
                await self._until_written(streamed.finish)
                job = job.but(streamed_bytes=streamed.total)
            await self._until_written(functools.partial(self._write_end, job, state, outcome.failure, outcome.seconds))
        except asyncio.CancelledError:
            # The server stops in good order: this was no attempt.
            self._write(job.but(state="queued", started=None, attempts=job.attempts - 1))
            raise

    def _streamed(self, job: Job, limits: Limits) -> Streamed | None:
        if not job.streams:
            return None
        return Streamed(self.events, job.id, self.store.values_path(job.id), limits.stream_bytes)

    async def _run_until(
        self, stop: asyncio.Event, model: Model, job: Job, limits: Limits, streamed: Streamed | None
    ) -> tuple[State, Outcome]:
        """Run a job until it ends, its user wants it to, or its time is over."""
        files = self.store.request_path(job.id), self.store.result_path(job.id)
        task = Task(*files, limits, self._printer(job.id), streamed)
        run = asyncio.create_task(model.host.run(task))
        stopped = asyncio.create_task(stop.wait())
        try:
            await asyncio.wait({run, stopped}, timeout=limits.run_seconds, return_when=asyncio.FIRST_COMPLETED)
        finally:
            in_time = run.done()
            run.cancel()
            stopped.cancel()
            # Only when it has returned is the job dead and its files left alone.
            (outcome,) = await asyncio.gather(run, return_exceptions=True)
        if isinstance(outcome, Outcome) and in_time:
            return ("failed" if outcome.failure else "completed"), outcome
        if stop.is_set():
            return "cancelled", Outcome()
        if in_time:
            log.error("a job could not be run", exc_info=outcome, extra={"job": job.id})  # type: ignore[arg-type]
            said = f"the job could not be run: {outcome}"
            return "failed", Outcome(Failure("storage" if isinstance(outcome, OSError) else "host", said))
        said = f"the job ran for {limits.run_seconds:g} s, which is the limit, and was ended"
        return "failed", Outcome(Failure("time", said))

    def _printer(self, job: str) -> Callable[[bytes], None]:
        decode = codecs.getincrementaldecoder("utf-8")("replace").decode

        def hand_over(data: bytes) -> None:
            try:
                self.events.add(job, "log", decode(data))
            except sqlite3.Error as error:
                log.warning("a line of a job is lost", extra={"job": job, "problem": str(error)})
            else:
                self.events.ring(job)

        return hand_over

    async def _fail_waiting(self, model: Model, problem: str) -> None:
        """End all jobs that wait for a model that cannot be loaded; a job that comes later tries again."""
        while len(model.queue):
            job = self.store.get(model.queue.pop())
            if job:
                failure = Failure("model", f"the model {model.spec.name!r} could not be loaded: {problem}")
                await self._until_written(functools.partial(self._write_end, job, "failed", failure))

    async def _until_written(self, write: Callable[[], None]) -> None:
        """Write something down, however long the disk is full: a job whose end is not written has not ended."""
        while True:
            try:
                return write()
            except sqlite3.OperationalError as error:
                log.error("the store cannot be written", extra={"problem": str(error)})
                await asyncio.sleep(RETRY_SECONDS)

    def _write_end(
        self, job: Job, state: State, failure: Failure | None, seconds: Mapping[str, Any] = _NOTHING
    ) -> None:
        now = time.time()
        result = self.store.result_path(job.id)
        stages = {**job.stages, **(of_run(now - job.started, seconds) if job.started else {})}
        job = job.but(state=state, failure=failure, finished=now, expires=now + self._kept_seconds, stages=stages)
        if job.has_file:
            job = job.but(result_bytes=result.stat().st_size)
        else:
            # Before the end is written: what there is of a result may be what fills the disk.
            result.unlink(missing_ok=True)
        self._write(job)
        self.store.request_path(job.id).unlink(missing_ok=True)
        self._unfinished[job.user] -= 1
        self.metrics.finished(job)
        about = {"job": job.id, "user": job.user, "model": job.model, "state": state}
        ran = round(now - job.started, 3) if job.started else None
        log.info("a job ended", extra={**about, "reason": failure.reason if failure else None, "seconds": ran})

    def _begin(self, job: Job) -> None:
        if job.streams and job.attempts > 1:
            self.store.forget_values(job.id)
        self._write(job)

    def _write(self, job: Job) -> None:
        with self.store.transaction():
            self.store.save(job)
            self.events.add(job.id, "state", job.state)
        self.events.ring(job.id, final=job.is_final)
