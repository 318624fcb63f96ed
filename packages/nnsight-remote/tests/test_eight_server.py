"""Clients of nnsight 0.8 at a real server: what they send and are told, over HTTP and sockets.

The client is ours for NDIF, which speaks as theirs does; that theirs itself gets its results is in `tests-integration`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from eight_requests import Named, mlp
from serving import SECONDS, Client, Server
from websockets.exceptions import InvalidStatus
from websockets.sync.client import ClientConnection, connect

from nnsight_remote.client.address import Address
from nnsight_remote.client.connection import Connection
from nnsight_remote.client.errors import JobError, KeyRefusedError, RefusedError
from nnsight_remote.fabric.facts import NdifFacts
from nnsight_remote.fabric.jobs import NdifJobs
from nnsight_remote.fabric.model import key_of
from nnsight_remote.fabric.payload import encode
from nnsight_remote.server.eight import sockets
from nnsight_remote.server.eight.form import FormError, parts

GIVEN = torch.linspace(-1, 1, 8).view(2, 4)


@pytest.fixture
def model() -> Named:
    return mlp()


class There:
    """Runs blocks there as a client of nnsight 0.8 would."""

    def __init__(self, url: str, key: str, followed: bool = True) -> None:
        self.jobs = NdifJobs(Connection(Address(url, key)))
        self.followed = followed
        self.events: list[tuple[str, str]] = []
        self.loaded = 0

    def run(self, request: Any) -> dict[str, Any]:
        self.job = self.jobs.post(request, "", print, followed=self.followed)
        self.events = [(one.kind, one.text) for one in self.jobs.watch(self.job, 0, SECONDS) if one.number]
        return self.jobs.fetch(self.job, self.progress, SECONDS, False)

    def progress(self, done: int, size: int) -> None:
        self.loaded = done


@pytest.fixture
def key(server: Server, request: pytest.FixtureRequest) -> str:
    return server.key(request.node.name[:100])


@pytest.fixture
def there(server: Server, key: str) -> There:
    return There(server.url, key)


@pytest.fixture
def form(model: Named) -> dict[str, Any]:
    """What a request of theirs is made of."""
    kept: list[bytes] = []

    class Keeping:
        def run(self, request: Any) -> dict[str, Any]:
            kept.append(encode(request))
            return {}

    with model.trace(GIVEN, backend=Keeping()):
        model.output.save()
    envelope = {"model_key": key_of(model), "session_id": "", "compress": True, "env": {}}
    return {"data": {"data": json.dumps(envelope)}, "files": {"blob": ("request", kept[0])}}


def test_a_job_is_told_of_on_a_socket_and_its_result_comes_there(model: Named, there: There) -> None:
    with model.trace(GIVEN, backend=there):
        print("one\ntwo", end="")
        model.embed.output[:] = 0
        out = model.output.save()
    with model.trace(GIVEN):
        model.embed.output[:] = 0
        expected = model.output
    assert torch.equal(out, expected) and not there.loaded
    logs = [text for kind, text in there.events if kind == "log"]
    assert logs == ["one\n", "two\n"] and there.events[-1] == ("state", "completed")


def test_a_job_that_nobody_waits_for_is_polled(model: Named, server: Server, key: str) -> None:
    there = There(server.url, key, followed=False)
    with model.trace(GIVEN, backend=there):
        out = model.output.save()
    assert torch.equal(out, model._module(GIVEN)) and there.loaded > 0


def test_a_large_result_has_an_address(model: Named, there: There) -> None:
    size = sockets._ON_THE_SOCKET + 1000
    with model.trace(GIVEN, backend=there):
        noise = torch.randint(256, (size,), dtype=torch.uint8).save()
    assert noise.shape == (size,) and there.loaded > sockets._ON_THE_SOCKET


def test_an_error_is_told_as_text_with_the_users_line(model: Named, there: There) -> None:
    with pytest.raises(JobError, match="(?s)1 / 0.*ZeroDivisionError: division by zero") as caught:
        with model.trace(GIVEN, backend=there):
            1 / 0  # noqa: B018
    assert __file__ in str(caught.value) and "nnsight_remote" not in str(caught.value).replace(__file__, "")


def test_a_block_has_as_little_power_as_any(model: Named, there: There, tmp_path: Path) -> None:
    place = str(tmp_path / "written")
    with pytest.raises(JobError, match="PermissionError"):
        with model.trace(GIVEN, backend=there):
            open(place, "w")
    with pytest.raises(JobError, match="does not let a block import 'shutil'"):
        with model.trace(GIVEN, backend=there):
            import shutil  # noqa: F401


def test_such_a_job_is_a_job_like_any_other(model: Named, there: There, server: Server, key: str) -> None:
    with model.trace(GIVEN, backend=there):
        model.output.save()
    user = Client(server.url, key)
    seen = user.get(there.job)
    assert seen["state"] == "completed" and seen["request_bytes"] > 0
    assert user.http.get(f"/jobs/{there.job}/result").headers["content-type"] == "application/octet-stream"
    assert user.http.delete(f"/jobs/{there.job}").status_code == 200
    assert user.http.get(f"/response/{there.job}").status_code == 404


def test_a_job_of_ours_is_not_for_them(model: Named, server: Server, key: str) -> None:
    user = Client(server.url, key, model="served_models:mlp")
    with model.trace(GIVEN, backend=user):
        model.output.save()
    answer = user.http.get(f"/response/{user.job['id']}")
    assert answer.status_code == 409 and "another kind of client" in answer.json()["detail"]


def test_a_job_that_was_cancelled_is_told_of(server: Server, key: str, endless: bytes) -> None:
    user = Client(server.url, key)
    job = user.begin(endless)
    assert user.http.get(f"/response/{job}").json()["status"] == "RUNNING"
    user.http.delete(f"/jobs/{job}")
    user.wait(job)
    said = user.http.get(f"/response/{job}").json()
    assert said["status"] == "ERROR" and "cancelled" in said["description"]


def test_a_wrong_key_is_refused_in_their_words(model: Named, server: Server, form: dict[str, Any]) -> None:
    with pytest.raises(KeyRefusedError):
        with model.trace(GIVEN, backend=There(server.url, "nns_wrong")):
            model.output.save()
    for headers in ({}, {"ndif-api-key": "nns_wrong"}):
        answer = httpx.post(f"{server.url}/request", **form, headers=headers)
        assert answer.status_code == 401 and "key" in answer.json()["detail"]
        with pytest.raises(InvalidStatus) as caught:
            connect(f"ws{server.url[4:]}/subscribe", additional_headers=headers)
        assert caught.value.response.status_code == 401 and b"key" in caught.value.response.body


def test_nobody_sees_the_job_or_the_socket_of_another(
    model: Named, there: There, server: Server, form: dict[str, Any]
) -> None:
    with model.trace(GIVEN, backend=there):
        model.output.save()
    other = {"ndif-api-key": server.key("somebody else")}
    assert httpx.get(f"{server.url}/response/{there.job}", headers=other).status_code == 404
    mine = there.jobs._headers
    with _socket(server, mine) as socket:
        said = json.loads(form["data"]["data"])
        said["session_id"] = json.loads(socket.recv())["session_id"]
        form["data"]["data"] = json.dumps(said)
        answer = httpx.post(f"{server.url}/request", **form, headers=other)
        assert answer.status_code == 400 and "no socket" in answer.json()["detail"]
        assert httpx.post(f"{server.url}/request", **form, headers=mine).json()["status"] == "RECEIVED"


def test_the_address_of_a_result_is_for_that_result_and_a_while(model: Named, there: There, server: Server) -> None:
    there.followed = False
    with model.trace(GIVEN, backend=there):
        model.output.save()
    url = httpx.get(f"{server.url}/response/{there.job}", headers=there.jobs._headers).json()["data"]
    assert url.startswith(server.url) and httpx.get(url).status_code == 200
    until = url.partition("until=")[2].partition("&")[0]
    for wrong in (url.replace(until, str(int(until) + 1)), url[:-1], url.replace(there.job, "0" * 32)):
        assert httpx.get(wrong).status_code == 403
    assert httpx.get(url.replace(until, "x")).status_code == 422


def _socket(server: Server, headers: dict[str, str]) -> ClientConnection:
    return connect(f"ws{server.url[4:]}/subscribe", additional_headers=headers)


def test_a_user_has_so_many_sockets_only(server: Server) -> None:
    headers = {"ndif-api-key": server.key("many sockets", queued=1)}
    with _socket(server, headers) as socket:
        socket.recv()
        with pytest.raises(InvalidStatus) as caught:
            _socket(server, headers)
        assert caught.value.response.status_code == 429
    with _socket(server, headers) as socket:
        assert json.loads(socket.recv())["session_id"]
        socket.send(b"bytes")  # which no client does


WRONG: list[tuple[dict[str, Any], int, str]] = [
    ({"model_key": "nonsense"}, 400, "not what nnsight 0.8 writes"),
    ({"model_key": 3}, 400, "not what nnsight 0.8 writes"),
    ({"model_key": "nnsight.modeling.transformers.TransformersModel:" + "[" * 100_000}, 400, "not what"),
    ({"model_key": "nnsight.modeling.diffusion.DiffusionModel:{}"}, 404, "DiffusionModel' is not run"),
    ({"model_key": 'nnsight.modeling.transformers.TransformersModel:{"repo_id": "x"}'}, 404, "no model 'x' here"),
    ({"session_id": "nobody's"}, 400, "no socket"),
    ({"session_id": 3}, 422, "`session_id` is a text"),
    ({"compress": "yes"}, 422, "`compress`"),
    ({"env": [1]}, 422, "`env` a table"),
    ({"model_key": "\ud800:{}"}, 404, "is not run"),
]


@pytest.mark.parametrize(
    "data", [b"", b"\xff", b"[]", b"3", b'{"model_key": "x", "env": ' + b"[" * 900 + b"]" * 900 + b"}"]
)
def test_an_envelope_that_is_no_table_is_refused(server: Server, key: str, form: dict[str, Any], data: bytes) -> None:
    files = {**form["files"], "data": (None, data)}
    answer = httpx.post(f"{server.url}/request", files=files, headers={"ndif-api-key": key})
    assert answer.status_code == 422 and answer.json()["detail"]


@pytest.mark.parametrize(("change", "status", "words"), WRONG)
def test_a_wrong_envelope_is_refused(
    server: Server, key: str, form: dict[str, Any], change: dict[str, Any], status: int, words: str
) -> None:
    said = {**json.loads(form["data"]["data"]), **change}
    answer = httpx.post(
        f"{server.url}/request", files=form["files"], data={"data": json.dumps(said)}, headers={"ndif-api-key": key}
    )
    assert answer.status_code == status and words in answer.json()["detail"]


FORMS = [
    ("multipart/form-data", b"x"),
    ("multipart/form-data; boundary=", b"--\r\n\r\n"),
    ('multipart/form-data; boundary="a\rb"', b"--a\r\n"),
    ("multipart/form-data; boundary=b", b"--b--\r\n"),
    ("multipart/form-data; boundary=b", b"--b\r\nnothing\r\n--b--"),
    ("multipart/form-data; boundary=b", b"--b\r\nA: b\r\n\r\nx\r\n--b--"),
    ("multipart/form-data; boundary=b", b'--b\r\nContent-Disposition: form-data; name="data"\r\n\r\n{}\r\n--b--'),
    ("multipart/form-data; boundary=b", b'--b\r\nContent-Disposition: form-data; name="data"\r\n\r\n{}\r\n'),
    ("multipart/form-data; boundary=b", b'--b\r\nContent-Disposition: form-data; name="a"\r\n\r\n\r\n' * 20 + b"--b--"),
]


@pytest.mark.parametrize(("kind", "body"), FORMS)
def test_what_is_no_form_is_refused(server: Server, key: str, kind: str, body: bytes) -> None:
    headers = {"ndif-api-key": key}
    if "\r" not in kind:
        answer = httpx.post(f"{server.url}/request", content=body, headers={**headers, "content-type": kind})
        assert answer.status_code in (400, 422) and answer.json()["detail"]
    with pytest.raises((FormError, KeyError)):
        parts(kind, body)["blob"]


def test_a_form_is_cut_at_its_boundary_and_nothing_in_it_is_changed() -> None:
    blob = bytes(range(256)) + b"\r\n--other\r\n\n\r\r\n"
    written = httpx.Request("POST", "http://x", data={"data": "{}"}, files={"blob": ("request", blob)})
    written.read()
    assert parts(written.headers["content-type"], written.content) == {"data": b"{}", "blob": blob}


def test_what_the_server_is_and_has(server: Server, key: str) -> None:
    facts = NdifFacts(Connection(Address(server.url, key)))
    [offer] = facts.offers()
    assert offer.source == "served_models:mlp" and offer.is_ready
    assert facts.environment().packages["torch"].partition("+")[0] == torch.__version__.partition("+")[0]
    assert facts.whoami()["name"] == "test_what_the_server_is_and_has"


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that takes nothing of theirs in, and says what it has."""
    server = Server(tmp_path_factory.mktemp("other") / "store", "--refuse-0.8", "--public-status")
    with server.running():
        yield server


