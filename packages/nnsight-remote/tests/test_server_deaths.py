"""The server is killed at every point of a job's life: whoever waits for the job gets it all the same, once, and what was
finished before is still there."""

from __future__ import annotations

import json
import os
import resource
import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
import served_models
import torch
from cutting import proxy_to
from dying import POINTS, Dying
from serving import SECONDS, Client

from nnsight import CONFIG
from nnsight_remote import JobError, RemoteBackend

#: Large enough that a request and a result come in parts.
X = torch.linspace(-1, 1, 80_000).reshape(-1, 4)
#: The result of this comes with the events.
SMALL = {"when the result is about to come with the events": X[:100]}
#: Where it is killed while the store says that the job runs: there it is run again, once.
_NAMES = list(POINTS)
RUNS_TWICE = _NAMES[
    _NAMES.index("when the job is said to run and no host has it") : _NAMES.index(
        "when the end is written and nobody was told"
    )
]


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CONFIG.APP, "REMOTE_LOGGING", False)


class Replaced:
    """A server that is followed by others on the same store when it dies, in a thread beside the client."""

    def __init__(self, servers: Dying, store: Any, proxy: Any, *points: str) -> None:
        self.deaths = 0

        def replace() -> None:
            for point in points:
                servers.wait()
                self.deaths += 1
                proxy.lead_to(servers.start(store, point, store.with_name("flag")))

        self._thread = threading.Thread(target=replace)
        self._thread.start()

    def done(self) -> None:
        self._thread.join(SECONDS)
        assert not self._thread.is_alive()


def right(x: torch.Tensor) -> torch.Tensor:
    """What the model gives, worked out here."""
    with torch.no_grad():
        return served_models.mlp()._module(x)


@pytest.mark.parametrize("point", POINTS)
def test_a_job_outlives_a_server_that_is_killed(model, servers, tmp_path, capsys, point):
    store, flag, x = tmp_path / "store", tmp_path / "flag", SMALL.get(point, X)
    with proxy_to(servers.start(store, point, flag)) as proxy:
        with model.trace(x, remote=proxy.url, blocking=False) as earlier:
            out = model.output.save()
        earlier.wait(SECONDS)
        flag.touch()
        replaced = Replaced(servers, store, proxy, "")
        with model.trace(x * 2, remote=proxy.url):
            print("it runs")
            doubled = model.output.save()
        replaced.done()
        assert replaced.deaths == 1
        assert torch.equal(doubled, right(x * 2)) and torch.equal(earlier.result(SECONDS)["out"], right(x))

        job, finished_before = httpx.get(f"{proxy.url}/jobs").json()
        assert (finished_before["id"], finished_before["attempts"]) == (earlier.id, 1)
        assert (job["state"], job["attempts"]) == ("completed", 2 if point in RUNS_TWICE else 1)
        logged = [event["text"] for event in events(proxy.url, job["id"]) if event["kind"] == "log"]
        assert 1 <= logged.count("it runs\n") <= job["attempts"]
        assert capsys.readouterr().out == "".join(logged), "what is printed is heard of once"
        assert not list((store / "requests").iterdir()) and len(list((store / "results").iterdir())) == 2


def test_a_job_that_was_running_when_the_server_died_twice_is_not_run_a_third_time(model, servers, tmp_path):
    store, flag, point = tmp_path / "store", tmp_path / "flag", "when the job was handed to its host"
    flag.touch()
    with proxy_to(servers.start(store, point, flag)) as proxy:
        replaced = Replaced(servers, store, proxy, point, "")
        with pytest.raises(JobError, match="stopped 2 times") as raised, model.trace(X, remote=proxy.url):
            model.output.save()
        replaced.done()
        assert replaced.deaths == 2 and raised.value.reason == "restart"
        flag.unlink()
        with model.trace(X, remote=proxy.url):
            out = model.output.save()
        assert torch.equal(out, right(X))


def test_a_process_of_a_model_that_dies_while_it_loads_fails_its_own_jobs_only(model, servers, tmp_path):
    url = servers.start(tmp_path / "store", models=["mlp=served_models:mlp", "dying=served_models:dying"])
    with pytest.raises(JobError, match="SIGKILL.* while it loaded") as raised:
        with model.trace(X, backend=RemoteBackend(url, model="dying")):
            model.output.save()
    assert raised.value.reason == "model"
    with model.trace(X, backend=RemoteBackend(url, model="mlp")):
        out = model.output.save()
    assert torch.equal(out, right(X))


@pytest.fixture
def many_files(servers: Dying) -> Iterator[None]:
    """Let this process have many files open, and the server as few, at first, as a process usually may."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    if before[1] < 3000:
        pytest.skip(f"a process may have {before[1]} files open here at most")
    resource.setrlimit(resource.RLIMIT_NOFILE, (before[1], before[1]))
    theirs = resource.prlimit(servers.pid, resource.RLIMIT_NOFILE, (256, before[1]))
    yield
    resource.prlimit(servers.pid, resource.RLIMIT_NOFILE, theirs)
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_a_model_is_loaded_again_beside_a_thousand_connections(model, servers, tmp_path, many_files):
    url = servers.start(tmp_path / "store")
    with model.trace(X, remote=url):
        model.output.save()
    crowd = [socket.create_connection((urlsplit(url).hostname, urlsplit(url).port)) for _ in range(1200)]
    (server,) = children(servers.pid)
    (host,) = children(server)
    os.kill(host, signal.SIGKILL)
    with model.trace(X, remote=url):
        out = model.output.save()
    assert torch.equal(out, right(X)) and children(server) != [host]
    for one in crowd:
        one.close()


def test_a_server_that_may_open_no_more_files_says_when_to_come_again(model, servers, tmp_path, encoded):
    user = Client(servers.start(tmp_path / "store"))
    with model.trace(X[:2], backend=encoded):
        out = model.output.save()
    user.wait(user.submit(encoded.data)["id"])
    (server,) = children(servers.pid)
    before = resource.prlimit(server, resource.RLIMIT_NOFILE)
    resource.prlimit(server, resource.RLIMIT_NOFILE, (3, before[1]))
    answer = user.http.post("/request", content=encoded.data)
    assert (answer.status_code, answer.json()["reason"], answer.headers["retry-after"]) == (503, "full", "1")
    resource.prlimit(server, resource.RLIMIT_NOFILE, before)
    job = user.wait(user.submit(encoded.data)["id"])
    assert torch.equal(user.result(job["id"])["out"], right(X[:2]))


def children(pid: int) -> list[int]:
    """The processes that a process has started, from its main thread."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def events(url: str, job: str) -> list[dict[str, Any]]:
    """What happened to a job that is finished."""
    lines = httpx.get(f"{url}/jobs/{job}/events").text.splitlines()
    return [json.loads(line[6:]) for line in lines if line.startswith("data: ")]
