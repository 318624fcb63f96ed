"""What a server of NDIF as it was says of itself: its models and its versions; it says nothing of keys."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...client.errors import RefusedError
from ..facts import NdifFacts


class OlderFacts(NdifFacts):
    """Asks such a server what it is and has."""

    _nnsight = "nnsight (0.7)"

    def whoami(self) -> Mapping[str, Any]:
        """It does not say whose key it is."""
        raise RefusedError(
            f"{self._connection.address.url} speaks NDIF's older protocol, in which nobody can ask whose key it is",
            0,
            "whoami",
        )
