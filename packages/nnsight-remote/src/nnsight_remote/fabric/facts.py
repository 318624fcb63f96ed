"""What NDIF says of itself: its models, its versions, and who one is there."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ..client.connection import Connection, as_json, understood
from ..client.errors import ProtocolError, RefusedError
from ..client.protocol import Environment, Offer, Sight

#: What is installed where our blocks are run by our own server; here they are run by an nnsight before it was split up.
_FOREIGN = frozenset(("nnsight-core", "nnsight-hf", "nnsight-diffusers"))


class NdifFacts:
    """Asks NDIF what it is and has."""

    #: What its nnsight is called in a list of packages: it is not ours.
    _nnsight = "nnsight (0.8)"

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        key = connection.address.key
        self._headers = {"ndif-api-key": key} if key else {}

    def offers(self) -> list[Offer]:
        """The models that are deployed, and those that would be loaded first."""
        found = self._read("/status").get("deployments")
        if not isinstance(found, dict):
            raise ProtocolError(f"{self._connection.address.url}/status lists no deployments")
        offers: dict[str, Offer] = {}
        for one in found.values():
            with understood(f"{self._connection.address.url}/status"):
                offer = _offer(one)
            known = offers.get(offer.name)
            if known is None or offer.is_ready:  # there is one for each replica
                offers[offer.name] = offer
        return list(offers.values())

    def environment(self, model: str = "") -> Environment:
        """The versions there, of every model."""
        said = self._read("/env")
        packages = said.get("packages")
        if not isinstance(packages, dict):
            raise ProtocolError(f"{self._connection.address.url}/env lists no packages")
        named = {self._nnsight if name == "nnsight" else str(name): str(version) for name, version in packages.items()}
        return Environment(str(said.get("python_version", "")).partition(" ")[0], named, _FOREIGN)

    def whoami(self) -> Mapping[str, Any]:
        """The address that the key was given to."""
        said = self._read("/whoami")
        with understood(f"{self._connection.address.url}/whoami"):
            name, tags = str(said.get("email") or "nobody that it knows"), ", ".join(said.get("tags") or [])
        return {"name": name, "tags": tags}

    def jobs(self, count: int) -> list[Sight]:
        """NDIF does not list jobs."""
        raise RefusedError("NDIF does not list jobs; keep their ids (`job.id`)", 0, "jobs")

    def is_there(self) -> bool:
        """Whether it answers."""
        return self._connection.ask("GET", "/ping", headers=self._headers).is_success

    def _read(self, path: str) -> dict[str, Any]:
        found = as_json(self._connection.ask("GET", path, headers=self._headers))
        if not isinstance(found, dict):
            raise ProtocolError(f"{self._connection.address.url}{path} says something that is not understood here")
        return found


def _offer(one: Mapping[str, Any]) -> Offer:
    is_cold = one.get("deployment_level") == "COLD"
    state = "COLD" if is_cold else str(one.get("application_state") or one.get("deployment_level") or "")
    key = str(one.get("model_key") or "")
    return Offer(
        name=key,
        source=str(one.get("repo_id") or _repository(key)),
        state=state.lower(),
        is_ready=state == "RUNNING",
        note="loaded when it is asked for" if is_cold else str(one.get("task") or ""),
    )


def _repository(key: str) -> str:
    try:
        return str(json.loads(key.partition(":")[2]).get("repo_id", ""))
    except (ValueError, AttributeError):
        return ""
