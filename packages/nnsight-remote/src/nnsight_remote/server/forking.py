"""Jobs in processes of their own: each runs in a child that was forked, and confined, before the job came.

The one idea: forking, confining and taking down a process each take as long as a small block, so none of them is waited
for. The child that stands by has the model and nothing else; a job reaches it as open files. When it says that it is done,
or dies, it is killed with all that it started, and the next one stands by. Nothing of a job is left for the one after it.
"""

from __future__ import annotations

import functools
import gc
import os
import select
import signal
import socket
import warnings
from collections.abc import Callable
from typing import Any

import torch

from nnsight.plugin import NNsight, Shareable

from .channel import Channel
from .confine import Confinement, Walls, limit_sizes
from .large_pages import gather
from .lifeline import die_with
from .rehearsal import Rehearsal
from .worker import Files, forget_secrets, print_to, run_job

#: How often code has to run until the interpreter has specialised it.
_REHEARSALS = 8


def serve(
    channel: Channel,
    model: NNsight,
    confinement: Confinement,
    threads: int,
    ready: dict[str, Any],
    shared: int | None = None,
) -> None:
    """Run jobs until the server hangs up, or the engine ends that all of them use.

    Args:
        shared: what a model gives that is `Shareable`.
    """
    heard, told = _hear_children()
    rehearsal = Rehearsal()
    for _ in range(_REHEARSALS):
        rehearsal.play()
    gc.collect()
    gc.freeze()  # a child's collector would touch, and so copy, every object of the model
    gather()
    walls = Walls(confinement, devices=False)
    running: dict[int, _Child] = {}
    make = functools.partial(_Child, channel, (heard, told), model, walls, threads, rehearsal, running)
    at_once = ready["at_once"]
    standby: _Child | None = make()
    ended: list[_Child] = []
    channel.send(ready)
    while _wait(running, channel, heard, shared):
        for job in [job for job, child in running.items() if child.said_done or child.is_dead()]:
            _end(channel, job, running.pop(job), ended)
        if channel.has_message or select.select([channel.socket], [], [], 0)[0]:
            received = channel.receive()
            if received is None:
                return  # whatever is left dies with this process
            order, files = received
            job = order["job"]
            if order["do"] == "run":
                child = standby or make()
                standby = None
                try:
                    child.begin(order["limit"], files, final=not confinement.trusted)
                except OSError:  # it died while nobody looked
                    child.kill()
                    ended.append(child)
                    child = make()
                    child.begin(order["limit"], files, final=not confinement.trusted)
                for file in files:
                    os.close(file)
                running[job] = child
                channel.send({"is": "begun", "job": job})
            elif job in running:  # else it is a stop that crossed the end of its job
                _end(channel, job, running.pop(job), ended)
        if standby is None and len(running) < at_once:
            standby = make()
        ended = [one for one in ended if one.reap(wait=False) is None]


def _end(channel: Channel, job: int, child: _Child, ended: list[_Child]) -> None:
    child.kill()
    # A child that said that it is done need not be waited for.
    channel.send({"is": "done", "job": job, "status": 0 if child.said_done else child.reap()})
    ended.append(child)


class _Child:
    """A process that stands by for one job."""

    def __init__(
        self,
        channel: Channel,
        pipe: tuple[int, int],
        model: NNsight,
        walls: Walls,
        threads: int,
        rehearsal: Rehearsal,
        running: dict[int, _Child],
    ) -> None:
        ours, theirs = socket.socketpair()
        parent = os.getpid()

        def work() -> None:
            os.setsid()
            die_with(parent)
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            # The write fails instead, and the worker can say why.
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            ours.close()
            channel.close()
            for end in pipe:
                os.close(end)
            for child in running.values():
                child.end_of_socket.close()  # through which others are told what to do
            torch.set_num_threads(threads)
            forget_secrets()
            torch.seed()  # or every job would draw the same numbers
            if isinstance(model, Shareable):
                model._join()
            guard = walls.close_in(limits_are_final=True)
            if not select.select([theirs], [], [], 0)[0]:  # nobody waits for it yet
                rehearsal.play()
            received = Channel(theirs).receive()
            if received is None:
                return
            files = Files(*received[1])
            print_to(files.log)
            run_job(model, files, guard)
            theirs.send(b".")

        self.pid = _fork(work)
        theirs.close()
        self.end_of_socket = ours
        self.said_done = self.has_hung_up = False
        self._status: int | None = None

    def begin(self, limit: dict[str, int], files: list[int], *, final: bool) -> None:
        """Hand it a job. Raises OSError if it is dead."""
        limit_sizes(limit["memory_bytes"], limit["result_bytes"], final=final, pid=self.pid)
        Channel(self.end_of_socket).send({}, files)

    def hear(self) -> None:
        """Hear that it is done, or that it hung up, and is about to end."""
        self.said_done = self.end_of_socket.recv(1) == b"."
        self.has_hung_up = not self.said_done

    def is_dead(self) -> bool:
        """Whether it has ended; its number is its own until `reap`."""
        return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    def kill(self) -> None:
        """End it, and what it started."""
        os.kill(self.pid, signal.SIGKILL)
        try:
            os.killpg(self.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass  # it was ended before it had a group of its own
        self.end_of_socket.close()

    def reap(self, *, wait: bool = True) -> int | None:
        """Forget a child that was killed: its status, negative for a signal; None if it is not gone yet."""
        if self._status is None:
            found, status = os.waitpid(self.pid, 0 if wait else os.WNOHANG)
            self._status = os.waitstatus_to_exitcode(status) if found else None
        return self._status


def _wait(running: dict[int, _Child], channel: Channel, heard: int, shared: int | None) -> bool:
    """Wait until a job is done, its process dead, or the server says something; whether jobs can still be run."""
    watched: list[Any] = [heard, channel.socket, *(() if shared is None else (shared,))]
    if channel.has_message or any(child.is_dead() for child in running.values()):
        return True
    ends = {child.end_of_socket: child for child in running.values() if not child.has_hung_up}
    readable, _, _ = select.select([*watched, *ends], [], [])
    for end in readable:
        if end in ends:
            ends[end].hear()
    if heard in readable:
        os.read(heard, 1 << 10)
    return shared not in readable


def _hear_children() -> tuple[int, int]:
    """Make a pipe that gets a byte for each child that ends, which can be waited for together with sockets."""
    heard, told = os.pipe()
    os.set_blocking(told, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(told, warn_on_full_buffer=False)
    return heard, told


def _fork(work: Callable[[], None]) -> int:
    with warnings.catch_warnings():
        # Python warns of threads that libraries left behind. They hold no lock that a child needs: they are idle.
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child:
        return child
    try:
        work()
        os._exit(0)
    finally:
        os._exit(70)
