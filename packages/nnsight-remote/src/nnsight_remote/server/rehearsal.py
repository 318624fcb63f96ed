"""`Rehearsal`: a block of one line on a model of one number, run where users' blocks are going to run.

The one idea: what a process does for the first time takes several times as long as the second time. Code is specialised,
caches are filled, and in a child that was just forked each page that is touched has to be copied. Most of that is the same
for all blocks, so a process does it before it has one.
"""

from __future__ import annotations

from typing import Any

import torch

from nnsight.plugin import NNsight, Request, decode_request, encode_request, encode_results


class Rehearsal:
    """The block, as it would arrive here."""

    def __init__(self) -> None:
        self._model: Any = NNsight(torch.nn.Linear(1, 1))
        self._data = b""
        with self._model.trace(torch.ones(1, 1), backend=self):
            out = self._model.output.save()  # noqa: F841  # its name goes along

    def run(self, request: Request) -> dict[str, Any]:
        """Keep the block instead of running it."""
        self._data = encode_request(request)
        return {}

    def play(self) -> None:
        """Let the block go the way of every other."""
        encode_results(decode_request(self._data, self._model).replay())
