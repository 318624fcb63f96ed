"""`remote="local"`: the block runs in a fresh interpreter, as it would on a server.

The one idea: the other interpreter sees installed packages and nothing of the user's; what it has of the block came over
the wire, and what it saved comes back that way. It gets the model by value, so that any model can be rehearsed with.
`main` is what runs over there.
"""

from __future__ import annotations

import contextlib
import io
import json
import mmap
import os
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from .backend import Request
from .errors import RemoteError
from .travel import (
    decode_error,
    decode_message,
    decode_model,
    decode_request,
    decode_results,
    encode_error,
    encode_message,
    encode_request,
    encode_results,
    inspect_bytes,
    model_pieces,
)
from .wire import origin

# Neither the environment nor a folder's name gives it more to import than what is listed.
_BEGIN = """
import json, sys
sys.path += json.loads(sys.argv[1])
from nnsight._core.rehearsal import main
main(sys.argv[2], int(sys.argv[3]))
"""
_SIZE = struct.Struct("<Q")


class Rehearsal:
    """Runs blocks in fresh interpreters on this machine, one each."""

    def run(self, request: Request) -> dict[str, Any]:
        """Send the block, tell what it prints, and return what it saved or raise what it raised."""
        data = encode_request(request)
        with tempfile.TemporaryDirectory(prefix="nnsight-") as place:
            Path(place, "request").write_bytes(data)
            with open(Path(place, "model"), "wb") as file:
                file.writelines(model_pieces(request.node))
            with _interpreter(place) as (process, answers):
                return self._hear(process, answers)

    def _hear(self, process: subprocess.Popen[bytes], answers: BinaryIO) -> dict[str, Any]:
        while True:
            data = _read(answers)
            if data is None:
                raise RemoteError(
                    f"the interpreter that the block was rehearsed in ended before it was done, with code {process.wait()}"
                )
            kind = inspect_bytes(data)["kind"]
            if kind == "results":
                return decode_results(data)
            if kind == "error":
                raise decode_error(data)
            told, value = decode_message(data)
            if told == "log":
                print(value, end="")


@contextlib.contextmanager
def _interpreter(place: str) -> Iterator[tuple[subprocess.Popen[bytes], BinaryIO]]:
    ours, theirs = os.pipe()
    command = [sys.executable, "-I", "-S", "-c", _BEGIN, json.dumps(origin.places()), place, str(theirs)]
    with open(ours, "rb") as answers:
        try:
            process = subprocess.Popen(command, pass_fds=[theirs], stdin=subprocess.DEVNULL)
        finally:
            os.close(theirs)
        try:
            yield process, answers
        finally:
            process.kill()  # it is done, or nobody waits for it any more
            process.wait()


def _read(answers: BinaryIO) -> bytes | None:
    head = answers.read(_SIZE.size)
    return answers.read(*_SIZE.unpack(head)) if len(head) == _SIZE.size else None


# -- over there ------------------------------------------------------------------------------------------------------


class _Log(io.TextIOBase):
    """Tells what is printed, instead of printing it."""

    def __init__(self, answers: BinaryIO) -> None:
        self._answers = answers

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        _send(self._answers, encode_message("log", text))
        return len(text)


def _send(answers: BinaryIO, data: bytes) -> None:
    answers.write(_SIZE.pack(len(data)) + data)
    answers.flush()


def main(place: str, answer_to: int) -> None:
    """Run the request that lies in a folder on the model that lies there, and answer to a pipe."""
    with open(answer_to, "wb") as answers:
        try:
            with open(Path(place, "model"), "rb") as file:
                model = decode_model(memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)))
            model._ready()
            os.chdir(place)  # the files of the user are not there either
            request = decode_request(Path(place, "request").read_bytes(), model)
            with contextlib.redirect_stdout(_Log(answers)):
                saved = request.replay()
            _send(answers, encode_results(saved))
        except BaseException as error:
            _send(answers, encode_error(error))
