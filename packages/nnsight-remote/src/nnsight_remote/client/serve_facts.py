"""`Facts` of a server that was started with `nnsight serve`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from . import fields
from .connection import Connection, as_json, understood
from .protocol import Environment, Offer, Sight

#: The version of the interface over HTTP that is spoken here.
PROTOCOL = 1


class ServeFacts:
    """Asks a server what it is and has."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def offers(self) -> list[Offer]:
        """The models."""
        with self._read("/models") as found:
            return [_offer(one) for one in fields.rows(found)]

    def environment(self, model: str = "") -> Environment:
        """The versions in the process of a model once it was loaded; until then those of the server itself."""
        with self._read("/env") as found:
            said = found["models"].get(model) or {}
            told = {**fields.table(found["packages"]), **fields.table(said.get("packages", {}))}
            packages = {fields.text(name): fields.text(version) for name, version in told.items()}
            if "nnsight" in packages:  # the model's own process says the name that it is imported by
                packages["nnsight-core"] = packages.pop("nnsight")
            return Environment(fields.text(said.get("python") or found["python"]), packages)

    def whoami(self) -> Mapping[str, Any]:
        """Name, role, and limits."""
        with self._read("/whoami") as found:
            limits = {fields.text(name): limit for name, limit in fields.table(found["limits"]).items()}
            return {"name": fields.text(found["name"]), "role": fields.text(found["role"]), "limits": limits}

    def jobs(self, count: int) -> list[Sight]:
        """The user's newest jobs."""
        with self._read("/jobs", params={"count": count}) as found:
            return [sight(one) for one in fields.rows(found)]

    @contextmanager
    def _read(self, path: str, **options: Any) -> Iterator[Any]:
        found = as_json(self._connection.ask("GET", path, **options))
        with understood(self._connection.address.url + path):
            yield found


def _offer(view: Mapping[str, Any]) -> Offer:
    return Offer(
        name=fields.name(view["name"]),
        source=fields.text(view["source"]),
        state=fields.text(view["state"]),
        is_ready=view["state"] in ("ready", "busy"),
        queued=fields.number(view["queued"]),
        note=fields.text(view["problem"]) if view["state"] == "failed" else "",
    )


def sight(view: Mapping[str, Any]) -> Sight:
    """Read a job as the server shows it."""
    failure = fields.table(view["failure"] or {})
    if "submitted" in view:
        fields.seconds(view["submitted"])
    return Sight(
        id=fields.identity(view["id"]),
        state=fields.state(view["state"]),
        model=fields.text(view["model"]),
        position=None if view["position"] is None else fields.number(view["position"]),
        reason=fields.text(failure.get("reason", "")),
        message=fields.text(failure.get("message", "")),
        traceback=fields.text(failure.get("traceback", "")),
        streams=bool(view.get("streams")),
        has_result=view["state"] == "completed" or bool(failure.get("encoded")),
        details=view,
    )
