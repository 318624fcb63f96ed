"""Blocks on a real server: what comes back, what is printed, and what becomes of those that misbehave."""

from __future__ import annotations

import ctypes
import os
import socket
import sqlite3
import struct
import subprocess
import tempfile
import threading
from pathlib import Path

import pytest
import torch

import nnsight
from nnsight.plugin import encode_results

X = torch.linspace(-1, 1, 12).reshape(3, 4)


def alone(model):
    """What the model gives without any of this."""
    with torch.no_grad():
        return model._module(X)


def test_a_block_gives_what_it_gives_here(model, user):
    with model.trace(X, backend=user) as tracer:
        hidden = model.layers[1].output.save()
        model.layers[2].output = hidden * 2
        result = tracer.result.save()
    with model.trace(X) as tracer:
        here = model.layers[1].output
        model.layers[2].output = here * 2
        wanted = tracer.result
    assert torch.equal(hidden, here) and torch.equal(result, wanted)
    assert user.job["state"] == "completed" and user.job["result_bytes"] > 0


def test_what_a_block_prints_arrives_in_order(model, user):
    with model.trace(X, backend=user):
        print("first")
        model.output.save()
        print("sécond", end="")
    assert user.printed(user.job["id"]) == "first\nsécond"
    kinds = [(event["kind"], event["text"]) for event in user.follow(user.job["id"])]
    assert kinds[0] == ("state", "queued") and kinds[1] == ("state", "running") and kinds[-1] == ("state", "completed")


def test_an_error_of_a_block_comes_back_as_itself(model, user):
    with pytest.raises(ZeroDivisionError, match="division by zero"):
        with model.trace(X, backend=user):
            model.output.save()
            1 / 0
    failure = user.job["failure"]
    assert (failure["reason"], failure["type"]) == ("error", "ZeroDivisionError")
    assert "1 / 0" in failure["traceback"] and "worker.py" not in failure["traceback"]


def test_a_weight_that_a_block_sets_to_zero_is_there_for_the_next(model, user):
    with model.trace(X, backend=user):
        model._module.head.weight.data.zero_()
        spoilt = model.output.save()
    with model.trace(X, backend=user):
        result = model.output.save()
    assert not torch.equal(spoilt, alone(model)) and torch.equal(result, alone(model))


def test_two_jobs_draw_different_numbers(model, user):
    drawn = []
    for _ in range(2):
        with model.trace(X, backend=user):
            model.output
            number = torch.rand(4).save()
        drawn.append(number)
    assert not torch.equal(*drawn)


def ended(server, user, encoded, **limits):
    """Send what was encoded, and return the job at its end; the server must be as good as before."""
    restarts = hosts(server)
    job = user.wait(user.submit(encoded.data)["id"])
    assert hosts(server) == restarts, "the model had to be loaded again"
    return job


def hosts(server):
    """Which process holds the model."""
    pid = server.process.pid
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


def test_a_block_that_never_ends_is_ended_at_its_limit(model, server, encoded, request):
    user = server.user(request.node.name, run_seconds=1)
    with model.trace(X, backend=encoded):
        model.output
        while True:
            pass
    job = ended(server, user, encoded)
    assert job["failure"]["reason"] == "time" and "1 s" in job["failure"]["message"]
    assert job["finished"] - job["started"] < 10


def test_a_process_that_ends_itself_is_one_job_that_failed(model, server, user, encoded):
    with model.trace(X, backend=encoded):
        model.output
        os._exit(3)
    failure = ended(server, user, encoded)["failure"]
    assert failure["reason"] == "crash" and "status 3" in failure["message"]


def test_a_process_that_crashes_is_one_job_that_failed(model, server, user, encoded):
    with model.trace(X, backend=encoded):
        import ctypes

        ctypes.string_at(0)
    failure = ended(server, user, encoded)["failure"]
    assert failure["reason"] == "crash" and "SIGSEGV" in failure["message"]


@pytest.mark.parametrize("hog", ["torch", "python"])
def test_a_block_that_takes_all_memory_gets_an_error(model, server, user, encoded, hog):
    with model.trace(X, backend=encoded):
        kept = []
        while True:
            kept.append(torch.ones(1 << 22) if hog == "torch" else bytearray(1 << 24))
    job = ended(server, user, encoded)
    assert job["failure"]["reason"] == "memory" and str(512 << 20) in job["failure"]["message"]
    assert job["failure"]["encoded"]
    with pytest.raises((MemoryError, RuntimeError)):
        user.result(job["id"])


