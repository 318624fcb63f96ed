"""`Facts` of a server that was started with `nnsight serve`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .connection import Connection, as_json
from .errors import ProtocolError
from .protocol import Environment, Offer, Sight

#: The version of the interface over HTTP that is spoken here.
PROTOCOL = 1


class ServeFacts:
    """Asks a server what it is and has."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def offers(self) -> list[Offer]:
        """The models."""
        return [
            Offer(
                name=one["name"],
                source=one["source"],
                state=one["state"],
                is_ready=one["state"] in ("ready", "busy"),
                queued=one["queued"],
                note=one["problem"] if one["state"] == "failed" else "",
            )
            for one in self._read("/models", list)
        ]

    def environment(self, model: str = "") -> Environment:
        """The versions in the process of a model once it was loaded; until then those of the server itself."""
        found = self._read("/env", dict)
        said = found["models"].get(model) or {}
        packages = {**found["packages"], **said.get("packages", {})}
        if "nnsight" in packages:
            packages["nnsight-core"] = packages.pop("nnsight")
        return Environment(said.get("python") or found["python"], packages)

    def whoami(self) -> Mapping[str, Any]:
        """Name, role, and limits."""
        return self._read("/whoami", dict)

    def jobs(self, count: int) -> list[Sight]:
        """The user's newest jobs."""
        return [sight(one) for one in self._read("/jobs", list, params={"count": count})]

    def _read(self, path: str, kind: type, **options: Any) -> Any:
        found = as_json(self._connection.ask("GET", path, **options))
        if not isinstance(found, kind):
            raise ProtocolError(f"{self._connection.address.url}{path} says something that is not understood here")
        return found


def sight(view: Mapping[str, Any]) -> Sight:
    """Read a job as the server shows it."""
    failure = view["failure"] or {}
    return Sight(
        id=view["id"],
        state=view["state"],
        model=view["model"],
        position=view["position"],
        reason=failure.get("reason", ""),
        message=failure.get("message", ""),
        traceback=failure.get("traceback", ""),
        has_result=view["state"] == "completed" or bool(failure.get("encoded")),
        details=view,
    )
