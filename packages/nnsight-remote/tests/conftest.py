"""A server that most tests use together; each has users of its own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import served_models
import torch
from dying import Dying, dying_servers
from serving import Client, Encoded, Server

from nnsight.plugin import encode_results

#: What the kernel has to stop is let through by the list of imports.
REACHING_OUT = ("os", "socket", "subprocess", "signal", "sys", "threading", "ctypes", "pathlib", "resource")


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    allowed = [word for name in REACHING_OUT for word in ("--allow-import", name)]
    store = tmp_path_factory.mktemp("server") / "store"
    with Server(store, *allowed, "--limit", "memory_bytes=512M").running() as server:
        admin = Client(server.url, server.admin)
        # Whatever comes first waits until the model is there.
        admin.wait(admin.submit(encode_results({}))["id"])
        yield server


@pytest.fixture(scope="session")
def forking(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dying]:
    """What `servers` are forked from."""
    with dying_servers(tmp_path_factory.mktemp("dying") / "log") as servers:
        yield servers


@pytest.fixture
def servers(forking: Dying) -> Iterator[Dying]:
    """Servers that start within a moment, let everybody in, and die where a test wants it."""
    yield forking
    forking.stop()


@pytest.fixture
def user(server: Server, request: pytest.FixtureRequest) -> Client:
    """A user that no other test knows."""
    return server.user(request.node.name[:100])


@pytest.fixture
def model() -> Any:
    return served_models.mlp()


@pytest.fixture
def encoded() -> Encoded:
    return Encoded()


@pytest.fixture
def endless(model: Any) -> bytes:
    """A block that says that it runs (see `Client.begin`), and goes on for ever."""
    taken = Encoded()
    with model.trace(torch.ones(2, 4), backend=taken):
        print("it runs")
        while True:
            pass
    return taken.data


@pytest.fixture
def store_folder(tmp_path: Path) -> Path:
    return tmp_path / "store"
