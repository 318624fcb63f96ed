"""Switching between the model and a body: the only file that imports greenlet.

One idea: every greenlet is entered through a native frame that has no unwind information. When torch raises, it walks
the C++ stack; past a greenlet's first frame the stack holds another greenlet's bytes, and an unwinder that reads them
crashes the process. libgcc's unwinder stops cleanly at a return address it knows nothing about, so a few bytes of our
own machine code between greenlet and Python end every walk in time. Nothing process-wide is patched.

What thread-local state each side keeps for itself is here too; who waits for whom is in `interleaver.py`.
"""

from __future__ import annotations

import contextvars
import ctypes
import functools
import mmap
import platform
import struct
import sys
import threading
import warnings
from collections import deque
from collections.abc import Callable
from sys import gettrace
from types import FunctionType, MethodType
from typing import Any

import torch
from greenlet import GreenletExit, getcurrent, greenlet

from .errors import NNsightWarning

__all__ = [
    "Greenlet",
    "GreenletExit",
    "ThreadState",
    "Worker",
    "adopt",
    "getcurrent",
    "gettrace",
    "hop",
    "spawn",
    "turn",
]

Greenlet = greenlet

_PROT_READ_EXEC = 0x1 | 0x4


def _machine_code(target: int) -> bytes | None:
    """Return `return PyObject_CallNoArgs(argument)` for this processor, or None where we have not written it."""
    machine = platform.machine().lower()
    if machine in ("x86_64", "amd64"):
        # push rbp; mov rbp, rsp; mov rax, target; call rax; pop rbp; ret
        return b"\x55\x48\x89\xe5\x48\xb8" + struct.pack("<Q", target) + b"\xff\xd0\x5d\xc3"
    if machine in ("aarch64", "arm64"):
        # stp x29, x30, [sp, #-16]!; mov x29, sp; ldr x16, <target>; blr x16; ldp x29, x30, [sp], #16; ret; nop; <target>
        words = (0xA9BF7BFD, 0x910003FD, 0x580000B0, 0xD63F0200, 0xA8C17BFD, 0xD65F03C0, 0xD503201F)
        # The literal is read at the ldr plus 20 bytes, which is the word after the nop.
        return b"".join(struct.pack("<I", word) for word in words) + struct.pack("<Q", target)
    return None


def _map_first_frame() -> Callable[[Callable[[], Any]], Any] | None:
    """Map the native first frame: written first, made executable after, never both at once."""
    if sys.platform == "win32":
        # Windows unwinds by tables that it checks itself; torch does not walk past them there.
        return lambda function: function()
    target = ctypes.cast(ctypes.pythonapi.PyObject_CallNoArgs, ctypes.c_void_p).value
    code = _machine_code(target) if target else None
    if code is None:
        return None
    try:
        page = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE)
        page.write(code)
        address = ctypes.addressof(ctypes.c_char.from_buffer(page))
        libc = ctypes.CDLL(None, use_errno=True)
        refused = libc.mprotect(ctypes.c_void_p(address), ctypes.c_size_t(mmap.PAGESIZE), _PROT_READ_EXEC)
    except (OSError, ValueError, AttributeError):
        return None
    if refused:
        return None
    _pages.append(page)
    return ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.py_object)(address)


_pages: list[mmap.mmap] = []  # the mapping lives as long as the process
_first_frame = _map_first_frame()


@functools.cache
def _warn_unprotected() -> None:
    warnings.warn(
        "This system refuses executable memory, so nnsight cannot shield its greenlets from torch's C++ stack walks: "
        "an error raised by torch inside a traced model may end the process. Everything else works.",
        NNsightWarning,
        stacklevel=4,
    )


class Worker(greenlet):
    """A greenlet that does one job after another, and returns to the job's home after each.

    A greenlet's first start costs more than everything else in a short run (the interpreter maps a stack for it), so
    workers that are done wait for the next job instead of ending. A job never raises: it records what went wrong.
    """

    job: Callable[[], Any] | None = None
    home: greenlet
    begun = False
    done = False
    #: The hook of `threading.settrace` that was asked for a tracer of this worker's own, and that tracer; see `hop`.
    traced: tuple[Any, Any] = (None, None)

    @property
    def standing(self) -> bool:
        """Say whether a job has begun and is not over."""
        return self.begun and not self.done


def _is_native(tracer: Any) -> bool:
    """Say whether a tracer is written in C: those install themselves past `sys.settrace`."""
    return tracer is not None and not isinstance(tracer, (FunctionType, MethodType))


class _Idle(threading.local):
    def __init__(self) -> None:
        self.workers: list[Worker] = []


_idle = _Idle()
_MOST_IDLE = 256


