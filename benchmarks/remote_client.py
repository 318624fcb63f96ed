"""The process that times round trips of one contender: it answers requests on stdin, one line of JSON each.

    python benchmarks/remote_client.py ours|peer URL

Time is what passes, for most of a round trip is waiting. What comes back is compared with what a local trace gives.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import time
from typing import Any

import torch

import gpt2

#: What is asked for: how many prompts of how many tokens.
SHAPES = {"one read": (1, 8), "all layers": (8, 512)}


class Client:
    """Runs blocks at a server, and here."""

    def __init__(self, contender: str, url: str) -> None:
        self.model = gpt2.wrapped()
        self.backend = _backend(contender, url)

    def prepare(self, work: str) -> list[float]:
        """Compare what comes back with what is computed here."""
        there, here = self._call(work, self.backend), self._call(work, None)
        for one, other in zip(there, here, strict=True):
            torch.testing.assert_close(one, other)
        return []

    def remote(self, work: str, calls: int) -> list[float]:
        """Return the seconds of some round trips."""
        return self._timed(work, self.backend, calls)

    def local(self, work: str, calls: int) -> list[float]:
        """Return the seconds of some local traces."""
        return self._timed(work, None, calls)

    def _timed(self, work: str, backend: Any, calls: int) -> list[float]:
        times = []
        gc.collect()
        gc.disable()
        try:
            for _ in range(calls):
                begin = time.perf_counter()
                found = self._call(work, backend)
                times.append(time.perf_counter() - begin)
                del found
        finally:
            gc.enable()
        return times

    def _call(self, work: str, backend: Any) -> list[torch.Tensor]:
        count, length = SHAPES[work]
        prompts = [" ".join(f"w{(row * 31 + place) % 999}" for place in range(length)) for row in range(count)]
        model, where = self.model, {"backend": backend} if backend is not None else {}
        if work == "one read":
            with model.trace(prompts[0], **where):
                hidden = model.transformer.h[6].output.save()
            return [hidden]
        with model.trace(prompts, **where):
            found: Any = []
            found.save()
            for layer in model.transformer.h:
                found.append(layer.output)
        return found


def _backend(contender: str, url: str) -> Any:
    from nnsight import CONFIG

    CONFIG.APP.REMOTE_LOGGING = False
    if contender == "ours":
        from nnsight_remote import RemoteBackend

        return RemoteBackend(url, model="gpt2:wrapped")
    from nnsight.intervention.backends.remote import RemoteBackend as Theirs

    return Theirs("model", host=url)


def main() -> None:
    """Serve until stdin ends."""
    # What libraries print must not be taken for an answer.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    torch.set_num_threads(1)
    client = Client(*sys.argv[1:])
    for line in sys.stdin:
        asked = json.loads(line)
        print(json.dumps(getattr(client, asked.pop("do"))(**asked)), file=answers)


if __name__ == "__main__":
    main()
