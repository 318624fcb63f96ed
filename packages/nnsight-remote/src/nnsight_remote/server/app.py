"""`make_app`: the parts of a server put together, and what happens when it starts and stops.

The one idea: this is the only place that knows all of them. Everything is made from `Settings`, which a command line, or a
test, fills in.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import socketio
from fastapi import FastAPI

from .admission import Admission
from .api import Parts, make_api
from .auth import Door
from .dispatch import Dispatcher
from .engine import Engine, ModelSpec
from .events import Events
from .keys import Keyring
from .limits import Limits
from .live import PATH, make_sockets
from .metrics import Metrics
from .models import Models
from .small_bodies import SmallBodies
from .store import Store

log = logging.getLogger(__name__)
_TIDY_SECONDS = 30.0


@dataclass(frozen=True)
class Settings:
    """What a server is told.

    Attributes:
        folder: where its store is.
        specs: the models that it offers.
        limits: those of everybody whose key says nothing else.
        room: how many models may be loaded at once.
        queue_length: how many jobs may wait for one model.
        kept_seconds: how long a finished job is kept.
        fetched_seconds: how long it is kept once its result was fetched.
        open: let everybody in, without a key.
        trusted: whether the engine runs blocks unconfined; shown to users.
        preload: load models when the server starts, as far as there is room.
        eight: take jobs of clients of nnsight 0.8 in.
        public_status: tell whoever has no key which models and which versions there are.
    """

    folder: Path
    specs: Sequence[ModelSpec]
    limits: Limits = field(default_factory=Limits)
    room: int = 1
    queue_length: int = 10_000
    kept_seconds: float = 24 * 3600.0
    fetched_seconds: float = 3600.0
    open: bool = False
    trusted: bool = False
    preload: bool = True
    eight: bool = True
    public_status: bool = False


def make_app(settings: Settings, store: Store, engine: Engine) -> Any:
    """Make the ASGI application of a server that works on a store, which is locked."""
    events, keyring, metrics = Events(store), Keyring(store), Metrics()
    models = Models(engine, settings.room, settings.queue_length)
    for spec in settings.specs:
        models.add(spec)
    _add_kept(models, store, settings.trusted)

    def limits_of(name: str) -> Limits:
        user = keyring.named(name)
        return user.limits_under(settings.limits) if user else settings.limits

    dispatcher = Dispatcher(store, events, models, metrics, limits_of, settings.kept_seconds, settings.fetched_seconds)
    door = Door(keyring, open=settings.open)
    admission = Admission(store, models, settings.limits, dispatcher.unfinished)
    parts = Parts(
        door, admission, dispatcher, settings.limits, settings.trusted, settings.eight, settings.public_status
    )
    api = make_api(parts)

    @asynccontextmanager
    async def life(api: FastAPI) -> AsyncIterator[None]:
        dispatcher.recover()
        for number, model in enumerate(models):
            dispatcher.start(model, preload=settings.preload and number < settings.room)
        tidying = asyncio.create_task(_tidy(dispatcher))
        log.info("the server is up", extra={"models": [model.spec.name for model in models]})
        try:
            yield
        finally:
            tidying.cancel()
            await dispatcher.stop()
            log.info("the server is down")

    api.router.lifespan_context = life
    both = socketio.ASGIApp(make_sockets(events, door, parts.find), api, socketio_path=PATH)
    return SmallBodies(both, but=["/request"])


def _add_kept(models: Models, store: Store, trusted: bool) -> None:
    """Offer the models again that were added while servers before this one ran."""
    for spec in map(ModelSpec.from_json, store.kept_models()):
        if models.get(spec.name) is not None:
            continue  # the command line says otherwise now
        if spec.options.get("trust_remote_code") and not trusted:
            log.warning("a model needs --trusted, and is not offered", extra={"model": spec.name})
            continue
        models.add(spec, added=True)


async def _tidy(dispatcher: Dispatcher) -> None:
    """Throw away what has expired, now and then."""
    while True:
        try:
            for job in dispatcher.store.expire(time.time()):
                dispatcher.events.ring(job, final=True)
        except (sqlite3.Error, OSError) as error:
            log.error("the store cannot be tidied", extra={"problem": str(error)})
        await asyncio.sleep(_TIDY_SECONDS)