def test_a_block_that_prints_a_gigabyte_keeps_what_it_may(model, server, encoded, request):
    user = server.user(request.node.name, log_bytes=100_000)
    with model.trace(X, backend=encoded):
        line = "x" * (1 << 20)
        for _ in range(1 << 10):
            print(line)
        done = nnsight.save("done")
    job = ended(server, user, encoded)
    assert user.result(job["id"]) == {"done": "done"}
    printed = user.printed(job["id"])
    assert printed.startswith("x" * 100_000) and "100000 bytes" in printed and len(printed) < 101_000


def test_a_result_that_is_too_large_is_refused_with_its_size(model, server, encoded, request):
    user = server.user(request.node.name, result_bytes=100_000)
    with model.trace(X, backend=encoded):
        large = torch.zeros(1 << 20).save()
    job = ended(server, user, encoded)
    assert job["failure"]["reason"] == "result" and str(4 << 20)[:3] in job["failure"]["message"]
    assert job["result_bytes"] == 0 and user.http.get(f"/jobs/{job['id']}/result").status_code == 409


def test_a_running_job_is_cancelled_at_once(server, user, endless):
    before = hosts(server)
    job = user.begin(endless)
    user.http.delete(f"/jobs/{job}")
    assert user.wait(job)["state"] == "cancelled"
    assert hosts(server) == before


def refused(result):
    """What a call of the C library has to say."""
    if result < 0:
        raise PermissionError(ctypes.get_errno(), "refused")


def libc():
    return ctypes.CDLL(None, use_errno=True)


OUTSIDE = os.path.join(tempfile.gettempdir(), "nnsight-server-test")
REACHES_OUT = {
    "write": lambda: open(OUTSIDE, "w"),
    "read the passwords": lambda: open("/etc/passwd").read(),
    "read the environment of the server": lambda: open(f"/proc/{os.getppid()}/environ", "rb").read(),
    "list the root": lambda: os.listdir("/"),
    "make a folder": lambda: os.mkdir(OUTSIDE),
    "remove a file": lambda: os.remove("/usr/bin/env"),
    "rename": lambda: os.rename("/usr/bin/env", "/usr/bin/vne"),
    "change a mode": lambda: os.chmod("/usr/bin/env", 0o777),
    "open a socket": lambda: socket.socket(),
    "connect over a pair": lambda: socket.socketpair(),
    "fork": lambda: os.fork(),
    "run a program": lambda: subprocess.run(["true"]),
    "kill its parent": lambda: os.kill(os.getppid(), 0),
    "be somebody else": lambda: os.setuid(65534),
    "outlive its parent": lambda: refused(libc().prctl(1, 0, 0, 0, 0)),
    "read the memory of its parent": lambda: refused(libc().ptrace(16, os.getppid(), 0, 0)),
    "have memory that nobody counts": lambda: refused(libc().memfd_create(b"x", 0)),
    "go first": lambda: os.setpriority(os.PRIO_PROCESS, 0, -1),
    "raise its limits": lambda: __import__("resource").prlimit(0, 0, (1, 1)),
}


@pytest.mark.parametrize("what", REACHES_OUT)
def test_the_kernel_keeps_a_block_from_reaching_out(model, server, user, encoded, what):
    with model.trace(X, backend=encoded):
        REACHES_OUT[what]()
    job = ended(server, user, encoded)
    assert (job["failure"]["reason"], job["failure"]["type"]) == ("error", "PermissionError"), job["failure"]


def test_a_block_cannot_widen_what_the_next_may_do(model, user, encoded):
    with model.trace(X, backend=user):
        root = os.open("/", os.O_PATH)  # this opens nothing that could be read
        rule = struct.pack("=Qi", 0b1100, root)  # to read all files and folders
        added = nnsight.save([fd for fd in range(64) if libc().syscall(445, fd, 1, rule, 0) == 0])
    assert added == []
    with pytest.raises(PermissionError):
        with model.trace(X, backend=user):
            open("/etc/passwd")


