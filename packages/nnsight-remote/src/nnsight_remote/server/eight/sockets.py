"""`Sockets`: those on which clients of nnsight 0.8 are told what happens to a job.

The one idea: a socket gets a name, and a request that carries the name is told of there, if it is the same user's. What is
told comes from the events that the store keeps, so nothing depends on who was faster; a socket that breaks costs nothing,
for the job can be looked up by its id.
"""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
import time
from collections import Counter
from collections.abc import Callable

from starlette.websockets import WebSocket, WebSocketDisconnect

from ..admission import Refused
from ..dispatch import Dispatcher
from ..keys import User
from .told import Telling, state, with_result

log = logging.getLogger(__name__)
#: Results up to this size go over the socket, larger ones have an address.
_ON_THE_SOCKET = 8 << 20
#: Seconds after which a socket is closed on which nothing was told, and is nothing to be told.
_IDLE_SECONDS = 900.0


class _Subscription:
    def __init__(self, user: User, socket: WebSocket) -> None:
        self.user = user
        self.socket = socket
        self.telling: set[asyncio.Task[None]] = set()


class Sockets:
    """The sockets that are open.

    Args:
        dispatcher: where jobs and their events are.
        most: how many sockets a user may have open.
    """

    def __init__(self, dispatcher: Dispatcher, most: Callable[[User], int]) -> None:
        self._dispatcher = dispatcher
        self._most = most
        self._open: dict[str, _Subscription] = {}
        self._users: Counter[str] = Counter()

    async def serve(self, user: User, socket: WebSocket) -> None:
        """Keep a socket open until its client closes it; raise Refused if the user has too many."""
        if self._users[user.name] >= self._most(user):
            raise Refused(429, "sockets", f"{self._users[user.name]} sockets of yours are open; close some of them", 1)
        await socket.accept()
        name = secrets.token_hex(16)
        subscription = self._open[name] = _Subscription(user, socket)
        self._users[user.name] += 1
        try:
            await socket.send_text(json.dumps({"session_id": name}))
            while True:
                try:
                    await asyncio.wait_for(socket.receive_text(), _IDLE_SECONDS)
                except asyncio.TimeoutError:
                    if not subscription.telling:
                        await socket.close(1000)
                        return
        except (WebSocketDisconnect, RuntimeError, KeyError):
            return  # it was closed, or said something in bytes
        finally:
            del self._open[name]
            self._users[user.name] -= 1
            for telling in subscription.telling:
                telling.cancel()

    def find(self, user: User, name: str) -> None:
        """Raise Refused unless a user has such a socket."""
        subscription = self._open.get(name)
        if subscription is None or subscription.user.name != user.name:
            raise Refused(400, "session", "you have no socket of this name here; it may have been closed")

    def tell(self, name: str, job: str, result: str) -> None:
        """Tell on a socket what happens to a job from now on; `result` is the address of what it will have saved."""
        subscription = self._open.get(name)
        if subscription is not None:
            telling = asyncio.create_task(self._tell(subscription.socket, job, result))
            subscription.telling.add(telling)
            telling.add_done_callback(subscription.telling.discard)

    async def _tell(self, socket: WebSocket, name: str, result: str) -> None:
        events, store = self._dispatcher.events, self._dispatcher.store
        telling = Telling(name)
        try:
            async for event in events.follow(name):
                for text in telling.of(event):
                    await socket.send_text(text)
            for text in telling.rest():
                await socket.send_text(text)
            job = store.get(name)
            if job is None:
                await socket.close(1011, "the job was deleted")
            elif job.state == "completed" and job.result_bytes <= _ON_THE_SOCKET:
                began = time.monotonic()
                data = await asyncio.to_thread(store.result_path(name).read_bytes)
                await socket.send_bytes(with_result(job, data))
                await self._dispatcher.fetched(job, began)
            else:
                await socket.send_text(state(job, result))
        except (WebSocketDisconnect, RuntimeError):
            return  # the client is gone; whoever asks by the job's id still gets all of it
        except Exception:
            log.exception("a job cannot be told of", extra={"job": name})
            await socket.close(1011)  # or the client would wait for ever
