"""The engine's process: the requests of all jobs in one batch, step by step.

One idea: nothing waits but the engine. Between two steps it takes what came on any connection, and sends what is ready; a
job whose connection is closed, which is how a server ends one, takes its requests out of the batch.
"""

from __future__ import annotations

import selectors
import socket
import time
import uuid
from collections import deque
from typing import Any

import msgspec

from nnsight.plugin import encode_error, encode_message

from .. import outputs
from ..engine import SyncEngine, traced
from . import frames

#: Seconds between two looks at what bodies have printed.
_LOOK = 0.05


class Loop:
    """Serves the jobs whose connections come on a socket, until that is closed.

    Args:
        engine: what serves them; started.
        control: gives a connection, as an open file, for each job.
    """

    def __init__(self, engine: SyncEngine, control: socket.socket) -> None:
        self.engine = engine
        self.requests: dict[str, _Asked] = {}
        self._traces: dict[str, _Asked] = {}
        self._control = control
        self._selector = selectors.DefaultSelector()
        self._selector.register(control, selectors.EVENT_READ)
        self._looked = 0.0

    def run(self) -> None:
        """Serve."""
        while True:
            for key, events in self._selector.select(0 if self.requests else None):
                if key.fileobj is self._control:
                    if not self._welcome():
                        return
                else:
                    key.data.handle(events)
            if self.requests:
                self._step()

    def _welcome(self) -> bool:
        data, files, _, _ = socket.recv_fds(self._control, 1, 1)
        for file in files:
            connection = _Connection(self, socket.socket(fileno=file), self._selector)
            self._selector.register(connection.socket, selectors.EVENT_READ, connection)
        return bool(data)

    def _step(self) -> None:
        for output in self.engine.engine.step():
            if output.finished and (asked := self.requests.pop(output.request_id, None)):
                asked.results[output.request_id] = output
                if len(asked.results) == len(asked.added):
                    self._finish(asked)
        if self._traces and time.monotonic() - self._looked > _LOOK:
            self._tell_printed()

    def begin(self, message: frames.Serve, connection: _Connection) -> _Asked | None:
        """Begin what a job asks for; None if it failed at once, which the job is told."""
        asked = _Asked(connection, uuid.uuid4().hex if message.bodies is not None else None)
        try:
            inputs = frames.read(message.inputs)
            if asked.trace is not None:
                assert message.bodies is not None
                self.engine.open(asked.trace, message.bodies, heard=True)
                self._traces[asked.trace] = asked
                inputs = list(traced(asked.trace, inputs))
            for one in inputs:
                asked.added.append(self.engine.add(one))
                self.requests[asked.added[-1][0]] = asked
        except Exception as error:  # whatever a payload leads to is its sender's business
            self.give_up(asked)
            connection.send(frames.Failed(encode_error(error)))
            return None
        if not asked.added:
            self._finish(asked)
        return asked

    def give_up(self, asked: _Asked) -> None:
        """Take what a job asked for out of the batch."""
        self.engine.abort(internal for number, internal in asked.added if self.requests.pop(number, None))
        if asked.trace is not None and self._traces.pop(asked.trace, None) is not None:
            self.engine.drop(asked.trace)

    def _finish(self, asked: _Asked) -> None:
        results = [asked.results[number] for number, _ in asked.added]
        try:
            if asked.trace is None:
                self.engine.check((internal, asked.results[number]) for number, internal in asked.added)
                answers = [encode_message("result", outputs.bare(result)) for result in results]
            else:
                answers, text = self.engine.finish(asked.trace, results)
                del self._traces[asked.trace]
                if text:
                    asked.connection.send(frames.Said(text))
        except Exception as error:  # as above
            self.give_up(asked)
            asked.connection.send(frames.Failed(encode_error(error)))
        else:
            asked.connection.send(frames.Served(answers))
        asked.connection.asked = None

    def _tell_printed(self) -> None:
        self._looked = time.monotonic()
        for trace, text in self.engine.heard().items():
            if trace in self._traces:
                self._traces[trace].connection.send(frames.Said(text))


class _Asked:
    """What a job has asked for: the requests, by their two names, and what the engine gave for them so far."""

    def __init__(self, connection: _Connection, trace: str | None) -> None:
        self.connection = connection
        self.trace = trace
        self.added: list[tuple[str, str]] = []
        self.results: dict[str, Any] = {}


class _Connection:
    """The process of one job."""

    def __init__(self, loop: Loop, end: socket.socket, selector: selectors.BaseSelector) -> None:
        end.setblocking(False)
        self.socket = end
        self.asked: _Asked | None = None
        self._loop = loop
        self._selector = selector
        self._taken = frames.Frames()
        self._outgoing: deque[memoryview] = deque()

    def handle(self, events: int) -> None:
        """Take what has come, and send what has waited."""
        try:
            if events & selectors.EVENT_WRITE:
                self._flush()
            if events & selectors.EVENT_READ:
                data = self.socket.recv(1 << 20)
                if not data:
                    raise ConnectionResetError
                for message in self._taken.take(data):
                    if self.asked is not None:
                        raise ConnectionResetError  # our own end asks once at a time; this is something else
                    self.asked = self._loop.begin(frames.asked(message), self)
        except BlockingIOError:
            pass
        except (OSError, ValueError, msgspec.MsgspecError):
            self.close()

    def send(self, message: msgspec.Struct) -> None:
        """Send a message, when there is room for it."""
        if self.socket.fileno() >= 0:
            self._outgoing.append(memoryview(frames.packed(message)))
            self._selector.modify(self.socket, selectors.EVENT_READ | selectors.EVENT_WRITE, self)

    def _flush(self) -> None:
        while self._outgoing:
            first = self._outgoing[0]
            sent = self.socket.send(first)
            if sent < len(first):
                self._outgoing[0] = first[sent:]
                return
            self._outgoing.popleft()
        self._selector.modify(self.socket, selectors.EVENT_READ, self)

    def close(self) -> None:
        """Hear no more of the job, and serve it no more."""
        asked, self.asked = self.asked, None
        if asked is not None:
            self._loop.give_up(asked)
        self._selector.unregister(self.socket)
        self.socket.close()
        self._outgoing.clear()
