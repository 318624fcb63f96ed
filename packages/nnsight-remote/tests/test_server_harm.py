"""Blocks that mean harm: what whoever sent one is told, and that nobody else notices."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
from pathlib import Path

import pytest
import torch

from nnsight import CONFIG
from nnsight.plugin import WireError
from nnsight_remote import JobError, RemoteBackend

X = torch.linspace(-1, 1, 12).reshape(3, 4)


def loops():
    while True:
        pass


def loops_in_the_kernel():
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    threading.Event().wait()


def ignores_all_signals_and_exceptions():
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        signal.signal(number, signal.SIG_IGN)
    while True:
        try:
            threading.Event().wait()
        except BaseException:
            pass


def stops_itself():
    signal.raise_signal(signal.SIGSTOP)


def leaves_threads_that_never_end():
    for _ in range(2):
        threading.Thread(target=loops).start()
    raise LookupError("the block is done, its threads are not")


def exits():
    os._exit(0)


def kills_itself():
    signal.raise_signal(signal.SIGKILL)


def aborts():
    ctypes.CDLL(None).abort()


def recurses_for_ever():
    return recurses_for_ever()


def recurses_without_limit():
    sys.setrecursionlimit(1 << 30)
    return ctypes.CFUNCTYPE(None)(recurses_without_limit)()


def allocates():
    kept = []
    while True:
        kept.append(bytearray(1 << 24))


def starts_threads_without_end():
    gate = threading.Event()
    while True:
        threading.Thread(target=gate.wait, daemon=True).start()


def opens_files_without_end():
    kept = []
    while True:
        kept.append(os.dup(0))


def forks_for_ever():
    while True:
        os.fork()


def signals_everybody():
    os.kill(-1, signal.SIGKILL)


def signals_its_group():
    os.kill(0, signal.SIGKILL)


def signals_the_process_of_the_model():
    os.kill(os.getppid(), signal.SIGKILL)


def removes_what_it_can():
    for folder in sys.path:
        for path in Path(folder).glob("*.py"):
            path.unlink()
    raise AssertionError("there was nothing that it could try")


def empties_its_own_result():
    for number in range(3, 64):
        try:
            os.ftruncate(number, 0)
        except OSError:
            pass
    os._exit(0)


def says_that_it_is_done():
    for number in range(3, 64):
        try:
            os.write(number, b'{"ok": true}\n')
        except OSError:
            pass
    os._exit(0)


def writes_rubbish_everywhere():
    for number in range(3, 64):
        try:
            os.write(number, b'{"ok": {"\xff\x00' * 1000)
        except OSError:
            pass
    os._exit(0)


def closes_everything():
    os.closerange(0, 1 << 10)
    loops()


def spoils_the_library():
    for name, module in list(sys.modules.items()):
        if name.startswith(("nnsight", "torch.", "json")):
            vars(module).clear()


#: What a block does, the error that its sender gets, and the reason if that is a `JobError`.
HARM = {
    loops: (JobError, "time"),
    loops_in_the_kernel: (JobError, "time"),
    ignores_all_signals_and_exceptions: (JobError, "time"),
    stops_itself: (JobError, "time"),
    closes_everything: (JobError, "time"),
    leaves_threads_that_never_end: (LookupError, ""),
    exits: (JobError, "crash"),
    kills_itself: (JobError, "crash"),
    aborts: (JobError, "crash"),
    recurses_for_ever: (RecursionError, ""),
    recurses_without_limit: (JobError, "crash"),
    allocates: (MemoryError, ""),
    starts_threads_without_end: (RuntimeError, ""),
    opens_files_without_end: (OSError, ""),
    forks_for_ever: (PermissionError, ""),
    signals_everybody: (PermissionError, ""),
    signals_its_group: (PermissionError, ""),
    signals_the_process_of_the_model: (PermissionError, ""),
    removes_what_it_can: (PermissionError, ""),
    empties_its_own_result: (JobError, "crash"),
    writes_rubbish_everywhere: (JobError, "crash"),
    says_that_it_is_done: (WireError, ""),
    spoils_the_library: (JobError, "crash"),
}


@pytest.mark.parametrize("harm", HARM, ids=lambda harm: harm.__name__.replace("_", " "))
def test_its_sender_is_told_and_nobody_else_notices(model, server, request, monkeypatch, harm):
    monkeypatch.setattr(CONFIG.APP, "REMOTE_LOGGING", False)
    expected, reason = HARM[harm]
    name = request.node.name[:90]
    bad = RemoteBackend(server.url, key=server.key(name, run_seconds=0.5 if reason == "time" else 30), blocking=False)
    good = RemoteBackend(server.url, key=server.key(f"beside {name}"), blocking=False)
    before = hosts(server)
    with model.trace(X, backend=bad) as job:
        model.output
        harm()
    with model.trace(X, backend=good) as beside:
        out = model.output.save()
    with pytest.raises(expected) as raised:
        job.result()
    assert getattr(raised.value, "reason", "") == reason
    assert torch.equal(beside.result()["out"], model(X))
    assert hosts(server) == before, "the model had to be loaded again"
    assert job.look().details["attempts"] == 1


def hosts(server):
    """Which process holds the model."""
    pid = server.process.pid
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
