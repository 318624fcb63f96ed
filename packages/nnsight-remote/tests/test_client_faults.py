"""Connections that break, servers that die and disks that are full: nothing that was finished is lost."""

from __future__ import annotations

import os
import resource
import signal
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from cutting import Proxy, proxy_to
from serving import SECONDS, Client, Server

import nnsight_remote
from nnsight import CONFIG, ndif
from nnsight_remote import DownloadError, KeyRefusedError, RefusedError, RemoteBackend, UnreachableError
from nnsight_remote.client import backend, connection, download

X = torch.linspace(-1, 1, 12).reshape(3, 4)


@pytest.fixture(autouse=True)
def as_a_user(server: Server, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CONFIG.API, "APIKEY", server.key(request.node.name[:100]))
    monkeypatch.setattr(CONFIG.APP, "REMOTE_LOGGING", False)


@pytest.fixture
def proxy(server: Server) -> Iterator[Proxy]:
    with proxy_to(server.url) as proxy:
        yield proxy


@pytest.mark.parametrize("line", ["GET /env", "GET /models", "POST /request"])
@pytest.mark.parametrize("answered", [-1, 0, 50, 250])
def test_a_connection_that_is_cut_costs_nothing(model, proxy, line, answered):
    proxy.cut(line, answered, *[answered] * (answered < 250))
    with model.trace(X, remote=proxy.url):
        out = model.output.save()
    assert torch.equal(out, model(X))
    assert proxy.is_done and proxy.cuts >= 1
    assert len(ndif.jobs(proxy.url)) == 1


@pytest.mark.parametrize("answered", [350, 500, 900])
@pytest.mark.parametrize("further", [-1, 50, 300])
def test_an_answer_that_is_cut_while_the_job_runs_is_gone_on_with(model, proxy, answered, further):
    proxy.cut("POST /request", answered)
    proxy.cut("GET /jobs/", further, further)
    with model.trace(X, remote=proxy.url):
        out = model.output.save()
    assert torch.equal(out, model(X))
    assert proxy.is_done and proxy.cuts == 3
    (job,) = ndif.jobs(proxy.url)
    assert job.status == "completed" and len([line for line in proxy.seen if line.startswith("POST")]) == 1


def test_a_block_that_is_waited_for_is_one_request(model, proxy):
    for _ in range(2):
        with model.trace(X, remote=proxy.url):
            out = model.output.save()
    assert [line.split("?")[0] for line in proxy.seen[-2:]] == ["POST /request", "POST /request"]
    assert torch.equal(out, model(X))


def test_a_result_that_is_too_large_for_the_events_is_fetched_by_itself(model, proxy):
    with model.trace(X, remote=proxy.url):
        numbers = torch.arange(100_000).save()
    assert "/result " in proxy.seen[-1] and torch.equal(numbers, torch.arange(100_000))


def test_what_is_printed_comes_once_though_the_events_are_cut(model, proxy, capsys):
    proxy.cut("POST /request", 400)
    for cut in (150, 300, 500, 800, 1200):
        proxy.cut("GET /jobs/", cut)
    with model.trace(X, remote=proxy.url):
        for number in range(20):
            print("line", number)
        out = model.output.save()
    assert capsys.readouterr().out == "".join(f"line {number}\n" for number in range(20))
    assert torch.equal(out, model(X))


def test_a_download_goes_on_where_it_was_cut(model, proxy):
    with model.trace(X, remote=proxy.url, blocking=False) as job:
        numbers = torch.arange(1_000_000).save()
    job.wait(SECONDS)
    before = proxy.passed
    proxy.cut(f"GET /jobs/{job.id}/events", -1)
    proxy.cut(f"GET /jobs/{job.id}/result", 1_000_000, 3_000_000, 100, 2_000_000)
    assert torch.equal(job.result(SECONDS)["numbers"], torch.arange(1_000_000))
    assert proxy.is_done and proxy.passed - before < 10_000_000


def test_a_server_that_is_killed_and_started_again_finishes_the_job(model, tmp_path, monkeypatch):
    first = Server(tmp_path / "store").start()
    try:
        monkeypatch.setattr(CONFIG.API, "APIKEY", first.admin)
        with proxy_to(first.url) as proxy:
            with model.trace(X, remote=proxy.url, blocking=False) as job:
                out = model.output.save()
            first.kill()
            values: dict[str, Any] = {}
            waiting = threading.Thread(target=lambda: values.update(job.result(SECONDS)))
            waiting.start()
            first.start()
            proxy.lead_to(first.url)
            waiting.join(SECONDS)
        assert torch.equal(values["out"], model(X))
    finally:
        first.stop()


