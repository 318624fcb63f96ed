"""A server that is killed at a point of a job's life that a test names: exact, where a signal from outside would be a race.

The one idea: nothing of this is in the server itself. One process imports what a server and the processes of models need,
and forks for each server that is wanted; the child changes one function, so that it kills itself there (SIGKILL, as a loss of
power would), and is otherwise the real thing: `nnsight serve`, its engine, its confined processes. A process for a model
is forked too, where the server would start an interpreter, which takes seconds.

    $ python -m dying
    start {"point": "...", "flag": PATH, "line": [...]}     a server; it dies at the point once the file PATH is there
    wait                                                    until it is dead
    stop                                                    kill it, if there is one
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import served_models  # noqa: F401  # what the processes of models would import
import starlette.responses
import uvicorn  # noqa: F401  # the server imports it when it starts

from nnsight_remote.server import app, command, host, worker  # noqa: F401  # likewise
from nnsight_remote.server.admission import Admission
from nnsight_remote.server.dispatch import Dispatcher
from nnsight_remote.server.events import Events
from nnsight_remote.server.intake import Intake
from nnsight_remote.server.processes import ProcessHost
from nnsight_remote.server.queue import FairQueue
from nnsight_remote.server.store import Store

HERE = Path(__file__).parent
_flag = Path()


def _die() -> None:
    if _flag.exists():
        os.kill(os.getpid(), signal.SIGKILL)


def _at(owner: Any, name: str, when: Callable[..., bool] = lambda *_, **__: True, *, after: bool = False) -> None:
    """Die where a function is called, or where it has returned, if its arguments are such."""
    plain = getattr(owner, name)

    @functools.wraps(plain)
    def call(*args: Any, **kwargs: Any) -> Any:
        dies = when(*args, **kwargs)
        if dies and not after:
            _die()
        found = plain(*args, **kwargs)
        if dies and after and not inspect.isawaitable(found):
            _die()
        return _then(found) if dies and after and inspect.isawaitable(found) else found

    setattr(owner, name, call)


async def _then(awaited: Any) -> Any:
    found = await awaited
    _die()
    return found


def _while_the_result_is_written() -> None:
    """Let the process of a job write half of its result, say so, and write no more."""

    def half(file: int, data: bytes) -> None:
        if _flag.exists():
            os.write(file, data[: len(data) // 2])
            print("half of the result", flush=True)
            signal.pause()
        plain(file, data)

    plain, worker._write = worker._write, half
    _at(Events, "add", lambda events, job, kind, text: "half of the result" in text)


def _while_the_result_is_sent() -> None:
    plain = starlette.responses.FileResponse.__call__

    async def call(self: Any, scope: Any, receive: Any, send: Any) -> None:
        async def sending(message: Any) -> None:
            if message.get("more_body") is False:
                _die()
            await send(message)

        await plain(self, scope, receive, sending)

    starlette.responses.FileResponse.__call__ = call


def _is(state: str) -> Callable[..., bool]:
    return lambda owner, job, *_: job.state == state


def _is_result(path: Path) -> bool:
    return path.parent.name == "results"


#: Where a server can die, in the order of a job's life.
POINTS: dict[str, Callable[[], None]] = {
    "before the request is read": lambda: _at(Intake, "_read"),
    "when half of the request is read": lambda: _at(Admission, "size", lambda own, user, size: 0 < size < 300_000),
    "when the request lies in its file and no job speaks of it": lambda: _at(Dispatcher, "submit"),
    "when the job is written down and the client has no answer": lambda: _at(Dispatcher, "submit", after=True),
    "when the job has left the queue": lambda: _at(FairQueue, "pop", after=True),
    "when the job is said to run and no host has it": lambda: _at(ProcessHost, "run"),
    "when the job was handed to its host": lambda: _at(ProcessHost, "_hand_over", after=True),
    "when the block has printed": lambda: _at(Events, "add", lambda own, job, kind, text: kind == "log", after=True),
    "when half of the result is written": _while_the_result_is_written,
    "when the result is written and the end is not": lambda: _at(Dispatcher, "_write_end"),
    "when half of the end is written": lambda: _at(Store, "save", _is("completed"), after=True),
    "when the end is written and nobody was told": lambda: _at(Dispatcher, "_write", _is("completed"), after=True),
    "when the result is about to come with the events": lambda: _at(Path, "read_bytes", _is_result),
    "when half of the result is sent": _while_the_result_is_sent,
    "when the result is sent and that is not noted": lambda: _at(Dispatcher, "fetched"),
}


# -- in the process that forks ---------------------------------------------------------------------------------------


def main() -> None:
    """Obey the lines of standard input."""
    child = 0
    for line in sys.stdin:
        if line.startswith("start "):
            child = os.fork()
            if not child:
                _serve(**json.loads(line[6:]))
            continue
        if child:
            if line == "stop\n":
                os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            child = 0
        print("dead", flush=True)


def _serve(point: str, flag: str, line: list[str]) -> None:
    global _flag
    status = 70
    try:
        _flag = Path(flag)
        asyncio.create_subprocess_exec = _fork_host
        if point:
            POINTS[point]()
        status = command.main(line)
    finally:
        os._exit(status)


class _Forked:
    """As much of a process of asyncio's as the engine uses."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._end = asyncio.ensure_future(asyncio.to_thread(os.waitpid, pid, 0))
        self._end.add_done_callback(self._note)

    def _note(self, end: asyncio.Future[tuple[int, int]]) -> None:
        self.returncode = os.waitstatus_to_exitcode(end.result()[1])

    async def wait(self) -> int:
        await asyncio.shield(self._end)
        assert self.returncode is not None
        return self.returncode


