"""`RayEngine`: hosts as actors of a Ray cluster.

The one idea: for the server a host is a process that it starts and may kill. Here that process is the relay, and what it
holds for the server lives as long as it does: Ray ends the actors of a driver that is gone.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..engine import ModelSpec, Outcome, Task
from ..jobs import Failure
from ..processes import ProcessEngine, ProcessHost
from ..versions import packages
from .resources import Resources


@dataclass(frozen=True)
class RayEngine(ProcessEngine):
    """Starts an actor for each model.

    Attributes:
        threads: how many threads a job computes with; 0 for as many as the model has CPUs.
        resources: what a model is given, by its name; under the empty name, what all are given.
        wait_seconds: how long the cluster may take to find a place.
        address: where the cluster is, as Ray writes it; `auto` for the one that this machine is part of.
    """

    threads: int = 0
    resources: Mapping[str, Resources] = field(default_factory=dict)
    wait_seconds: float = 60.0
    address: str = "auto"

    def host(self, spec: ModelSpec) -> RayHost:
        """Make a host for a model, not started yet."""
        return RayHost(self, spec)

    def resources_of(self, model: str) -> Resources:
        """What a model is given."""
        return {"num_cpus": 1.0, **self.resources.get("", {}), **self.resources.get(model, {})}


class RayHost(ProcessHost):
    """One model on some node of the cluster."""

    _program = "nnsight_remote.server.cluster.relay"
    _called = "the process that speaks with the cluster"
    _stopping_seconds = 15.0

    def __init__(self, engine: RayEngine, spec: ModelSpec) -> None:
        super().__init__(engine, spec)
        self._cluster = engine

    def _order(self) -> dict[str, Any]:
        engine = self._cluster
        resources = engine.resources_of(self._spec.name)
        return {
            **super()._order(),
            "name": self._spec.name,
            "threads": engine.threads or max(1, int(resources["num_cpus"])),
            "resources": resources,
            "wait_seconds": engine.wait_seconds,
            "startup_seconds": engine.startup_seconds,
            "address": engine.address,
            "versions": packages(),
        }

    def _read_outcome(self, line: bytes, task: Task) -> Outcome | None:
        # The node has read what the job's process said, and put it in words: this is one of our own processes speaking.
        if not line:
            return None
        said = json.loads(line)
        return Outcome(Failure(**said["failure"]) if said["failure"] else None, said["seconds"])
