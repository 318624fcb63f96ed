"""A server that stops, in whatever way: what was queued runs, what was finished can be fetched, what ran runs again, once."""

from __future__ import annotations

import os
import resource
import signal

import pytest
import torch
from serving import Client, Server

X = torch.ones(2, 4)


@pytest.fixture
def blocks(model, encoded, endless):
    """A quick block, and one that says that it runs and goes on for ever."""
    with model.trace(X, backend=encoded):
        result = model.output.save()
    return encoded.data, endless


def test_a_server_that_is_killed_loses_no_job(model, blocks, store_folder):
    quick, endless = blocks
    server = Server(store_folder).start()
    key = server.key("ada")
    user = Client(server.url, key)
    done = user.wait(user.submit(quick)["id"])["id"]
    running = user.begin(endless)
    (host,) = children(server)
    queued = [user.submit(quick)["id"] for _ in range(2)]
    server.kill()

    gone(host)  # nothing of the old server runs on
    with server.running():
        user = Client(server.url, key)
        with torch.no_grad():
            wanted = model._module(X)
        assert torch.equal(user.result(done)["result"], wanted)
        user.until(running, "log", "it runs")  # also what it printed the first time: nothing is forgotten
        while user.get(running)["state"] != "running":
            next(user.follow(running))
        assert user.get(running)["attempts"] == 2
        for job in queued:
            assert user.get(job)["state"] == "queued"
        server.kill()

        server.start()
        user = Client(server.url, key)
        failure = user.wait(running)["failure"]
        assert failure["reason"] == "restart" and "2 times" in failure["message"]
        for job in queued:
            assert user.wait(job)["state"] == "completed"
            assert torch.equal(user.result(job)["result"], wanted)


def test_a_server_that_is_asked_to_stop_counts_no_attempt(blocks, store_folder):
    quick, endless = blocks
    server = Server(store_folder).start()
    key = server.key("ada")
    user = Client(server.url, key)
    job = user.begin(endless)
    server.stop()
    assert server.process.returncode in (0, -signal.SIGTERM)
    assert "Traceback" not in server.logged()
    with server.running():
        user = Client(server.url, key)
        for event in user.follow(job):
            if event["text"] == "running" and event["number"] > 3:
                break
        assert user.get(job)["attempts"] == 1
        user.http.delete(f"/jobs/{job}")
        assert user.wait(job)["state"] == "cancelled"


def test_a_full_disk_is_said_and_loses_nothing(model, blocks, store_folder, encoded):
    quick, _ = blocks
    with model.trace(X, backend=encoded):
        large = torch.zeros(1 << 19).save()  # two megabytes, four times what a file may have

    def limit():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 19, 1 << 19))

    server = Server(store_folder, "--limit", "request_bytes=16M")
    server.start(limit=limit)
    try:
        user = server.user("ada")
        done = user.wait(user.submit(quick)["id"])["id"]
        answer = user.http.post("/request", content=b"x" * (1 << 20))
        assert (answer.status_code, answer.json()["reason"]) == (507, "storage"), answer.text
        assert len(list((store_folder / "requests").iterdir())) == 0
        failure = user.wait(user.submit(encoded.data)["id"])["failure"]
        assert failure["reason"] == "storage" and "could not write" in failure["message"]
        assert user.wait(user.submit(quick)["id"])["state"] == "completed"
        assert user.result(done)
    finally:
        server.stop()


def children(server):
    path = f"/proc/{server.process.pid}/task/{server.process.pid}/children"
    with open(path) as file:
        return [int(pid) for pid in file.read().split()]


def gone(pid):
    """Wait until a process has ended."""
    try:
        end = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    import select

    assert select.select([end], [], [], 30)[0], f"process {pid} is still there"
    os.close(end)


def test_a_model_that_was_added_is_offered_again_until_it_is_taken_off(store_folder, blocks):
    server = Server(store_folder, models=["first=served_models:unloadable"])
    with server.running():
        admin = Client(server.url, server.admin).http
        assert admin.delete("/models/first", params={"forget": True}).status_code == 409
        asked = {"name": "second", "source": "nowhere", "family": "NoSuchFamily", "options": {"depth": 2}}
        assert admin.post("/models", json=asked).json()["added"]
        server.kill()
    with server.running():
        admin = Client(server.url, server.admin, "second")
        first, second = admin.http.get("/models").json()
        assert (first["added"], second["added"], second["options"]) == (False, True, {"depth": 2})
        failure = admin.wait(admin.submit(blocks[0])["id"])["failure"]
        assert failure["reason"] == "model" and "NoSuchFamily" in failure["message"]
        assert admin.http.delete("/models/second", params={"forget": True}).json()["name"] == "second"
        assert admin.http.post("/request", content=blocks[0], headers={"nnsight-model": "second"}).status_code == 404
    with server.running():
        assert [view["name"] for view in Client(server.url, server.admin).http.get("/models").json()] == ["first"]
