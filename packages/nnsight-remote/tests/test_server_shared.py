"""Jobs of a model that an engine serves: several at once, each in a process of its own, one engine for all."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from serving import Client, Encoded, Server

from nnsight.plugin import encode_results


@pytest.fixture(scope="module")
def sharing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    store = tmp_path_factory.mktemp("sharing") / "store"
    with Server(store, "--at-once", "2", models=("served_models:shared",)).running() as server:
        admin = Client(server.url, server.admin)
        admin.wait(admin.submit(encode_results({}))["id"])
        yield server


@pytest.fixture
def asked(model: Any) -> bytes:
    return taken(model, 2)


def taken(model: Any, rows: int) -> bytes:
    """A block that saves how often the engine was asked, as it would be sent."""
    kept = Encoded()
    with model.trace(torch.ones(rows, 4), backend=kept):
        count = model.input[0, 0].clone().save()  # noqa: F841
    return kept.data


def counted(user: Client, data: bytes) -> int:
    job = user.submit(data)["id"]
    user.wait(job)
    return int(user.result(job)["count"])


def test_a_job_runs_beside_one_that_never_ends_and_both_use_the_same_engine(sharing, endless, asked):
    ada, bob = sharing.user("ada"), sharing.user("bob")
    before = counted(bob, asked)
    long = ada.begin(endless)
    assert counted(bob, asked) == before + 1
    assert ada.get(long)["state"] == "running"
    assert sharing_state(sharing)["running"] == 1
    ada.http.delete(f"/jobs/{long}")
    assert ada.wait(long)["state"] == "cancelled"
    assert counted(bob, asked) == before + 2


def test_no_more_run_at_once_than_may_and_users_take_turns(sharing, endless, asked):
    ada, bob = sharing.user("ada"), sharing.user("bob")
    long = [ada.begin(endless) for _ in range(2)]
    waiting = bob.submit(asked)["id"]
    behind = ada.submit(asked)["id"]
    assert bob.get(waiting)["state"] == "queued"
    assert {ada.get(job)["state"] for job in long} == {"running"}
    ada.http.delete(f"/jobs/{long[0]}")
    bob.wait(waiting)
    ada.wait(behind)
    assert int(bob.result(waiting)["count"]) + 1 == int(ada.result(behind)["count"])
    ada.http.delete(f"/jobs/{long[1]}")
    assert ada.wait(long[1])["state"] == "cancelled"


def test_when_the_engine_ends_its_jobs_fail_and_the_next_one_gets_another(sharing, model, endless, asked):
    ada, bob = sharing.user("ada"), sharing.user("bob")
    long = ada.begin(endless)
    deadly = bob.submit(taken(model, 13))["id"]
    assert bob.wait(deadly)["state"] == "failed"
    ended = ada.wait(long)
    assert (ended["state"], ended["failure"]["reason"]) == ("failed", "host")
    assert counted(bob, asked) == 1


def test_jobs_that_run_are_run_again_after_a_restart(sharing, asked, endless):
    ada = sharing.user("ada")
    long = [ada.begin(endless) for _ in range(2)]
    sharing.stop()
    sharing.start()
    ada = sharing.user("ada")
    for job in long:
        ada.until(job, "log", "it runs")
        ada.http.delete(f"/jobs/{job}")
        assert ada.wait(job)["state"] == "cancelled"
    assert counted(ada, asked) == 1


def sharing_state(server: Server) -> dict[str, Any]:
    return Client(server.url, server.admin).http.get("/status").json()
