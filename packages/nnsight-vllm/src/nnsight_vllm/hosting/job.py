"""The engine, as the process of a job knows it: one connection, on which each trace is asked for and answered."""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from nnsight import NNsightError
from nnsight.plugin import Prepared, decode_message

from .. import outputs
from ..engine import saved_or_raised
from . import frames


class JobEngine:
    """Serves the traces of one job in an engine of another process.

    Args:
        connection: to that process.
        tokenizer: the engine's.
    """

    started = True

    def __init__(self, connection: socket.socket, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self._connection = connection
        self._waiting = self._messages()
        outputs.register()

    @property
    def standing(self) -> Any:
        """What is installed on an engine that many share is not a job's to say."""
        raise NNsightError(
            "Edits that stay on the engine of a server are for all of its users, so a block cannot install or remove one. "
            "Requests can ask for those that are there: `standing=NAME`"
        )

    def start(self) -> None:
        """Nothing: it has been started."""

    def serve(self, bodies: bytes, inputs: Sequence[Prepared]) -> list[Mapping[str, Any]]:
        """Serve the requests of one trace; see `nnsight.plugin.Engine`."""
        return saved_or_raised(self._ask(frames.Serve(frames.written(inputs), bodies)))

    def generate(self, inputs: Sequence[Prepared]) -> list[Any]:
        """Run requests to their ends, and return what the engine gave, in their order."""
        return [decode_message(answer)[1] for answer in self._ask(frames.Serve(frames.written(inputs)))]

    def _ask(self, message: frames.Serve) -> list[bytes]:
        try:
            self._connection.sendall(frames.packed(message))
            for said in self._waiting:
                if isinstance(said, frames.Said):
                    print(said.text, end="", flush=True, file=sys.stdout)
                elif isinstance(said, frames.Failed):
                    saved_or_raised([said.error])
                else:
                    return said.answers
        except ConnectionError:
            pass
        raise NNsightError("the engine that serves the model ended while the block ran; run it again")

    def _messages(self) -> Iterator[frames.Said | frames.Served | frames.Failed]:
        taken = frames.Frames()
        while data := self._connection.recv(1 << 20):
            for message in taken.take(data):
                yield frames.told(message)
