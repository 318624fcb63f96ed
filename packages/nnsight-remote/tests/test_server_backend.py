"""A server as a place to run blocks: all that must hold for every such place, over HTTP and in another process."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import served_models
from serving import Client, Server

from nnsight.plugin import Request
from nnsight.testing import BackendSuite


class ByModule(Client):
    """Sends a block to the model that is called like the class of the block's own."""

    def run(self, request: Request) -> dict[str, Any]:
        self.model = type(request.node._root._module).__name__.lower()
        return super().run(request)


@pytest.fixture(scope="module", params=["fork", "resident"])
def there(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ByModule]:
    models = ["mlp=served_models:mlp", "generating=served_models:generating"]
    store = tmp_path_factory.mktemp("suite") / "store"
    with Server(
        store, "--open", "--isolation", request.param, "--allow-import", "pytest", models=models
    ).running() as server:
        yield ByModule(server.url)


class TestServer(BackendSuite):
    rounding = 0.0

    @pytest.fixture
    def backend(self, there: ByModule) -> ByModule:
        return there

    def make_model(self) -> Any:
        return served_models.mlp()
