"""The life of jobs and models, with hosts that do as they are told: an engine is anything with these two protocols."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Mapping
from typing import Any

import pytest

from nnsight_remote.server import dispatch
from nnsight_remote.server.dispatch import Dispatcher
from nnsight_remote.server.engine import HostError, ModelSpec, Outcome, Task
from nnsight_remote.server.events import Events
from nnsight_remote.server.jobs import Failure, Job
from nnsight_remote.server.limits import Limits
from nnsight_remote.server.metrics import Metrics
from nnsight_remote.server.models import Models
from nnsight_remote.server.store import Store


class FakeHost:
    """Runs what its name says, and lets a test hold its jobs."""

    def __init__(self, engine: FakeEngine, spec: ModelSpec) -> None:
        self.engine, self.spec, self.alive = engine, spec, False

    async def start(self) -> Mapping[str, Any]:
        if self.spec.name in self.engine.broken:
            raise HostError("no such weights")
        self.alive = True
        self.engine.said.append(f"load {self.spec.name}")
        assert sum(host.alive for host in self.engine.hosts) <= self.engine.room
        return {"isolation": "none"}

    async def run(self, task: Task) -> Outcome:
        text = task.request.read_text()
        self.engine.said.append(f"run {text}")
        await self.engine.gate.wait()
        if text.startswith("raise"):
            raise RuntimeError("the host is at fault")
        if text.startswith("fail"):
            return Outcome(Failure("error", "the block is at fault"))
        task.log(text.encode())
        task.result.write_text(text)
        return Outcome()

    async def stop(self) -> None:
        if self.alive:
            self.engine.said.append(f"unload {self.spec.name}")
        self.alive = False


class FakeEngine:
    def __init__(self, room: int) -> None:
        self.room = room
        self.said: list[str] = []
        self.broken: set[str] = set()
        self.hosts: list[FakeHost] = []
        self.gate = asyncio.Event()
        self.gate.set()

    def host(self, spec: ModelSpec) -> FakeHost:
        self.hosts.append(FakeHost(self, spec))
        return self.hosts[-1]


class Play:
    """A dispatcher with models a, b and c, as long as it lasts."""

    def __init__(self, store: Store, room: int = 3, turn_seconds: float = 60.0, **limits: float) -> None:
        self.store = store
        self.engine = FakeEngine(room)
        self.models = Models(self.engine, room, 100, turn_seconds)
        for name in "abc":
            self.models.add(ModelSpec(name, name))
        self.events = Events(store)
        general = Limits().but(limits)
        self.dispatcher = Dispatcher(
            store, self.events, self.models, Metrics(), lambda user: general, kept_seconds=60, fetched_seconds=6
        )

    async def __aenter__(self) -> Play:
        self.dispatcher.recover()
        for model in self.models:
            self.dispatcher.start(model)
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.dispatcher.stop()

    def submit(self, model: str, text: str, user: str = "ada") -> str:
        name = self.dispatcher.new_id()
        self.store.request_path(name).write_text(text)
        self.dispatcher.submit(self.models.get(model), Job(name, user, model, "queued", time.time()))
        return name

    async def end(self, job: str) -> Job:
        async for _ in self.events.follow(job):
            pass
        return self.store.get(job)

    async def said(self, what: str) -> None:
        """Wait until a host has said something."""
        while what not in self.engine.said:
            await asyncio.sleep(0)


@pytest.fixture
def store(tmp_path):
    store = Store(tmp_path / "store")
    yield store
    store.close()


def played(coroutine):
    return asyncio.run(asyncio.wait_for(coroutine, 30))


def test_a_job_leaves_a_result_and_no_request(store):
    async def play():
        async with Play(store) as game:
            job = await game.end(game.submit("a", "hello"))
            assert (job.state, job.result_bytes, job.attempts) == ("completed", 5, 1)
            assert store.result_path(job.id).read_text() == "hello"
            assert not store.request_path(job.id).exists()
            assert [event.text for event in game.events.since(job.id, 0)] == ["queued", "running", "hello", "completed"]
            assert game.dispatcher.unfinished("ada") == 0
            failed = await game.end(game.submit("a", "fail"))
            assert failed.failure.reason == "error" and not store.result_path(failed.id).exists()

    played(play())


def test_a_host_that_is_at_fault_fails_the_job_and_not_the_server(store):
    async def play():
        async with Play(store) as game:
            job = await game.end(game.submit("a", "raise"))
            assert job.failure.reason == "host" and "the host is at fault" in job.failure.message
            assert (await game.end(game.submit("a", "hello"))).state == "completed"

    played(play())


def test_the_model_that_was_idle_longest_goes_first(store):
    async def play():
        async with Play(store, room=2) as game:
            for model in "abac":
                await game.end(game.submit(model, f"in {model}"))
            loads = [said for said in game.engine.said if not said.startswith("run")]
            assert loads == ["load a", "load b", "unload b", "load c"]

    played(play())


def test_a_busy_model_steps_back_for_others_when_it_has_had_its_turn(store):
    async def play():
        async with Play(store, room=1, turn_seconds=0.0) as game:
            game.engine.gate.clear()
            jobs = [game.submit("a", f"a{number}") for number in range(3)]
            await game.said("run a0")
            jobs.append(game.submit("b", "b0"))
            game.engine.gate.set()
            for job in jobs:
                assert (await game.end(job)).state == "completed"
            assert game.engine.said.index("run b0") < game.engine.said.index("run a2")

    played(play())


def test_a_model_that_does_not_load_fails_the_jobs_that_wait_for_it_and_is_tried_again(store):
    async def play():
        async with Play(store, room=1) as game:
            game.engine.broken.add("a")
            jobs = [await game.end(game.submit("a", "x")) for _ in range(2)]
            assert {job.failure.reason for job in jobs} == {"model"} and "no such weights" in jobs[0].failure.message
            assert game.models.get("a").state == "failed"
            assert (await game.end(game.submit("b", "in b"))).state == "completed"
            game.engine.broken.clear()
            assert (await game.end(game.submit("a", "x"))).state == "completed"

    played(play())


def test_a_job_whose_time_is_over_is_cancelled_in_its_host(store):
    async def play():
        async with Play(store, run_seconds=0.01) as game:
            game.engine.gate.clear()
            job = await game.end(game.submit("a", "x"))
            assert job.failure.reason == "time" and "0.01 s" in job.failure.message

    played(play())


def test_what_stops_in_good_order_is_taken_up_by_the_next(store):
    async def play():
        async with Play(store) as game:
            game.engine.gate.clear()
            first, second = game.submit("a", "one"), game.submit("a", "two")
            await game.said("run one")
        assert [(store.get(job).state, store.get(job).attempts) for job in (first, second)] == [("queued", 0)] * 2
        async with Play(store) as game:
            assert [(await game.end(job)).state for job in (first, second)] == ["completed"] * 2
            assert game.engine.said == ["load a", "run one", "run two"]

    played(play())


def test_a_job_of_a_model_that_is_no_longer_offered_fails(store):
    async def play():
        store.save(Job("1" * 32, "ada", "gone", "queued", 1.0))
        async with Play(store):
            assert store.get("1" * 32).failure.reason == "model"

    played(play())


def test_the_end_of_a_job_is_written_as_soon_as_it_can_be(store, monkeypatch):
    async def play():
        async with Play(store) as game:
            plain, tries = store.save, []

            def full(job):
                tries.append(job.state)
                if job.state == "completed" and tries.count("completed") < 3:
                    raise sqlite3.OperationalError("database or disk is full")
                plain(job)

            monkeypatch.setattr(store, "save", full)
            monkeypatch.setattr(dispatch, "RETRY_SECONDS", 0.0)
            job = await game.end(game.submit("a", "x"))
            assert job.state == "completed" and tries.count("completed") == 3
            assert game.events.since(job.id, 0)[-1].text == "completed"

    played(play())


def test_a_job_that_waits_and_cannot_be_cancelled_on_a_full_disk_still_waits(store, monkeypatch):
    async def play():
        async with Play(store) as game:
            game.engine.gate.clear()
            game.submit("a", "first")
            await game.said("run first")
            waiting = store.get(game.submit("a", "second"))
            with monkeypatch.context() as patch, pytest.raises(sqlite3.OperationalError):
                patch.setattr(store, "save", full)
                game.dispatcher.cancel(waiting)
            game.engine.gate.set()
            assert (await game.end(waiting.id)).state == "completed"

    def full(job):
        raise sqlite3.OperationalError("database or disk is full")

    played(play())


def test_a_fetch_that_cannot_be_noted_on_a_full_disk_is_a_fetch_all_the_same(store, monkeypatch):
    async def play():
        async with Play(store) as game:
            job = await game.end(game.submit("a", "x"))
            with monkeypatch.context() as patch:
                patch.setattr(store, "save", full)
                await game.dispatcher.fetched(job, time.monotonic())
            assert store.get(job.id) == job
            await game.dispatcher.fetched(job, time.monotonic())
            assert store.get(job.id).expires < job.expires

    def full(job):
        raise sqlite3.OperationalError("database or disk is full")

    played(play())
