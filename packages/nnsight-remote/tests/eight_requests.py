"""What the tests of clients of nnsight 0.8 share: requests in their format, which our own client of NDIF writes."""

from __future__ import annotations

import io
from typing import Any

import torch
import zstandard

import nnsight
from nnsight import NNsight
from nnsight.testing.models import MLP, Generating, seeded
from nnsight_remote.fabric.payload import encode
from nnsight_remote.server.eight.envelope import Envelope
from nnsight_remote.server.eight.reader import read


class Named(NNsight):
    """A model that NDIF could have."""

    task = "text-generation"
    name_or_path = "served_models:mlp"

    def generate(self, *given: Any, backend: Any = None, **options: Any) -> Any:
        return nnsight.plugin.open_trace(self, given, options, method="generate", backend=backend)


def mlp() -> Named:
    return Named(seeded(MLP))


def generating() -> Named:
    return Named(seeded(Generating))


class Over:
    """Runs a block as the worker of a server does: written as theirs, read, run, and its result read as they do."""

    def __init__(self, model: Any = None, check: Any = None, compress: bool = True, **env: Any) -> None:
        self.model = model
        self.check = check or (lambda name: None)
        self.envelope = Envelope(compress, env)

    def run(self, request: Any) -> dict[str, Any]:
        stored = self.envelope.around(encode(request, compress=self.envelope.compress))
        received = read(stored, self.model or type(request.node.root)(request.node.root._module), self.check)
        data = received.encode(received.replay())
        if self.envelope.compress:
            data = zstandard.ZstdDecompressor().decompress(data)
        found: dict[str, Any] = torch.load(io.BytesIO(data), map_location="cpu", weights_only=False)
        return found
