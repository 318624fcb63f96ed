"""Several models on one server, the resident way of running jobs, and what is trusted."""

from __future__ import annotations

import os

import pytest
import torch
from serving import Client, Server

import nnsight
from nnsight.plugin import encode_results

X = torch.ones(2, 4)


def test_models_are_loaded_when_they_are_needed_and_go_for_others(tmp_path, model):
    import served_models

    names = ["small=served_models:mlp", "steps=served_models:generating", "broken=served_models:unloadable"]
    with Server(tmp_path / "store", "--room", "1", models=names).running() as server:
        key = server.key("ada")
        small, steps, broken = (Client(server.url, key, name) for name in ("small", "steps", "broken"))
        generating = served_models.generating()

        for _ in range(1):
            with model.trace(X, backend=small):
                result = model.output.save()
            with torch.no_grad():
                assert torch.equal(result, model._module(X))
            assert states(small) == {"small": "ready", "steps": "cold", "broken": "cold"}
            with generating.trace(X, fn="generate", backend=steps) as tracer:
                seen = nnsight.save([])
                for _step in tracer.iter[:]:
                    seen.append(generating.first.output)
            assert len(seen) == 3
            assert states(small) == {"small": "cold", "steps": "ready", "broken": "cold"}

        job = broken.wait(broken.submit(encode_results({}))["id"])
        assert job["failure"]["reason"] == "model" and "there are no such weights" in job["failure"]["message"]
        assert states(small)["broken"] == "failed"
        with model.trace(X, backend=small):
            again = model.output.save()
        assert torch.equal(again, result)

        answer = small.http.post("/request", content=encode_results({}), headers={"nnsight-model": ""})
        assert answer.status_code == 400 and "small, steps, broken" in answer.json()["message"]

        admin = Client(server.url, server.admin).http
        assert admin.delete("/models/small").json()["state"] == "cold"
        added = admin.post("/models", json={"name": "more", "source": "nowhere", "family": "NoSuchFamily"})
        assert added.status_code == 201 and added.json()["state"] == "cold"
        more = Client(server.url, key, "more")
        failure = more.wait(more.submit(encode_results({}))["id"])["failure"]
        assert failure["reason"] == "model" and "NoSuchFamily" in failure["message"]


def states(client):
    return {view["name"]: view["state"].replace("busy", "ready") for view in client.http.get("/models").json()}


def test_a_resident_model_is_confined_too_and_loaded_again_when_it_was_changed(tmp_path, model, encoded, endless):
    allowed = ("--allow-import", "os")
    with Server(tmp_path / "store", "--isolation", "resident", *allowed).running() as server:
        user = server.user("ada", run_seconds=5)
        with torch.no_grad():
            wanted = model._module(X)
        with model.trace(X, backend=user):
            print("from the model's own process")
            result = model.output.save()
            first = nnsight.save(os.getpid())
        assert torch.equal(result, wanted) and user.printed(user.job["id"]) == "from the model's own process\n"

        with pytest.raises(PermissionError):
            with model.trace(X, backend=user):
                open("/etc/passwd")
        with pytest.raises(PermissionError):
            with model.trace(X, backend=user):
                os.fork()

        with model.trace(X, backend=user):
            model._module.head.weight.data.zero_()
            second = nnsight.save(os.getpid())
        with model.trace(X, backend=user):
            result = model.output.save()
            third = nnsight.save(os.getpid())
        assert first == second != third and torch.equal(result, wanted)

        job = user.begin(endless)
        user.http.delete(f"/jobs/{job}")
        assert user.wait(job)["state"] == "cancelled"
        with model.trace(X, backend=encoded):
            os._exit(3)
        assert user.wait(user.submit(encoded.data)["id"])["failure"]["reason"] in ("host", "crash")
        with model.trace(X, backend=user):
            result = model.output.save()
        assert torch.equal(result, wanted)


def test_a_trusted_open_server_lets_blocks_do_what_its_owner_may(tmp_path, model, endless):
    written = tmp_path / "written"
    with Server(tmp_path / "store", "--trusted", "--open", "--queue-length", "1").running() as server:
        user = Client(server.url)
        with model.trace(X, backend=user):
            import sqlite3  # noqa: F401  # not on the list

            model.output
            written.write_text("by a block")
        assert written.read_text() == "by a block"
        assert user.http.get("/status").json()["trusted"] is True
        assert user.http.get("/whoami").json()["name"] == "anyone"
        # A page of another site, or a name that was made to lead here, gets nothing.
        for headers in ({"origin": "https://elsewhere.example"}, {"host": "elsewhere.example"}):
            answer = user.http.get("/status", headers=headers)
            assert (answer.status_code, answer.json()["reason"]) == (403, "origin")
        user.begin(endless)
        user.submit(endless)
        answer = user.http.post("/request", content=endless)
        assert (answer.status_code, answer.json()["reason"]) == (503, "full") and answer.headers["retry-after"]
