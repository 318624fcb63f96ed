"""What a block saves, handed over piece by piece while it runs. This runs beside the user's code, in its process.

The one idea: a piece (`nnsight.plugin.Piece`) lies in a file before the server is told of it, and if there is no room for it,
or the server wants no more, the block goes on without.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from nnsight.plugin import Pieces, encode_message


class PieceWriter:
    """Writes pieces into a file.

    Args:
        file: where they go, one after the other.
        told: a pipe, which gets the size of each piece in a line of its own, behind a `!` if it could not be written.
    """

    def __init__(self, file: int, told: int) -> None:
        self._file = file
        self._told = told
        self._over = False
        self._pieces = Pieces()

    def look(self, values: Mapping[str, Any]) -> None:
        """Hand over what is new. Raises WireError for a value that cannot travel."""
        for piece in self._pieces.look(values):
            if self._over:
                return
            self._hand_over(*piece)

    def _hand_over(self, name: str, at: tuple[Any, ...], value: Any) -> None:
        called = f"`{name}`" + "".join(f"[{key!r}]" for key in at)
        data = encode_message("value", {"name": name, "at": at, "value": value}, called)
        said = b"%d\n"
        try:
            _write(self._file, data)
        except OSError:  # no room: the server knows whose limit that is, and tells
            said, self._over = b"!%d\n", True
        try:
            _write(self._told, said % len(data))
        except OSError:  # the server wants no more
            self._over = True


def _write(file: int, data: bytes) -> None:
    left = memoryview(data)
    while left:
        left = left[os.write(file, left) :]
