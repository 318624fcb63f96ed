"""Run one block: decode it, replay it, encode what it saved. This is where users' code runs.

The one idea: everything arrives as open files, and everything that can go wrong becomes an outcome of one line of JSON. An
exception of the block is encoded into the place of the result, so that the client can raise it as its own. Where the
process comes from, and what it may do, is `host.py`'s and `confine`'s business.
"""

from __future__ import annotations

import io
import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

from nnsight.plugin import NNsight, Request, WireError, decode_request, encode_error, encode_results

from .confine.imports import ImportGuard
from .eight import reader as eight
from .eight.envelope import is_enveloped
from .pieces import PieceWriter

_HERE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "")
_LONGEST_MESSAGE, _LONGEST_TRACEBACK = 4_000, 16_000


@dataclass(frozen=True)
class Files:
    """The open files of a job: where the request is, where the result goes, and two pipes to the server.

    One that hands over values while it runs has a third pipe, which tells of them, and the file that they go into.
    """

    request: int
    result: int
    log: int
    outcome: int
    told: int | None = None
    values: int | None = None

    def close(self) -> None:
        """Let go of all of them."""
        for file in (self.request, self.result, self.log, self.outcome, self.told, self.values):
            if file is not None:
                os.close(file)


def print_to(log: int) -> None:
    """Send what this process prints, from Python and from libraries, into a pipe."""
    os.dup2(log, 1)
    os.dup2(log, 2)
    for number, name in ((1, "stdout"), (2, "stderr")):
        file = os.fdopen(number, "wb", buffering=0, closefd=False)
        text = io.TextIOWrapper(io.BufferedWriter(file), "utf-8", "backslashreplace", line_buffering=True)
        setattr(sys, name, text)


def forget_secrets() -> None:
    """Take keys and tokens, which loading may have needed, out of the environment that a block sees."""
    for name in list(os.environ):
        if any(word in name.upper() for word in ("KEY", "TOKEN", "SECRET", "PASSWORD", "CREDENTIAL")):
            del os.environ[name]


def run_job(model: NNsight, files: Files, guard: ImportGuard | None) -> None:
    """Run a job to its end and report the outcome; nothing is raised but what ends the process."""
    seconds: dict[str, float] = {}
    try:
        outcome = _outcome(model, files, guard, seconds)
    except MemoryError as error:
        outcome = _failed("memory", error)
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            pass  # the block closed it, or the server has read enough
    _write(files.outcome, json.dumps({**outcome, "seconds": seconds}).encode())


def _outcome(model: NNsight, files: Files, guard: ImportGuard | None, seconds: dict[str, float]) -> dict[str, Any]:
    sent = _read(files.request)
    # Clients of nnsight 0.8 read of an error what is said of it, and not the error itself.
    place = None if is_enveloped(sent) else files
    with guard.on() if guard else nullcontext():
        try:
            with _timed(seconds, "decode"):
                request = _decoded(sent, model, guard)
        except (WireError, ImportError) as error:
            return _failed("refused", error, place)
        except MemoryError:
            raise
        except Exception as error:  # what a user's module raises while it is made anew is the user's
            return _failed("error", error, place)
        try:
            with _timed(seconds, "run"):
                saved = request.replay(_look(files))
            with _timed(seconds, "encode"):
                data = request.encode(saved) if isinstance(request, eight.Received) else encode_results(saved)
        except BaseException as error:  # of a user's code, whatever it is
            return _failed("memory" if _out_of_memory(error) else "error", error, place)
    try:
        with _timed(seconds, "encode"):
            _write(files.result, data)
    except OSError as error:
        return _failed("result", error) | {"bytes": len(data)}
    return {"ok": True}


def _decoded(sent: bytes, model: NNsight, guard: ImportGuard | None) -> Request:
    if not is_enveloped(sent):
        return decode_request(sent, model)
    return eight.read(sent, model, guard.check) if guard else eight.read(sent, model)


def _look(files: Files) -> Callable[[Mapping[str, Any]], None] | None:
    """Return what looks at values while the block runs, if somebody wants them."""
    return PieceWriter(files.values, files.told).look if files.values is not None and files.told is not None else None


@contextmanager
def _timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    began = time.perf_counter()
    try:
        yield
    finally:
        seconds[stage] = seconds.get(stage, 0.0) + time.perf_counter() - began


def _failed(reason: str, error: BaseException, files: Files | None = None) -> dict[str, Any]:
    """Describe a failure; with files, put the exception itself where the result would be."""
    encoded = False
    # Without our own frames at its head, which are no news to the user.
    while error.__traceback__ and error.__traceback__.tb_frame.f_code.co_filename.startswith(_HERE):
        error.__traceback__ = error.__traceback__.tb_next
    if files is not None:
        try:
            _write(files.result, encode_error(error))
            encoded = True
        except Exception:  # an exception that cannot be encoded, or not be kept, is still described
            os.ftruncate(files.result, 0)
    return {
        "ok": False,
        "reason": reason,
        "type": type(error).__name__,
        "message": _text(error)[:_LONGEST_MESSAGE],
        "traceback": "".join(traceback.format_exception(type(error), error, error.__traceback__))[-_LONGEST_TRACEBACK:],
        "encoded": encoded,
    }


def _text(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:  # `__str__` is the user's code too
        return f"(a {type(error).__name__} whose text cannot be had)"


def _out_of_memory(error: BaseException) -> bool:
    # relies on: the text of torch's error when an allocation on the CPU fails, torch 2.4 to 2.13
    return isinstance(error, MemoryError) or "can't allocate memory" in _text(error)


def _read(file: int) -> bytes:
    with os.fdopen(file, "rb", closefd=False) as opened:
        return opened.read()


def _write(file: int, data: bytes) -> None:
    left = memoryview(data)
    while left:
        left = left[os.write(file, left) :]
