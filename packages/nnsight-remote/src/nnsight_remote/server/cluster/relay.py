"""The process between the server and a model on the cluster: to the server a host, to Ray a driver.

The one idea: it has no state worth keeping. What it cannot do anything about (the actor is lost, the cluster is gone) it
says, and ends; the server then starts another, which looks for a new place. A job that had not begun is handed to that one.
"""

from __future__ import annotations

import json
import os
import platform
import socket
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayError

from ..channel import Channel
from ..jobs import Failure
from ..lifeline import die_with
from .node import Place
from .resources import as_options, in_words

_PIECE = 4 << 20  # of a request or a result
_STOPPING = 10.0  # seconds that a node has to say that a job was stopped


class _Lacking(Exception):
    """The cluster has no place for the model; the text says why."""


def main() -> None:
    """Serve the channel whose number is the argument, until the server hangs up."""
    channel = Channel(socket.socket(fileno=int(sys.argv[1])))
    die_with(int(sys.argv[2]))
    os.dup2(2, 1)  # what Ray prints belongs to the server's own output
    os.chdir("/")  # Ray puts the folder of a driver on the import path of every node
    received = channel.receive()
    if received is None:
        return
    order = received[0]
    try:
        with _patience(channel, order):
            _connect(order["address"], order["wait_seconds"])
            actor, about = _place(order)
        said = ray.get(actor.load.remote(order))
    except Exception as error:  # whatever Ray raises, the server must be told
        text = str(error) if isinstance(error, _Lacking) else f"{type(error).__name__}: {_in_short(error)}"
        said = {"is": "failed", "message": text[:10_000]}
    if said["is"] != "ready":
        channel.send(said)
        return
    channel.send({**said, "stops": True, "at_once": 1, "node": about["node"]})
    _serve(channel, actor, about["node"])


@contextmanager
def _patience(channel: Channel, order: dict[str, Any]) -> Iterator[None]:
    """Give up when Ray, which tries for minutes to reach a cluster that is gone, takes longer than a place may take."""

    def give_up() -> None:
        said = f"no Ray cluster at {order['address']!r} answered within {seconds:g} s"
        channel.send({"is": "failed", "message": said})
        os._exit(1)

    seconds = 2 * order["wait_seconds"] + 10
    timer = threading.Timer(seconds, give_up)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _connect(address: str, seconds: float) -> None:
    if address.startswith("ray://"):
        raise _Lacking(
            f"{address} is for Ray's client; the server has to be on a machine of the cluster. Join it with "
            "`ray start --address=HOST:6379 --num-cpus=0 --num-gpus=0`, and leave RAY_ADDRESS out or set it to HOST:6379"
        )
    host, colon, port = address.rpartition(":")
    try:
        if colon and port.isdigit():
            socket.create_connection((host.strip("[]"), int(port)), seconds).close()
        ray.init(address=address, logging_level="warning", log_to_driver=True)
    except (OSError, RuntimeError) as error:  # RuntimeError: also for other versions of Python or Ray
        raise _Lacking(f"no connection to a Ray cluster at {address!r}: {error}") from None


