"""A contender as the table sees it: a process of its own, asked over a pipe."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

from rows import Row

#: glibc gives large pieces of memory back to the kernel at once, and fresh pages cost more than what is timed here; which
#: case meets them is chance. With this a process keeps what it had. Other C libraries ignore it.
_KEEP_MEMORY = {"MALLOC_TRIM_THRESHOLD_": "1073741824", "MALLOC_MMAP_THRESHOLD_": "1073741824"}


class ContenderError(Exception):
    """A contender failed at a row; the message is its traceback."""


class Contender:
    """One process that times one contender.

    Args:
        name: "ours", "peer", "pyvene" or "TransformerLens".
        python: the interpreter that has it installed.
    """

    def __init__(self, name: str, python: str) -> None:
        self.name = name
        self.process = subprocess.Popen(
            [python, str(Path(__file__).with_name("worker.py")), name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **_KEEP_MEMORY},
        )

    def _ask(self, **request: Any) -> dict[str, float]:
        assert self.process.stdin is not None and self.process.stdout is not None
        print(json.dumps(request), file=self.process.stdin, flush=True)
        line = self.process.stdout.readline()
        if not line:
            raise ContenderError(f"{self.name} ended with status {self.process.wait()}")
        answer = json.loads(line)
        if "error" in answer:
            raise ContenderError(answer["error"])
        times: dict[str, float] = answer["times"]
        return times

    def prepare(self, row: Row, checked: bool = True) -> dict[str, float]:
        """Build a row's cases and return its times, roughly, as `measure` does; empty if this contender cannot do it."""
        return self._ask(do="prepare", work=row.work, model=row.model, count=row.count, checked=checked, slow=row.slow)

    def measure(self, repetitions: int) -> dict[str, float]:
        """Time one round of the row: the bare forward, and what each other case adds to it, in microseconds."""
        return self._ask(do="measure", repetitions=repetitions)

    def close(self) -> None:
        """Let the process end."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()
