"""Blocks on a server of NDIF as it spoke to clients of nnsight up to 0.7: `Jobs` in that protocol.

/ws/socket.io            what happens to a job, while somebody waits for it
POST /request            hand a block in: the bytes are the block, and all about it stands in the headers
GET /response/ID         what was said last of a job that nobody waits for

The one idea: only how a block is handed in and how jobs are told of differs from what is spoken today.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import Any

from nnsight.plugin import Request, WireError

from ..jobs import POSTING, NdifJobs
from ..response import Response, read
from .events import Events
from .payload import encode
from .stand_ins import MODEL

#: The version of nnsight whose language is spoken.
SPOKEN = "0.7.0"


class OlderJobs(NdifJobs):
    """Hands blocks in, and fetches what became of them."""

    _socket = Events
    # What a job is told by is a file in a store, and that one is missing was no case of its own.
    _unknown_by = (404, 500)

    def _prepared(self, request: Request, model: str) -> Callable[[str], Response]:
        blob = encode(request)
        key = key_of(request.node.root, model)

        def hand_in(session: str) -> Response:
            headers = {
                "ndif-api-key": self._connection.address.key,
                "ndif-callback": "",
                "ndif-timestamp": str(time.time()),
                "nnsight-compress": "True",
                "nnsight-model-key": key,
                "nnsight-version": SPOKEN,
                "python-version": sys.version.replace("\n", " "),
                "content-type": "application/octet-stream",
            }
            if session:
                headers["ndif-session_id"] = session
            answer = self._connection.ask(
                "POST", "/request", seconds=0.0, content=blob, headers=headers, timeout=POSTING
            )
            return read(answer.text)

        return hand_in

    def _ask(self, job: str) -> Response | None:
        found = super()._ask(job)
        # A line that was printed takes the place of the state; it is there until the next, so it is no new one.
        if found is not None and found.status == "LOG":
            return Response(found.id, "RUNNING", found.description)
        return found


def key_of(model: Any, called: str) -> str:
    """Return the key by which a server of that time knows a model.

    Args:
        model: the model.
        called: the key that the server offers, or what the model is called on the hub.

    Raises:
        WireError: the server has another revision of it, or nothing says which model it is.
    """
    revision = getattr(model, "load_options", {}).get("revision")
    if ":" in called:
        try:
            there = json.loads(called.partition(":")[2])
        except ValueError:
            raise WireError(f"{called!r} is no key of a model at NDIF") from None
        if (there.get("revision") or "main") != (revision or "main"):
            raise WireError(
                f"the revision of this model is {revision!r}, and the server runs it with {there.get('revision')!r}; load it "
                f"with `revision={there.get('revision')!r}`"
            )
        return called
    name = called or getattr(model, "name_or_path", "")
    if not name:
        raise WireError(
            "nothing says which model of the hub this is, so the server cannot find it: load it by its name, or give that as "
            "`model=` to the backend"
        )
    return MODEL.replace(":", ".") + ":" + json.dumps({"repo_id": name, "revision": revision})
