"""Least power: what is taken from a process before it runs a user's block.

The one idea: what the kernel enforces is protection, what Python enforces is advice. The kernel's part is `syscalls` (no
network, no other process, no signals to one, no limit raised), `files` (nothing written, only code read) and the limits
on memory and sizes set here; none of it can be undone by the process, and all of it needs no privilege. Python's part is
`imports`, which says no early and in words, and which a determined body gets around. The page *The server* says what
each of them stops, and what not.
"""

from __future__ import annotations

import resource
from dataclasses import dataclass
from pathlib import Path

from .files import FileRules, landlock_version
from .imports import ImportGuard
from .syscalls import restrict_syscalls, seccomp_problem


@dataclass(frozen=True)
class Confinement:
    """What a server allows beyond the least.

    Attributes:
        trusted: run blocks with all the power of the server's own user; only the limits on sizes remain.
        imports: packages that a block may import, beside those that are always allowed.
        readable: files and folders that a block may read, beside the code that is installed.
    """

    trusted: bool = False
    imports: tuple[str, ...] = ()
    readable: tuple[str, ...] = ()


def missing() -> str:
    """What this machine lacks to confine a process; empty if nothing is."""
    if problem := seccomp_problem():
        return problem
    if not landlock_version():
        return "the kernel offers no Landlock (Linux 5.13 or later, and not switched off)"
    return ""


class Walls:
    """What takes from a process all that a block does not need; made once, before processes are forked.

    Args:
        confinement: what the server allows.
        devices: whether what runs the model is a device that is opened as a file.
    """

    def __init__(self, confinement: Confinement, *, devices: bool) -> None:
        self._files: FileRules | None = None
        self._guard: ImportGuard | None = None
        if not confinement.trusted:
            self._files = FileRules([Path(path) for path in confinement.readable], devices=devices)
            self._guard = ImportGuard(confinement.imports)

    def close_in(self, *, limits_are_final: bool) -> ImportGuard | None:
        """Put them around this process, for good, and return what looks at a block's imports.

        `limits_are_final` if the limits of the kernel must never change again, as in a process for one block.
        """
        if self._files:
            self._files.apply()
            restrict_syscalls(limits_are_final=limits_are_final)
        return self._guard


def limit_sizes(memory_bytes: int | None, file_bytes: int, *, final: bool, pid: int = 0) -> None:
    """Let the kernel refuse a process, this one or another, more memory than this beyond what is in use, and larger files.

    A `final` limit cannot be raised again. What is above the limits raises MemoryError and OSError there.
    """
    _limit(pid, resource.RLIMIT_FSIZE, file_bytes, final)
    _limit(pid, resource.RLIMIT_CORE, 0, final)
    used = _address_space(pid)
    if memory_bytes is not None and used is not None:
        _limit(pid, resource.RLIMIT_AS, used + memory_bytes, final)


def lift_limits() -> None:
    """Undo `limit_sizes` for this process, where they were not final."""
    for kind in (resource.RLIMIT_FSIZE, resource.RLIMIT_AS):
        hard = resource.getrlimit(kind)[1]
        resource.setrlimit(kind, (hard, hard))


def _limit(pid: int, kind: int, amount: int, final: bool) -> None:
    hard = resource.getrlimit(kind)[1]
    if hard != resource.RLIM_INFINITY:
        amount = min(amount, hard)
    both = (amount, amount if final else hard)
    if pid:
        resource.prlimit(pid, kind, both)
    else:
        resource.setrlimit(kind, both)


def _address_space(pid: int) -> int | None:
    try:
        pages = int(Path(f"/proc/{pid or 'self'}/statm").read_text().split()[0])
    except (OSError, ValueError):
        return None  # no Linux: there the limit is not known to be kept either
    return pages * resource.getpagesize()
