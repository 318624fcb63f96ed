"""Which files a confined process can open: those of the installed code, to read them, and no others.

The one idea: Landlock, which any process may use on itself. Files that are open already stay usable, so a worker is given
its request and its result as open files, and needs no folder of the server at all. The numbers are the kernel's
(`linux/landlock.h`); the C library has no functions for them.
"""

from __future__ import annotations

import ctypes
import os
import site
import struct
import sys
import sysconfig
from collections.abc import Iterable
from pathlib import Path

_CREATE, _ADD_RULE, _RESTRICT = 444, 445, 446  # system calls, the same on all architectures
_SET_NO_NEW_PRIVS = 38
_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR, _IOCTL_DEV = 1 << 0, 1 << 1, 1 << 2, 1 << 3, 1 << 15
#: How many kinds of access to files each version of Landlock knows: 13 at first, then linking, truncating, devices.
_KINDS = {1: 13, 2: 14, 3: 15, 4: 15}
_NETWORK = 0b11  # to bind, to connect: from version 4 on
_SCOPES = 0b11  # abstract sockets, signals: from version 6 on

_libc = ctypes.CDLL(None, use_errno=True)


def landlock_version() -> int:
    """Which Landlock the kernel has; 0 for none."""
    if sys.platform != "linux":
        return 0
    return max(0, _libc.syscall(_CREATE, None, ctypes.c_size_t(0), ctypes.c_uint32(1)))


def code_folders() -> list[Path]:
    """Where code that can be imported lies, and the libraries that it loads."""
    known = [sys.prefix, sys.base_prefix, *sysconfig.get_paths().values(), *site.getsitepackages(), *sys.path]
    system = ["/usr", "/lib", "/lib64", "/etc/ld.so.cache", "/dev/null", "/dev/urandom"]
    # Kernels of torch ask what the processor can do when the first of them runs, and fail if they are not told.
    processor = ["/proc/cpuinfo", "/sys/devices/system/cpu"]
    # An empty entry of the path, or the folder that the server was started in, is no place of installed code.
    here = os.getcwd()
    return [
        Path(name)
        for name in dict.fromkeys([*known, *system, *processor])
        if name and os.path.realpath(name) not in (here, "/")
    ]


class FileRules:
    """The files that a process may open: installed code, and `readable`, to read them.

    Made once and applied in every process that is forked from this one. With `devices`, accelerators stay usable.
    """

    def __init__(self, readable: Iterable[Path], *, devices: bool) -> None:
        version = landlock_version()
        kinds = (1 << _KINDS.get(version, 16)) - 1
        fields = [kinds, *([_NETWORK] if version >= 4 else []), *([_SCOPES] if version >= 6 else [])]
        attributes = struct.pack(f"={len(fields)}Q", *fields)
        rules = _libc.syscall(_CREATE, attributes, ctypes.c_size_t(len(attributes)), ctypes.c_uint32(0))
        self._rules = _checked(rules)
        for path in [*code_folders(), *readable]:
            self._allow(path, (_READ_FILE | _READ_DIR) & kinds)
        self._allow(Path("/dev/null"), (_READ_FILE | _WRITE_FILE) & kinds)
        if devices:
            for path in [*Path("/dev").glob("nvidia*"), Path("/dev/dri"), Path("/dev/kfd")]:
                self._allow(path, (_READ_FILE | _READ_DIR | _WRITE_FILE | _IOCTL_DEV) & kinds)
            for path in (Path("/proc/driver"), Path("/sys")):
                self._allow(path, (_READ_FILE | _READ_DIR) & kinds)

    def apply(self) -> None:
        """Refuse this process every other file, for good."""
        _checked(_libc.prctl(_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
        _checked(_libc.syscall(_RESTRICT, ctypes.c_int(self._rules), ctypes.c_uint32(0)))
        # The rules are shared with the process that this one was forked from: a block that has them could add to them,
        # and so to what the next block may do.
        os.close(self._rules)

    def _allow(self, path: Path, access: int) -> None:
        try:
            place = os.open(path, os.O_PATH | os.O_CLOEXEC)
        except OSError:
            return  # what is not there needs no leave
        try:
            if not path.is_dir():
                access &= _READ_FILE | _WRITE_FILE | _EXECUTE | _IOCTL_DEV
            rule = struct.pack("=Qi", access, place)
            _checked(_libc.syscall(_ADD_RULE, ctypes.c_int(self._rules), ctypes.c_int(1), rule, ctypes.c_uint32(0)))
        finally:
            os.close(place)


def _checked(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"Landlock: {os.strerror(number)}")
    return result