def test_a_text_that_no_answer_can_hold_is_told_all_the_same(model, user, encoded):
    with model.trace(X, backend=encoded):
        raise ValueError("half a pair: \ud800")
    job = user.wait(user.submit(encoded.data)["id"])
    assert job["failure"]["message"] == "half a pair: ?"
    with pytest.raises(ValueError, match="half a pair"):
        user.result(job["id"])


def test_a_block_starts_threads_as_it_likes(model, user):
    with model.trace(X, backend=user):
        seen = nnsight.save([])
        thread = threading.Thread(target=lambda: seen.append("from a thread"))
        thread.start()
        thread.join()
    assert seen == ["from a thread"]


def test_a_package_that_is_not_on_the_list_is_refused_by_name(model, user):
    with pytest.raises(ImportError, match="--allow-import sqlite3"):
        with model.trace(X, backend=user):
            import sqlite3  # noqa: F401
    assert user.job["failure"]["reason"] == "error"


def test_a_package_on_the_list_may_import_what_it_needs(model, user):
    with model.trace(X, backend=user):
        import torch.utils.data  # which has sockets and processes in its own imports

        size = nnsight.save(len(torch.utils.data.TensorDataset(X)))
    assert size == 3


def test_an_exception_that_was_made_before_is_raised_over_there(model, user):
    mine = LookupError("mine")  # sent as its class of `builtins`, and what it was made with
    with pytest.raises(LookupError) as caught, model.trace(X, backend=user):
        raise mine
    assert caught.value.args == mine.args


def test_pictures_may_be_sent(model, user):
    image = pytest.importorskip("PIL.Image").new("L", (3, 2), 7)
    with model.trace(X, backend=user):
        values = torch.tensor(list(image.getdata())).save()
    assert torch.equal(values, torch.full((6,), 7))


def test_secrets_of_the_server_are_not_in_the_environment_of_a_block(model, user):
    with model.trace(X, backend=user):
        names = nnsight.save(sorted(os.environ))
    assert "PATH" in names and not [name for name in names if "TOKEN" in name or "KEY" in name]


def test_jobs_of_two_users_take_turns(model, server, encoded, endless, request):
    greedy, late = (server.user(f"{request.node.name} {name}") for name in ("greedy", "late"))
    first = greedy.begin(endless)
    with model.trace(X, backend=encoded):
        model.output.save()
    jobs = [greedy.submit(encoded.data)["id"] for _ in range(4)]
    jobs.insert(1, late.submit(encoded.data)["id"])
    assert [(late if n == 1 else greedy).get(job)["position"] for n, job in enumerate(jobs)] == [0, 1, 2, 3, 4]
    greedy.http.delete(f"/jobs/{first}")
    finished = [(late if n == 1 else greedy).wait(job)["started"] for n, job in enumerate(jobs)]
    assert finished == sorted(finished)


def test_a_host_that_is_killed_costs_the_job_that_ran_and_no_other(model, server, user, encoded, endless):
    job = user.begin(endless)
    (host,) = hosts(server)
    with model.trace(X, backend=encoded):
        result = model.output.save()
    next_job = user.submit(encoded.data)["id"]
    os.kill(int(host), 9)
    failure = user.wait(job)["failure"]
    assert failure["reason"] == "host" and "SIGKILL" in failure["message"]
    assert user.wait(next_job)["state"] == "completed"
    assert torch.equal(user.result(next_job)["result"], alone(model))
    assert hosts(server) != [host]


def test_a_host_that_is_killed_while_it_is_idle_costs_no_job(model, server, user):
    with model.trace(X, backend=user):
        model.output.save()
    (host,) = hosts(server)
    os.kill(int(host), 9)
    with model.trace(X, backend=user):
        result = model.output.save()
    assert torch.equal(result, alone(model))


def test_a_message_that_is_no_request_is_refused_by_the_worker(user):
    job = user.wait(user.submit(encode_results({"a": 1}))["id"])
    assert job["failure"]["reason"] == "refused" and "request was expected" in job["failure"]["message"]


def test_a_request_that_needs_a_module_which_is_not_allowed_says_which(model, user, encoded):
    with model.trace(X, backend=encoded):
        model.output
        sqlite3.connect(":memory:")
    job = user.wait(user.submit(encoded.data)["id"])
    assert job["failure"]["reason"] == "refused" and "--allow-import sqlite3" in job["failure"]["message"]