def _place(order: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Have the cluster start an actor; return it and what it says of its node."""
    wanted, seconds = order["resources"], order["wait_seconds"]
    end = time.monotonic() + seconds
    while True:
        actor = ray.remote(Place).options(max_restarts=0, **as_options(wanted)).remote()
        try:
            about = ray.get(actor.about.remote(), timeout=max(0.1, end - time.monotonic()))
            break
        except GetTimeoutError:
            raise _Lacking(
                f"the cluster found no place within {seconds:g} s for a model that is given {in_words(wanted)}. "
                f"It has {in_words(_shown(ray.cluster_resources()))}, and free of that is "
                f"{in_words(_shown(ray.available_resources()))}; a model has to fit on one node"
            ) from None
        except RayActorError as error:
            # Ray goes on sending actors to a node that is dead until it has noticed.
            if error.actor_init_failed or time.monotonic() > end - 1:
                raise
            time.sleep(1)
    here = _that_matter({"python": platform.python_version(), "ray": ray.__version__, **order["versions"]})
    there = _that_matter(about["versions"])
    if here != there:
        raise _Lacking(
            f"{about['node']} has other versions than the server: {_in_words(there)} there, {_in_words(here)} here. "
            "Install the same on all nodes"
        )
    if about["system"] != "linux":
        raise _Lacking(f"{about['node']} does not run Linux, and models are held on nodes that do")
    return actor, about


def _serve(channel: Channel, actor: Any, node: str) -> None:
    job: _Job | None = None
    number = 0
    while received := channel.receive():
        order, files = received
        if order.get("do") == "run":
            number += 1
            job = _Job(channel, actor, node, number, files, order)
            job.start()
        elif job is not None:
            job.stop()
    os._exit(0)  # the server is gone: Ray sees that this driver is, and ends the actor


class _Job(threading.Thread):
    """One job on its way to the node and back."""

    def __init__(
        self, channel: Channel, actor: Any, node: str, number: int, files: list[int], order: dict[str, Any]
    ) -> None:
        super().__init__(daemon=True)
        self._channel, self._actor, self._node, self._number = channel, actor, node, number
        self._limits, self._called = order["limit"], order["job"]
        self._files = files
        self._request, self._result, self._log, self._outcome = files
        self._begun = self._stopped = False

    def stop(self) -> None:
        """Have it stopped on its node; this process ends if that does not answer."""
        self._stopped = True
        try:
            ray.get(self._actor.stop.remote(self._number), timeout=_STOPPING)
        except RayError:
            os._exit(1)

    def run(self) -> None:
        """Carry the job there, what it prints back, and then what it saved."""
        try:
            self._run()
        except BaseException:  # a thread that ends so would leave the server waiting
            traceback.print_exc()
            os._exit(1)

    def _run(self) -> None:
        try:
            end = self._carry()
        except RayError as error:
            if not self._begun:
                os._exit(1)
            lost = f"{self._node}, which held the model, was lost while the job ran: {_in_short(error)}"
            end = {"failure": asdict(Failure("host", lost)), "seconds": {}, "alive": False}
        except OSError as error:
            full = Failure("storage", f"the server could not write the result: {error}")
            end = {"failure": asdict(full), "seconds": {}, "alive": True}
        if end["failure"] and not end["failure"]["encoded"]:
            os.ftruncate(self._result, 0)
        _write(self._outcome, json.dumps({name: end[name] for name in ("failure", "seconds")}).encode())
        for file in self._files:
            os.close(file)
        self._channel.send({"is": "done", "job": self._called, "status": 0, "spoilt": not end["alive"]})

    def _carry(self) -> dict[str, Any]:
        # By position: another relay may have to read it again.
        size, start = os.fstat(self._request).st_size, 0
        while size - start > _PIECE and not self._stopped:
            ray.get(self._actor.take.remote(os.pread(self._request, _PIECE, start)))
            start += _PIECE
        last = os.pread(self._request, _PIECE, start)
        end: dict[str, Any] = {}
        for said in self._actor.run.options(num_returns="streaming").remote(self._number, last, self._limits):
            kind, value = ray.get(said)
            if kind == "begun":
                self._begun = True
                self._channel.send({"is": "begun", "job": self._called})
            elif kind == "log":
                self._print(value)
            else:
                end = value
        self._fetch(end["size"])
        return end

    def _print(self, line: bytes) -> None:
        try:
            _write(self._log, line)
        except OSError:
            pass  # the server has read enough

    def _fetch(self, size: int) -> None:
        """Write what the job saved into its file; the next piece is on its way while one is written."""
        starts = range(0, size, _PIECE)
        coming = [self._actor.read.remote(start, _PIECE) for start in starts[:1]]
        for number in range(len(starts)):
            coming += [self._actor.read.remote(start, _PIECE) for start in starts[number + 1 : number + 2]]
            if self._stopped:
                return
            _write(self._result, ray.get(coming.pop(0)))
        if size:
            self._actor.forget.remote()


def _write(file: int, data: bytes) -> None:
    left = memoryview(data)
    while left:
        left = left[os.write(file, left) :]


def _in_short(error: Exception) -> str:
    """What Ray says of a loss, without the table of what was lost."""
    return " ".join(line for line in str(error).splitlines() if line[:1].strip()) or type(error).__name__


def _shown(resources: dict[str, float]) -> dict[str, float]:
    """What a user could ask for: without the names that Ray gives to every node, and in the words that one asks with."""
    names = {"CPU": "num_cpus", "GPU": "num_gpus"}
    return {
        names.get(name, name): value
        for name, value in resources.items()
        if not name.startswith("node:") and name != "object_store_memory"
    }


def _that_matter(versions: dict[str, str]) -> dict[str, str]:
    """Those that both ends of the cluster must share; what a model computes with is told to clients as it is there."""
    found: dict[str, str] = {
        name: versions[name] for name in ("ray", "nnsight-core", "nnsight-remote") if name in versions
    }
    return {"python": ".".join(versions["python"].split(".")[:2]), **found}


def _in_words(versions: dict[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items())


if __name__ == "__main__":
    main()
