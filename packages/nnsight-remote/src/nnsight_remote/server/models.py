"""`Models`: which models are offered, which of them are loaded, and which has to go for another.

The one idea: a model is loaded when a job for it comes, and stays until its room is needed. With more models than room, the
one that was idle longest goes; where none is idle, one that has had a fair while steps back. Models are loaded one after
another: two at once would need the memory of both at the worst moment.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .engine import Engine, Host, ModelSpec
from .queue import FairQueue

log = logging.getLogger(__name__)
_MOST = 1000  # on offer; each has a queue and a task of its own


@dataclass
class Model:
    """A model on offer.

    Attributes:
        spec: what it is.
        host: where it is held.
        queue: the jobs that wait for it.
        state: `cold` (not loaded), `loading`, `ready`, `busy`, or `failed` (the last time it was loaded).
        about: what its host said of itself: versions, isolation.
        problem: why it could not be loaded.
        jobs: those that run.
        loaded, used: when it was loaded, and when its last job ended; on the monotonic clock.
        loads: how often it was loaded.
        added: whether it was added while a server ran, and not named when it was started.
    """

    spec: ModelSpec
    host: Host
    queue: FairQueue
    state: str = "cold"
    about: Mapping[str, Any] = field(default_factory=dict)
    problem: str = ""
    jobs: set[str] = field(default_factory=set)
    loaded: float = 0.0
    used: float = 0.0
    loads: int = 0
    added: bool = False

    @property
    def at_once(self) -> int:
        """How many jobs may run on it at once, as its host says."""
        said = self.about.get("at_once")
        return said if isinstance(said, int) and said > 0 else 1


class Models:
    """All models on offer, and the room that there is for them.

    Args:
        engine: where hosts come from.
        room: how many may be loaded at once.
        queue_length: how many jobs may wait for each.
        turn_seconds: how long a loaded model may keep others, whose jobs wait for room, waiting.
    """

    def __init__(self, engine: Engine, room: int, queue_length: int, turn_seconds: float = 60.0) -> None:
        self._engine = engine
        self._room = room
        self._queue_length = queue_length
        self._turn_seconds = turn_seconds
        self._models: dict[str, Model] = {}
        self._loading = asyncio.Lock()
        self._freed = asyncio.Condition()
        self._wanted = 0

    def __iter__(self) -> Any:
        return iter(self._models.values())

    def get(self, name: str) -> Model | None:
        """The model that clients call so."""
        return self._models.get(name)

    def add(self, spec: ModelSpec, *, added: bool = False) -> Model:
        """Offer another model; raise ValueError if one is called so already, or there are too many."""
        if spec.name in self._models:
            raise ValueError(f"a model is called {spec.name!r} already")
        if len(self._models) >= _MOST:
            raise ValueError(f"there are {len(self._models)} models; take one off before another comes")
        host, queue = self._engine.host(spec), FairQueue(self._queue_length)
        model = self._models[spec.name] = Model(spec, host, queue, added=added)
        return model

    async def remove(self, model: Model) -> bool:
        """Offer a model no more; say whether that could be done: not while it is used, or waited for."""
        if len(model.queue) or not await self.evict(model) or len(model.queue) or model.state == "loading":
            return False  # a job may have come while the weights went
        self._models.pop(model.spec.name, None)
        return True

    def takes_more(self, model: Model) -> bool:
        """Whether a model that runs jobs may run another beside them."""
        return len(model.jobs) < model.at_once and model.host.alive and not self._has_to_step_back(model)

    async def make_ready(self, model: Model) -> None:
        """Have a model loaded, and mark it busy; raise HostError if that cannot be.

        To be called while it runs no jobs, or `takes_more`.
        """
        if model.state in ("ready", "busy") and model.host.alive and not self._has_to_step_back(model):
            model.state = "busy"
            return
        await self._unload(model)
        async with self._loading:
            await self._make_room()
            model.state, model.problem = "loading", ""
            await self._load(model)
            model.state = "busy"

    async def release(self, model: Model) -> None:
        """Mark a model idle again."""
        model.state, model.used = ("ready" if model.host.alive else "cold"), time.monotonic()
        await self._tell_of_room()

    async def evict(self, model: Model) -> bool:
        """Throw the weights of an idle model away; say whether that could be done. The next job loads them again."""
        if model.state not in ("ready", "cold", "failed"):
            return False
        await self._unload(model)
        return True

    async def stop(self) -> None:
        """End all hosts."""
        for model in self:
            await self._unload(model)

    async def _load(self, model: Model) -> None:
        began = time.monotonic()
        try:
            model.about = await model.host.start()
        except BaseException as error:
            model.state, model.problem = "failed", str(error)
            log.warning("a model could not be loaded", extra={"model": model.spec.name, "problem": str(error)})
            await self._tell_of_room()
            raise
        model.loaded = model.used = time.monotonic()
        model.loads += 1
        log.info("a model is loaded", extra={"model": model.spec.name, "seconds": round(model.loaded - began, 3)})

    async def _make_room(self) -> None:
        async with self._freed:
            while (
                len(holding := [model for model in self if model.state in ("loading", "ready", "busy")]) >= self._room
            ):
                idle = [model for model in holding if model.state == "ready"]
                # Those for which nobody waits first, and of them the one that nobody has used for the longest time.
                if idle:
                    await self._unload(min(idle, key=lambda model: (bool(model.queue), model.used)))
                    continue
                self._wanted += 1
                try:
                    await self._freed.wait()
                finally:
                    self._wanted -= 1

    def _has_to_step_back(self, model: Model) -> bool:
        return bool(self._wanted) and time.monotonic() - model.loaded > self._turn_seconds

    async def _unload(self, model: Model) -> None:
        if model.state != "failed":
            model.state = "cold"
        await model.host.stop()
        if not self._freed.locked():
            await self._tell_of_room()

    async def _tell_of_room(self) -> None:
        async with self._freed:
            self._freed.notify_all()