def test_a_server_that_stays_away_is_an_error_that_names_the_job(model, server, proxy):
    lab = RemoteBackend(proxy.url, patience=0.2, blocking=False)
    with model.trace(X, backend=lab) as job:
        out = model.output.save()
    proxy.close()
    with pytest.raises(UnreachableError, match=job.id):
        job.result()
    later = nnsight_remote.job(job.id, server.url)
    assert torch.equal(later.result(SECONDS)["out"], model(X))


@pytest.mark.parametrize("url", ["http://127.0.0.1:9", "http://nowhere.invalid"])
def test_a_server_that_is_not_there_is_said_to_be(model, url, monkeypatch):
    monkeypatch.setattr(connection, "FIRST_CONTACT", 0.1)
    with pytest.raises(UnreachableError, match="is it running") as raised, model.trace(X, remote=url):
        model.output.save()
    assert isinstance(raised.value, ConnectionError)


def test_a_wrong_key_is_noticed_before_anything_is_uploaded(model, proxy, monkeypatch):
    for key in ("wrong", None):
        monkeypatch.setattr(CONFIG.API, "APIKEY", key)
        with pytest.raises(KeyRefusedError, match="nnsight login") as raised, model.trace(X, remote=proxy.url):
            model.output.save()
        assert isinstance(raised.value, PermissionError) and "wrong" not in str(raised.value)
    assert not any(line.startswith("POST") for line in proxy.seen)


def test_a_request_that_is_too_large_is_not_sent(model, server, proxy, request, monkeypatch):
    monkeypatch.setattr(CONFIG.API, "APIKEY", server.key(request.node.name, request_bytes=2_000_000))
    large = torch.zeros(1_000_000)
    with pytest.raises(RefusedError, match=r"4.0 MB, and .* takes 2.0 MB") as raised:
        with model.trace(X, remote=proxy.url):
            large.sum().save()
    assert raised.value.reason == "size" and not any(line.startswith("POST") for line in proxy.seen)
    monkeypatch.setattr(CONFIG.API, "APIKEY", server.key(request.node.name, request_bytes=500))
    with pytest.raises(RefusedError, match="500 bytes"), model.trace(X, remote=proxy.url):
        model.output.save()


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_client_that_is_killed_loses_no_job(model, server, endless):
    other = Client(server.url, server.admin)
    before = other.begin(endless)  # until it is cancelled, whoever comes waits
    told, tells = os.pipe()
    child = os.fork()
    if not child:
        try:
            with model.trace(X, remote=server.url, blocking=False) as job:
                print("it runs")
                out = model.output.save()
            os.write(tells, job.id.encode())
            job.result()
        finally:
            os._exit(1)
    os.close(tells)
    id = os.read(told, 100).decode()
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    os.close(told)
    other.http.delete(f"/jobs/{before}")
    found = nnsight_remote.job(id, server.url)
    assert torch.equal(found.result(SECONDS)["out"], model(X)) and found.log == "it runs\n"
    assert found.look().details["attempts"] == 1


def test_a_client_that_is_gone_while_it_fetches_leaves_the_result_to_others(model, server):
    with model.trace(X, remote=server.url, blocking=False) as job:
        numbers = torch.arange(1_000_000).save()
    job.wait(SECONDS)
    with Client(server.url, server.admin).http.stream("GET", f"/jobs/{job.id}/result") as answer:
        assert len(next(answer.iter_raw(100_000))) == 100_000
    assert torch.equal(job.result(SECONDS)["numbers"], torch.arange(1_000_000))


def test_an_interrupt_is_not_held_up_by_a_server_that_is_gone(model, server, proxy, monkeypatch, capsys):
    def interrupted(job: nnsight_remote.Job, *args: Any) -> None:
        proxy.close()
        jobs.append(job)
        raise KeyboardInterrupt

    jobs: list[nnsight_remote.Job] = []
    monkeypatch.setattr(backend, "_GIVING_UP", 0.1)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(nnsight_remote.Job, "follow", interrupted)
        with model.trace(X, remote=proxy.url):
            model.output.save()
    assert "may go on" in capsys.readouterr().err
    assert nnsight_remote.job(jobs[0].id, server.url).wait(SECONDS).status == "completed"


def test_a_disk_that_is_full_costs_no_result(model, server, monkeypatch, tmp_path):
    monkeypatch.setattr(download, "IN_MEMORY", 1000)
    with model.trace(X, remote=server.url, blocking=False) as job:
        numbers = torch.arange(100_000).save()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(DownloadError, match="TMPDIR") as raised:
            job.result(SECONDS)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    assert job.id in str(raised.value) and isinstance(raised.value, OSError)
    assert torch.equal(job.result(SECONDS)["numbers"], torch.arange(100_000))


def test_a_large_result_is_read_from_a_file(model, server, monkeypatch):
    monkeypatch.setattr(download, "IN_MEMORY", 1000)
    with model.trace(X, remote=server.url):
        numbers = torch.arange(100_000).save()
    numbers += 1
    assert torch.equal(numbers, torch.arange(1, 100_001))
