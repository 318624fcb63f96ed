"""Where the time of a job went, stage by stage.

The one idea: the server takes the time of what it sees, and believes the process of a job the rest only as far as it fits
into that: the process has run a user's code, and may say anything.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

#: The stages in their order, and what each is.
STAGES = {
    "receive": "the request is on its way in, from its first bytes until it lies on the disk",
    "queue": "it waits for its turn, and for the model to be loaded",
    "handling": "it is handed to the process that runs it, and its end is noticed and written down",
    "decode": "the request is decoded there",
    "run": "the block runs",
    "encode": "what it saved is encoded and written",
    "send": "the result is on its way out, the last time that it was fetched",
}
_INSIDE = ("decode", "run", "encode")


def of_run(seconds: float, said: Mapping[str, Any]) -> dict[str, float]:
    """Divide the time between the start and the end of a job by what its process said of it."""
    inside = {name: said.get(name) for name in _INSIDE}
    believed = {
        name: float(value)
        for name, value in inside.items()
        if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value) and value >= 0
    }
    if sum(believed.values()) > seconds:
        believed = {}
    return {"handling": max(0.0, seconds - sum(believed.values())), **believed}