def _work(worker: Worker) -> None:
    idle = _idle.workers
    # A tracer that is there now has seen this frame begin and would wait for its end: here nothing may be called but C.
    unseen = sys.gettrace()
    while worker.job is not None:
        worker.begun = True
        tracer = sys.gettrace()
        if tracer is not None:
            hook = threading.gettrace()
            if hook is None:
                # Until 3.11 whether a greenlet is traced is decided when it starts, and this one may have before.
                sys.settrace(tracer)
            else:
                sys.settrace(None)
                if unseen is not None:
                    unseen(sys._getframe(), "return", None)
                    sys._getframe().f_trace = None
                known, mine = worker.traced
                if known != hook:
                    sys.settrace(hook)  # which installs a tracer at the first call
                else:
                    sys.settrace(mine)
                    if _is_native(mine):
                        frame = sys._getframe()
                        deque(map(mine, (frame, frame), ("call", "return"), (None, None)), maxlen=0)
                        del frame
        unseen = None
        worker.job()
        if tracer is not None and hook is not None:
            worker.traced = (hook, sys.gettrace())
            sys.settrace(None)
        worker.job = None
        worker.done = True
        worker.gr_context = None
        if len(idle) >= _MOST_IDLE:
            return
        idle.append(worker)
        worker.home.switch()


def hop(switch: Callable[[], Any]) -> Any:
    """Switch while tracing is on, and put our own tracer back afterwards.

    A tracer for which `threading.settrace` was told how to make others (coverage's) keeps a stack of the calls that it
    has seen, so each worker gets one of its own as if it were a thread: a switch in between would confuse the stack.
    Nothing may be called between the change of tracers and the switch. Debuggers have no such stack and see both sides.
    """
    if threading.gettrace() is None:
        return switch()
    mine: Any = sys.gettrace()
    try:
        return switch()
    finally:
        if sys.gettrace() is not mine:
            sys.settrace(mine)
            if _is_native(mine):
                # Written in C, it sees frames that are there already once it has installed itself, at a "call".
                frame = sys._getframe()
                deque(map(mine, (frame, frame), ("call", "return"), (None, None)), maxlen=0)
                del frame


def spawn(function: Callable[[], Any], home: greenlet, context: contextvars.Context) -> Worker:
    """Return a worker that will run `function` in `context` and then return to `home`; it is not started."""
    workers = _idle.workers
    if workers:
        worker = workers.pop()
    elif _first_frame is None:
        _warn_unprotected()
        worker = Worker()
        worker.run = functools.partial(_work, worker)
    else:
        worker = Worker()
        worker.run = functools.partial(_first_frame, functools.partial(_work, worker))
    worker.job = function
    worker.begun = worker.done = False
    worker.home = worker.parent = home
    worker.gr_context = context
    return worker


def adopt(side: Worker) -> bool:
    """Let `side` return to the current greenlet when it is done. False if only another thread can resume it."""
    current = getcurrent()
    try:
        side.parent = current
    except ValueError:  # greenlet's word for a parent on a different thread
        return False
    side.home = current
    return True


_grad_enabled = torch.is_grad_enabled
_set_grad: Callable[[bool], None] = torch._C._set_grad_enabled
# relies on: torch._C._is_any_autocast_enabled, torch 2.4 to 2.13 (one call instead of one per device)
_any_autocast: Callable[[], bool] = torch._C._is_any_autocast_enabled


def _autocast_devices() -> tuple[str, ...]:
    devices = ["cpu"]
    if torch.cuda.is_available():
        devices.append("cuda")
    if torch.backends.mps.is_available():
        devices.append("mps")
    return tuple(devices)


Autocast = tuple[tuple[str, bool, torch.dtype], ...]


def _read_autocast() -> Autocast:
    return tuple((d, torch.is_autocast_enabled(d), torch.get_autocast_dtype(d)) for d in _autocast_devices())


def _write_autocast(state: Autocast) -> None:
    for device, enabled, dtype in state:
        torch.set_autocast_enabled(device, enabled)
        torch.set_autocast_dtype(device, dtype)


class ThreadState:
    """The thread-local torch state of one side while the other side has its turn.

    Grad mode and autocast belong to the OS thread, which both sides share; only a difference costs anything. Inference
    mode is deliberately shared: a body must be inside it to edit the tensors that were made in it.
    """

    __slots__ = ("autocast", "grad")

    def __init__(self) -> None:
        self.grad: bool = _grad_enabled()
        self.autocast: Autocast | None = _read_autocast() if _any_autocast() else None

    def restore(self) -> None:
        """Put this state on the thread."""
        _set_grad(self.grad)
        if self.autocast is not None:
            _write_autocast(self.autocast)
        elif _any_autocast():
            _write_autocast(tuple((device, False, dtype) for device, _, dtype in _read_autocast()))

    def read(self) -> None:
        """Take the thread's state as this side's own."""
        self.grad = _grad_enabled()
        self.autocast = _read_autocast() if _any_autocast() else None


def turn(other: ThreadState, switch: Callable[[], Any]) -> Any:
    """Let the other side run until it switches back: `other` is its state, ours is put back afterwards."""
    if gettrace() is not None:
        switch = functools.partial(hop, switch)
    grad = _grad_enabled()
    if grad is other.grad and other.autocast is None and not _any_autocast():
        try:
            return switch()
        finally:
            now = other.grad = _grad_enabled()
            if now is not grad:
                _set_grad(grad)
            if _any_autocast():
                other.autocast = _read_autocast()
                _write_autocast(tuple((device, False, dtype) for device, _, dtype in other.autocast))
    mine = ThreadState()
    other.restore()
    try:
        return switch()
    finally:
        other.read()
        mine.restore()
