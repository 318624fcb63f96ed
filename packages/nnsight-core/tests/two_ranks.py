"""Two threads stand for two processes, each with its part of one network: what they exchange, and how values lie there."""

from __future__ import annotations

import threading

import torch

from nnsight import NNsight
from nnsight.plugin import tree_map


class Meeting:
    """What two threads exchange."""

    def __init__(self):
        self.barrier = threading.Barrier(2, timeout=20)
        self.brought = [None, None]
        #: How often they did.
        self.count = 0

    def all(self, rank, value):
        """Bring a value, and return those of both."""
        self.brought[rank] = value
        self.count += rank
        self.barrier.wait()
        found = list(self.brought)
        self.barrier.wait()
        return found


class Summed(torch.nn.Module):
    """A linear layer of which each rank has a part of the inputs."""

    def __init__(self, weight, rank, meeting):
        super().__init__()
        self.weight = torch.nn.Parameter(weight)
        self.rank, self.meeting = rank, meeting

    def forward(self, x):
        return sum(self.meeting.all(self.rank, x @ self.weight.T))


class Halves:
    """How values lie on one rank: of some it has half, along their last dimension.

    Args:
        rank: which.
        meeting: where it meets the other.
        spread: the places of those values, each with its stage.
    """

    def __init__(self, rank, meeting, spread):
        self.rank, self.meeting, self.spread = rank, meeting, spread

    def gather(self, path, stage, value):
        if (path, stage) not in self.spread:
            return value
        return tree_map(lambda part: torch.cat(self.meeting.all(self.rank, part), -1), value)

    def split(self, path, stage, value, local):
        if (path, stage) not in self.spread:
            return value
        return tree_map(lambda whole: whole.chunk(2, -1)[self.rank], value)


class OneRank(NNsight):
    """The network as one rank has it."""

    def __init__(self, module, sharding):
        self.__dict__["given"] = sharding
        super().__init__(module)

    def _shard(self, module):
        return self.__dict__["given"]
