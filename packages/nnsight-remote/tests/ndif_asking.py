"""What the tests of both of NDIF's protocols ask with: a model that NDIF could have, and a backend that asks for it."""

from __future__ import annotations

import io
from typing import Any

import torch

from nnsight import NNsight
from nnsight_remote.client.address import Address
from nnsight_remote.client.connection import Connection
from nnsight_remote.fabric.jobs import NdifJobs

#: What a block of `ask` gives, where the server is told to say so.
VALUE = torch.arange(4.0)


class Named(NNsight):
    """A model that NDIF could have."""

    task = "text-generation"
    name_or_path = "tests/tiny-gpt2"


class There:
    """Runs blocks, whose result is what the server was told."""

    speaks: type[NdifJobs] = NdifJobs

    def __init__(self, url: str, key: str = "", followed: bool = True) -> None:
        self.jobs = self.speaks(Connection(Address(url, key)), unknown=0.5)
        self.followed = followed
        self.events: list[Any] = []
        self.loaded: list[tuple[int, int]] = []

    def run(self, request: Any) -> dict[str, Any]:
        self.job = self.jobs.post(request, "", print, followed=self.followed)
        for event in self.jobs.watch(self.job, 0, 10.0):
            self.events.append(event)
        return self.jobs.fetch(self.job, lambda done, size: self.loaded.append((done, size)), 10.0, False)


def result(**values: Any) -> str:
    """Return values as a server sends them, in hexadecimal."""
    file = io.BytesIO()
    torch.save(values, file)
    return file.getvalue().hex()


def ask(there: Any) -> Any:
    """Run a block on a server, and return what it saved."""
    model = Named(torch.nn.Sequential(torch.nn.Linear(4, 4)))
    with model.trace(torch.ones(1, 4), backend=there):
        value = model.output.save()
    return value
