"""The models of the servers that the tests start, and of the tests themselves: the same weights on both ends."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Callable

import torch

from nnsight import NNsight
from nnsight.testing.models import MLP, Generating, seeded


def mlp() -> NNsight:
    return NNsight(seeded(MLP))


def generating() -> NNsight:
    return NNsight(seeded(Generating))


def unloadable() -> NNsight:
    raise FileNotFoundError("there are no such weights")


def dying() -> NNsight:
    os.kill(os.getpid(), signal.SIGKILL)
    threading.Event().wait()  # where a process has several threads, this one may live on for a moment
    raise AssertionError("it is dead")


class Shared(NNsight):
    """A model whose runs all ask one other process, which counts them: the least that jobs can share."""

    def _share(self, begin: Callable[[], None], close_in: Callable[[], None]) -> int:
        self.__dict__["asking"], theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        alive, ended = os.pipe()
        if not os.fork():
            self.__dict__["asking"].close()
            os.close(alive)
            begin()
            close_in()
            _count(theirs)
            os._exit(0)
        theirs.close()
        os.close(ended)
        return alive

    def _join(self) -> None:
        asking = self.__dict__["asking"]

        def count(module: torch.nn.Module, args: tuple[torch.Tensor]) -> torch.Tensor:
            asking.send(b"die" if len(args[0]) == 13 else b"count")
            return args[0] * 0 + int(asking.recv(100))

        self._module.register_forward_pre_hook(count)


def _count(asked: socket.socket) -> None:
    number = 0
    while (said := asked.recv(100)) == b"count":
        number += 1
        asked.send(b"%d" % number)


def shared() -> NNsight:
    return Shared(seeded(MLP))
