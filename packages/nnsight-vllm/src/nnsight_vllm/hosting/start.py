"""How the engine's process is started, by the process that a server forks those of its jobs from."""

from __future__ import annotations

import os
import socket
import sys
import traceback
from collections.abc import Callable
from typing import Any

import torch

from ..engine import SyncEngine
from .job import JobEngine
from .loop import Loop

_READY = b"ready"


class SharedEngine:
    """An engine in a process of its own, for the processes of jobs.

    Args:
        engine: not started.
        begin, close_in: see `nnsight.plugin.Shareable`.
    """

    def __init__(self, engine: SyncEngine, begin: Callable[[], None], close_in: Callable[[], None]) -> None:
        if engine.started or torch.cuda.is_initialized():
            raise RuntimeError(
                "the engine of a served model is started in a process of its own, and this process has begun to use it: "
                "make the model without `dispatch=True`"
            )
        # With messages of their own, so that processes that ask at once do not mix.
        self.control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        sys.stdout.flush()
        sys.stderr.flush()
        if not os.fork():
            self.control.close()
            _serve(engine, theirs, begin, close_in)
        theirs.close()
        said = self.control.recv(1 << 16)
        if said != _READY:
            raise RuntimeError(said.decode(errors="replace") or "the engine's process ended while it started")

    started = True

    def join(self, tokenizer: Any) -> JobEngine:
        """Connect this process, which was forked for a job."""
        ours, theirs = socket.socketpair()
        with theirs:
            socket.send_fds(self.control, [b"+"], [theirs.fileno()])
        self.control.close()
        return JobEngine(ours, tokenizer)


def _serve(engine: SyncEngine, control: socket.socket, begin: Callable[[], None], close_in: Callable[[], None]) -> None:
    """Be the engine's process, to its end."""
    status = 1
    try:
        begin()
        # It is a process of its own already.
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        try:
            engine.start()
            engine.everywhere(close_in)
        except BaseException as error:  # whatever vLLM raises, the server must be told
            traceback.print_exc()
            control.send(f"{type(error).__name__}: {error}".encode()[: 1 << 15])
            return
        control.send(_READY)
        Loop(engine, control).run()
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)
