"""`Watch`: what a server's processes take of the machine, sampled while it works. Linux only: it reads /proc."""

from __future__ import annotations

import os
import sqlite3
import threading
from dataclasses import dataclass
from pathlib import Path
from statistics import median

_EVERY_SECONDS = 0.2
_PAGE_MIB = os.sysconf("SC_PAGE_SIZE") / (1 << 20)


@dataclass(frozen=True)
class Sample:
    """What was seen at one moment: how many jobs were finished; MiB of the server and of the model's process; open files
    and threads of the server."""

    finished: int
    server: float
    host: float
    files: int
    threads: int


class Watch:
    """Samples a server from the start of a `with` to its end."""

    def __init__(self, pid: int, store: Path) -> None:
        self.samples: list[Sample] = []
        self._server = Path(f"/proc/{pid}")
        self._database = store / "jobs.sqlite"
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._work)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._thread.join()

    def most(self, what: str) -> float:
        """Return the largest number of a column."""
        return max(getattr(sample, what) for sample in self.samples)

    def growth(self, what: str, after: int) -> tuple[float, float, int]:
        """Return MiB early, MiB at the end, and how many jobs lie between; the first `after` jobs do not count."""
        counted = [sample for sample in self.samples if sample.finished >= after]
        part = max(1, len(counted) // 5)
        early, late = counted[:part], counted[-part:]
        between = median(sample.finished for sample in late) - median(sample.finished for sample in early)
        return (*(median(getattr(sample, what) for sample in some) for some in (early, late)), round(between))

    def _work(self) -> None:
        reading = sqlite3.connect(f"file:{self._database}?mode=ro", uri=True)
        while not self._over.wait(_EVERY_SECONDS):
            (finished,) = reading.execute("select count(*) from jobs where finished is not null").fetchone()
            host = self._host()
            self.samples.append(
                Sample(
                    finished,
                    _resident(self._server),
                    _resident(host) if host else 0.0,
                    len(list((self._server / "fd").iterdir())),
                    len(list((self._server / "task").iterdir())),
                )
            )
        reading.close()

    def _host(self) -> Path | None:
        pids = [pid for task in (self._server / "task").iterdir() for pid in (task / "children").read_text().split()]
        return Path(f"/proc/{pids[0]}") if pids else None


def _resident(process: Path) -> float:
    return int((process / "statm").read_text().split()[1]) * _PAGE_MIB
