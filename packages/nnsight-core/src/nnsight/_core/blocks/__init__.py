"""Blocks that cannot run where they stand: found, skipped, compiled, run later, and their names put back.

Most blocks run inline and need nothing of this. Read in this order: `heads` (is this call a `with` head?), `find` and
`lines` (its text), `bindings`, `escapes` and `rewrite` (what it means elsewhere), `body` (compiled and run), `names`
(what it sees), `scope` (the caller's frame), `skip` (leaving it out where it stands), `tracebacks` (showing the
user's lines only).

    class Captured:
        def __enter__(self):
            self.frame = sys._getframe(1)
            self.body = capture(self.frame)
            skip(self.frame)

        def __exit__(self, kind, error, traceback):
            if not skipped(error):
                return False
            names = self.body.names()
            self.body.run(names)
            write_back(self.frame, names)
            return True
"""

from __future__ import annotations

from .body import Block, Body, block_of, capture
from .find import Found, find_with
from .heads import is_with_head
from .names import Names
from .scope import is_namespace, snapshot, write_back
from .skip import Skipped, skip, skipped
from .tracebacks import captured_frame, fold

__all__ = [
    "Block",
    "Body",
    "Found",
    "Names",
    "Skipped",
    "block_of",
    "capture",
    "captured_frame",
    "find_with",
    "fold",
    "is_namespace",
    "is_with_head",
    "skip",
    "skipped",
    "snapshot",
    "write_back",
]