async def _fork_host(python: str, m: str, module: str, end: str, parent: str, **_: Any) -> _Forked:
    assert module == "nnsight_remote.server.host", module
    child = os.fork()
    if child:
        return _Forked(child)
    try:
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL)
        os.setsid()
        os.closerange(3, int(end))
        os.closerange(int(end) + 1, 1 << 16)
        sys.argv = [module, end, parent]
        host.main()
    finally:
        os._exit(0)


# -- in the tests ----------------------------------------------------------------------------------------------------


class Dying:
    """Starts servers; one lives at a time."""

    def __init__(self, process: subprocess.Popen[str], log: Path) -> None:
        self._process, self._log = process, log

    def start(
        self,
        store: Path,
        point: str = "",
        flag: Path = Path("/nonexistent"),
        models: Sequence[str] = ("served_models:mlp",),
    ) -> str:
        """Start a server on a store that lets everybody in, and return its address."""
        line = [*models, "--open", "--port", "0", "--store", str(store), "--threads", "1"]
        self._say("start " + json.dumps({"point": point, "flag": str(flag), "line": line}))
        said = self._process.stdout.readline()
        assert " at http://" in said, said
        return said.split(" at ")[1].split()[0]

    def wait(self) -> None:
        """Wait until the server is dead."""
        self._say("wait")
        assert self._process.stdout.readline() == "dead\n"

    def stop(self) -> None:
        """End the server, if there is one, as a loss of power would."""
        self._say("stop")
        assert self._process.stdout.readline() == "dead\n"

    @property
    def pid(self) -> int:
        """The process that servers are forked from."""
        return self._process.pid

    def logged(self) -> str:
        """What all of them wrote down."""
        return self._log.read_text()

    def _say(self, line: str) -> None:
        print(line, file=self._process.stdin, flush=True)


@contextmanager
def dying_servers(log: Path) -> Iterator[Dying]:
    """Servers that die where they are told to."""
    path = os.pathsep.join([str(HERE), *filter(None, sys.path)])
    with open(log, "wb") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", "dying"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env={**os.environ, "PYTHONPATH": path},
            start_new_session=True,
        )
    try:
        yield Dying(process, log)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        for pipe in (process.stdin, process.stdout):
            pipe.close()


if __name__ == "__main__":
    main()