def test_a_server_may_refuse_them(other: Server, form: dict[str, Any]) -> None:
    headers = {"ndif-api-key": other.admin}
    # Taken for a request of ours, whose headers count.
    answer = httpx.post(f"{other.url}/request", **form, headers={**headers, "nnsight-model": "of ours"})
    assert answer.status_code == 404 and "'of ours'" in answer.json()["message"]
    with pytest.raises(InvalidStatus):
        _socket(other, headers)
    assert "/response/{id}" not in httpx.get(f"{other.url}/openapi.json").json()["paths"]


def test_a_server_may_tell_everybody_what_it_has_and_no_more(other: Server, server: Server) -> None:
    assert set(httpx.get(f"{other.url}/status").json()) == {"deployments"}
    said = httpx.get(f"{other.url}/env").json()
    assert said["packages"]["torch"] and said["models"] == {}
    assert httpx.get(f"{other.url}/models").status_code == 401
    for path in ("/status", "/env"):
        assert httpx.get(server.url + path).status_code == 401


def test_a_request_beyond_the_limit_is_refused(server: Server, form: dict[str, Any]) -> None:
    headers = {"ndif-api-key": server.key("small requests", request_bytes=300)}
    answer = httpx.post(f"{server.url}/request", **form, headers=headers)
    assert answer.status_code == 413 and "300 bytes" in answer.json()["detail"]
    with pytest.raises(RefusedError, match="300 bytes"):
        model = mlp()
        with model.trace(GIVEN, backend=There(server.url, headers["ndif-api-key"])):
            model.output.save()
