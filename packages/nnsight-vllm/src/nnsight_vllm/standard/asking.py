"""Ask an engine what the standard names mean in its model: one request of a few tokens, waited for whatever its mode."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import nnsight
from nnsight.plugin import EngineTracer, Prepared

from .found import Found
from .look import TOKENS, look
from .names import StandardNames


class _Waiting:
    """An engine whose traces are waited for where they end."""

    def __init__(self, engine: Any) -> None:
        self._engine = engine

    def serve(self, bodies: bytes, inputs: Sequence[Prepared]) -> list[Mapping[str, Any]]:
        """Serve a trace; see `nnsight.plugin.Engine`."""
        served = self._engine.serve(bodies, inputs)
        found: list[Mapping[str, Any]] = served if isinstance(served, list) else served.saved()
        return found


def ask(model: Any) -> StandardNames:
    """Return a model under standard names. Its engine is started if it is not there yet."""
    engine = _Waiting(model.__dict__["_engine"])
    options = {"max_tokens": 1, "temperature": 0}
    with EngineTracer(model, model, (list(TOKENS),), options, engine) as tracer:
        found = nnsight.save(look(model, tracer))
    return StandardNames(model, Found.of(found))
