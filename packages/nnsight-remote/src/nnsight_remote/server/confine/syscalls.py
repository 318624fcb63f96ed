"""Which system calls a confined process has lost: those that reach the network, another process, or the kernel's insides.

The one idea: a filter (seccomp) of a few dozen instructions, built here, that refuses what is listed with EPERM and lets
the rest pass. A list of what is allowed would be stricter, and would break with the next release of torch or of the
C library; so this stops what is known to reach out of the process, and no more. Files are `files.py`'s business.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
import sys

_SET_NO_NEW_PRIVS, _SECCOMP_GET = 38, 21
_FILTER_ALL_THREADS = 1
_ALLOW, _KILL, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000

#: Name of the call, its number on x86-64 and on aarch64 (None: it is not there).
_REFUSED: dict[str, tuple[int, int | None]] = {
    # the network, and sockets of any kind
    "socket": (41, 198),
    "socketpair": (53, 199),
    # rings of requests to the kernel would go around this filter
    "io_uring_setup": (425, 425),
    # other programs and other processes
    "execve": (59, 221),
    "execveat": (322, 281),
    "fork": (57, None),
    "vfork": (58, None),
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "kill": (62, 129),
    "tkill": (200, 130),
    "rt_sigqueueinfo": (129, 138),
    "rt_tgsigqueueinfo": (297, 240),
    "pidfd_send_signal": (424, 424),
    "pidfd_open": (434, 434),
    "pidfd_getfd": (438, 438),
    "process_madvise": (440, 440),
    "kcmp": (312, 272),
    "move_pages": (279, 239),
    "migrate_pages": (256, 238),
    # being somebody else, which also undoes that a process ends with its parent
    "setuid": (105, 146),
    "setgid": (106, 144),
    "setreuid": (113, 145),
    "setregid": (114, 143),
    "setresuid": (117, 147),
    "setresgid": (119, 149),
    "setfsuid": (122, 151),
    "setfsgid": (123, 152),
    "setgroups": (116, 159),
    "capset": (126, 91),
    # being first in the queue for the processor or the disk
    "setpriority": (141, 140),
    "sched_setparam": (142, 118),
    "sched_setscheduler": (144, 119),
    "sched_setattr": (314, 274),
    "ioprio_set": (251, 30),
    # memory and messages that are not counted as the process's own
    "memfd_create": (319, 279),
    "shmget": (29, 194),
    "msgget": (68, 186),
    "semget": (64, 190),
    "mq_open": (240, 180),
    # whose a file is and who may do what with it, which Landlock does not look at
    "chmod": (90, None),
    "fchmod": (91, 52),
    "fchmodat": (268, 53),
    "fchmodat2": (452, 452),
    "chown": (92, None),
    "fchown": (93, 55),
    "lchown": (94, None),
    "fchownat": (260, 54),
    "utime": (132, None),
    "utimes": (235, None),
    "utimensat": (280, 88),
    "futimesat": (261, None),
    "setxattr": (188, 5),
    "lsetxattr": (189, 6),
    "fsetxattr": (190, 7),
    "removexattr": (197, 14),
    "lremovexattr": (198, 15),
    "fremovexattr": (199, 16),
    "open_by_handle_at": (304, 265),
    # another view of the machine
    "unshare": (272, 97),
    "setns": (308, 268),
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "mount_setattr": (442, 442),
    "move_mount": (429, 429),
    "open_tree": (428, 428),
    "fsopen": (430, 430),
    "personality": (135, 92),
    # the kernel's insides
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "fanotify_init": (300, 262),
    "quotactl": (179, 60),
    "acct": (163, 89),
    "syslog": (103, 116),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "delete_module": (176, 106),
    "kexec_load": (246, 104),
    "kexec_file_load": (320, 294),
    "reboot": (169, 142),
    "swapon": (167, 224),
    "swapoff": (168, 225),
    "settimeofday": (164, 170),
    "clock_settime": (227, 112),
    "adjtimex": (159, 171),
    "clock_adjtime": (305, 266),
    "sethostname": (170, 161),
    "setdomainname": (171, 162),
    "vhangup": (153, 58),
    "iopl": (172, None),
    "ioperm": (173, None),
    "modify_ldt": (154, None),
}
_LIMITS = {"setrlimit": (160, 164)}
_CLONE, _CLONE3, _TGKILL, _PRLIMIT, _PRCTL = (56, 220), (435, 435), (234, 131), (302, 261), (157, 167)
_PDEATHSIG = 1
_SECCOMP = (317, 277)
_CLONE_THREAD = 0x10000
#: Machine -> which column above, and what the kernel calls the architecture.
_MACHINES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}

_libc = ctypes.CDLL(None, use_errno=True)


def seccomp_problem() -> str:
    """Why system calls cannot be filtered here; empty if they can."""
    if sys.platform != "linux":
        return f"system calls can be filtered on Linux only, and this is {sys.platform}"
    if platform.machine() not in _MACHINES:
        return f"the numbers of system calls are not known for {platform.machine()}"
    if _libc.prctl(_SECCOMP_GET, 0, 0, 0, 0) < 0:
        return "the kernel was built without seccomp"
    return ""


def restrict_syscalls(*, limits_are_final: bool) -> None:
    """Take the calls above from this process, and all but the making of threads from `clone`; for good."""
    program = _program(limits_are_final)
    count = len(program) // 8
    buffer = ctypes.create_string_buffer(program, len(program))
    filter_ = struct.pack("=H6xQ", count, ctypes.addressof(buffer))
    if _libc.prctl(_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0:
        raise OSError(ctypes.get_errno(), "no_new_privs is refused")
    call = _SECCOMP[_MACHINES[platform.machine()][0]]
    done = _libc.syscall(call, ctypes.c_uint(1), ctypes.c_uint(_FILTER_ALL_THREADS), filter_)
    if done:
        number = ctypes.get_errno()
        raise OSError(number, f"seccomp: {os.strerror(number)}")


def _program(limits_are_final: bool) -> bytes:
    """The filter: for each call in turn, a comparison and the answer; then leave for the rest."""
    column, architecture = _MACHINES[platform.machine()]
    refuse = _ERRNO | errno.EPERM
    code = [
        _load(4),
        *_unless_equal(architecture, 1),
        _answer(_KILL),
        _load(0),
        # x86-64 has a second set of numbers for the same calls.
        _jump(0x35, 0x40000000, 0, 1),
        _answer(refuse),
    ]
    for numbers in [*_REFUSED.values(), *(_LIMITS.values() if limits_are_final else ())]:
        if numbers[column] is not None:
            code += [_jump(0x15, numbers[column], 0, 1), _answer(refuse)]
    # The C library tries `clone3` first, whose flags a filter cannot see, and then `clone`.
    code += [_jump(0x15, _CLONE3[column], 0, 1), _answer(_ERRNO | errno.ENOSYS)]
    code += [_jump(0x15, _CLONE[column], 0, 4), _load(16), _jump(0x45, _CLONE_THREAD, 1, 0), _answer(refuse)]
    code += [_answer(_ALLOW)]
    # A process may signal itself: this is how it aborts.
    code += [_jump(0x15, _TGKILL[column], 0, 4), _load(16), _jump(0x15, os.getpid(), 1, 0), _answer(refuse)]
    code += [_answer(_ALLOW)]
    # It ends with its parent, and cannot change that.
    code += [_jump(0x15, _PRCTL[column], 0, 4), _load(16), _jump(0x15, _PDEATHSIG, 0, 1), _answer(refuse)]
    code += [_answer(_ALLOW)]
    if limits_are_final:  # to ask for a limit gives no pointer to a new one
        code += [_jump(0x15, _PRLIMIT[column], 0, 5), _load(32), _jump(0x15, 0, 0, 2), _load(36)]
        code += [_jump(0x15, 0, 1, 0), _answer(refuse)]
    return b"".join([*code, _answer(_ALLOW)])


def _load(offset: int) -> bytes:
    """Take a word of what the filter is shown: 0 the call, 4 the architecture, 16 and on its arguments."""
    return struct.pack("=HBBI", 0x20, 0, 0, offset)


def _jump(kind: int, value: int | None, then: int, otherwise: int) -> bytes:
    """Compare (0x15 equal, 0x35 at least, 0x45 has bits) and skip so many instructions."""
    return struct.pack("=HBBI", kind, then, otherwise, value)


def _unless_equal(value: int, skipped: int) -> list[bytes]:
    return [_jump(0x15, value, skipped, 0)]


def _answer(value: int) -> bytes:
    return struct.pack("=HBBI", 0x06, 0, 0, value)
