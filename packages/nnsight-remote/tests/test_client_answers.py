"""Servers that are hostile, foreign, busy or of another version: what the client makes of what they say."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
import torch
from answering import Answering, InTurn, answering, serving

import nnsight
import nnsight_remote
from nnsight import CONFIG, NNsight, NNsightWarning, WireError, ndif
from nnsight.plugin import encode_error, encode_results
from nnsight.testing.models import MLP, seeded
from nnsight_remote import (
    JobError,
    KeyRefusedError,
    ProtocolError,
    RefusedError,
    RemoteBackend,
    UnreachableError,
)
from nnsight_remote.client import handshake

X = torch.ones(2, 4)
VALUES = encode_results({"out": torch.ones(3)})


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CONFIG.APP, "REMOTE_LOGGING", False)
    monkeypatch.setattr(CONFIG.API, "APIKEY", "a-key")


@pytest.fixture
def there() -> Iterator[Callable[..., Answering]]:
    with ExitStack() as stack:
        yield lambda *args, **others: stack.enter_context(answering(serving(*args, **others)))


def run(url: str, **options: Any) -> Any:
    model = NNsight(seeded(MLP))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NNsightWarning)
        with model.trace(X, backend=RemoteBackend(url, **options)):
            out = model.output.save()
    return out


def test_a_result_is_data(there):
    assert torch.equal(run(there(VALUES).url), torch.ones(3))


def test_a_result_that_holds_code_is_refused_unless_the_server_is_trusted(there, monkeypatch):
    code = there(encode_results({"out": lambda: "ran"}))
    with pytest.raises(WireError):
        run(code.url)
    assert run(code.url, trusted=True)() == "ran"
    monkeypatch.setattr(CONFIG.API, "TRUSTED", f"https://elsewhere, {code.url}/")
    assert run(code.url)() == "ran"
    with pytest.raises(WireError):
        run(code.url, trusted=False)


def test_an_exception_that_would_end_the_program_is_an_error_like_others(there):
    with pytest.raises(nnsight.RemoteError, match="SystemExit"):
        run(there(encode_error(SystemExit(3)), "error").url)


@pytest.mark.parametrize("result", [b"", b"nonsense", VALUES[:-1], VALUES + b"x"])
def test_bytes_that_are_no_result_are_refused(there, result):
    with pytest.raises(WireError):
        run(there(result).url)


def test_a_result_of_an_unknown_kind_is_refused(there):
    with pytest.raises(ProtocolError, match="pickle"):
        run(there(VALUES, "pickle").url)


@pytest.mark.parametrize(
    ("env", "complaint"),
    [
        ({"protocol": 2}, "version 2 .* version 1 .* upgrade nnsight-remote here"),
        ({"protocol": 0}, "upgrade nnsight-remote on the server"),
        ((200, {}, b"<html>welcome</html>"), "JSON"),
        ((200, {}, [1]), "no server that is known"),
        ((404, {}, b"<html>not here</html>"), "no server that is known"),
    ],
)
def test_what_is_no_server_of_ours_is_said_to_be_none(there, env, complaint):
    server = there(**{"GET /env": env})
    with pytest.raises(ProtocolError, match=complaint):
        run(server.url)
    assert not any(line.startswith("POST") for line, _ in server.asked)


def test_a_redirection_is_not_followed_with_the_key(there):
    other = there()
    server = there(**{"GET /env": (307, {"location": other.url + "/env"}, b"")})
    with pytest.raises(ProtocolError, match=other.url):
        run(server.url)
    assert not other.asked


@pytest.mark.parametrize(
    "others",
    [
        {"GET /models": {"no": "list"}},
        {"GET /models": [{"name": "mlp"}]},
        {"POST /request": (202, {}, {"no": "id"})},
        {"POST /request": (202, {}, [])},
        {"GET /jobs/j1/events": (200, {}, b'data: {"number": null}\n\n')},
        {"GET /jobs/j1/events": (200, {}, b"data: {\n\n")},
        {"GET /jobs/j1/events": (200, {}, b""), "GET /jobs/j1": {"id": "j1"}},
    ],
)
def test_answers_of_another_form_are_errors_of_ours(there, others):
    with pytest.raises(ProtocolError):
        run(there(VALUES, **others).url)


@pytest.mark.parametrize("status", [429, 502, 503, 504])
def test_a_server_that_is_busy_is_asked_again_when_it_says(there, status):
    busy = (status, {"retry-after": "0"}, {"reason": "full", "message": "the server's queue is full"})
    server = there(VALUES, **{"POST /request": InTurn([busy, busy, serving()["POST /request"]])})
    assert torch.equal(run(server.url), torch.ones(3))
    names = [headers["nnsight-request-id"] for line, headers in server.asked if line == "POST /request"]
    assert len(names) == 3 and len(set(names)) == 1


def test_a_server_that_wants_to_be_left_alone_for_long_is_left_alone(there):
    busy = (503, {"retry-after": "3600"}, {"reason": "full", "message": "the server's queue is full"})
    with pytest.raises(RefusedError, match="queue is full") as raised:
        run(there(**{"POST /request": busy}).url)
    assert (raised.value.status, raised.value.reason) == (503, "full")


@pytest.mark.parametrize("path", ["GET /jobs/j1/events", "GET /jobs/j1/result"])
@pytest.mark.parametrize("status", [500, 503])
def test_a_server_that_fails_later_leaves_the_job_to_be_taken_up(there, path, status):
    server = there(VALUES, **{path: (status, {"retry-after": "3600"}, {"reason": "storage", "message": "no room"})})
    with pytest.raises(RefusedError, match=r"no room\. The job is not lost; later: .*'j1'"):
        run(server.url)
    server.answers.update(serving(VALUES))
    assert torch.equal(nnsight_remote.job("j1", server.url).result()["out"], torch.ones(3))


def test_a_download_that_never_gets_further_is_given_up(there):
    size = {"content-type": "application/vnd.nnsight.results", "content-length": "1000", "connection": "close"}
    server = there(**{"GET /jobs/j1/result": (200, size, b"x" * 500)})
    with pytest.raises(UnreachableError, match="j1"):
        run(server.url, patience=0.3)
    assert [line for line, _ in server.asked].count("GET /jobs/j1/result") > 1


def test_a_full_account_is_not_tried_again(there):
    full = (429, {}, {"reason": "kept", "message": "fetch or delete some of them"})
    server = there(**{"POST /request": full})
    with pytest.raises(RefusedError, match="fetch or delete"):
        run(server.url)
    assert [line for line, _ in server.asked].count("POST /request") == 1


def test_a_refusal_that_is_no_json_shows_what_it_can(there):
    with pytest.raises(RefusedError, match="failed .500.: out of order"):
        run(there(**{"POST /request": (500, {}, b"out of order")}).url)
    with pytest.raises(RefusedError, match="500 Internal Server Error"):
        run(there(**{"POST /request": (500, {}, b"<html>")}).url)
    with pytest.raises(KeyRefusedError, match="no key was sent|is another"):
        run(there(**{"POST /request": (401, {}, {"detail": "who are you?"})}).url)


def test_a_job_that_failed_without_an_exception_says_why(there):
    failure = {
        "reason": "memory",
        "message": "the job wanted 3 GB",
        "type": "",
        "traceback": "in line 7",
        "encoded": False,
    }
    view = {**serving()["GET /jobs/j1"], "state": "failed", "failure": failure}
    refusal = (409, {}, {"reason": "memory", "message": "the job wanted 3 GB"})
    with pytest.raises(JobError, match="wanted 3 GB") as raised:
        run(there(**{"GET /jobs/j1": view, "GET /jobs/j1/result": refusal}).url)
    assert raised.value.reason == "memory" and "in line 7" in raised.value.__notes__[0]


def test_versions_that_differ_are_said_once_with_what_to_do(there):
    env = {**serving()["GET /env"], "packages": {"torch": "1.2.3+cpu", "nnsight-core": nnsight.__version__}}
    server = there(VALUES, **{"GET /env": env})
    model = NNsight(seeded(MLP))
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        for _ in range(2):
            handshake._agreed.clear()  # as after some minutes
            with model.trace(X, remote=server.url):
                out = model.output.save()
    [said] = [str(one.message) for one in warned if issubclass(one.category, NNsightWarning)]
    assert f"torch {torch.__version__} here, 1.2.3+cpu there" in said and 'pip install "torch==1.2.3"' in said
    assert "nnsight-core" not in said and "3.11" not in said or "python" in said


def test_the_handshake_is_done_once(there):
    server = there(VALUES)
    for _ in range(3):
        run(server.url)
    asked = [line for line, _ in server.asked]
    assert asked.count("POST /request") == 3 and asked.count("GET /models") == 1


def test_a_model_is_found_by_what_it_was_loaded_from(there):
    models = [
        {"name": "small", "source": "org/small", "state": "ready", "queued": 0, "problem": ""},
        {"name": "large", "source": "org/large", "state": "cold", "queued": 2, "problem": ""},
    ]
    server = there(VALUES, **{"GET /models": models})
    for named in ("small", "org/small"):
        run(server.url, model=named)
        assert server.asked[-3][1]["nnsight-model"] == "small"
    for named in ("", "org/other"):
        with pytest.raises(RefusedError, match=r"it has: small, large\..*RemoteBackend"):
            run(server.url, model=named)
    assert ndif.is_model_running("org/small", server.url) and not ndif.is_model_running("large", server.url)
    assert not ndif.is_model_running("org/other", server.url)


def test_tables_are_lists_that_show_themselves(there):
    models = [
        {"name": "a [b] <c>", "source": "s", "state": "failed", "queued": 2, "problem": "no such weights"},
    ]
    job = {**serving()["GET /jobs/j1"], "submitted": 1.0}
    server = there(
        **{"GET /models": models, "GET /jobs": [job], "GET /env": {**serving()["GET /env"], "python": "2.7"}}
    )
    table = ndif.status(server.url)
    assert [offer.name for offer in table] == ["a [b] <c>"]
    assert "a [b] <c>" in str(table) and "no such weights" in repr(table) and server.url in str(table)
    assert "a [b] &lt;c&gt;" in table._repr_html_() and "<td" in table._repr_html_()
    versions = ndif.compare(server.url)
    row = next(row for row in versions if row is not None and row.package == "python")
    assert row.there == "2.7" and row.matters and "2.7" in str(versions) and "torch" in str(versions)
    assert [one.id for one in ndif.jobs(server.url)] == ["j1"] and "completed" in str(ndif.jobs(server.url))
    server.answers["GET /jobs"] = []
    assert (
        "there are no jobs" in str(ndif.jobs(server.url)) and "there are no jobs" in ndif.jobs(server.url)._repr_html_()
    )


def test_names_of_nnsight_lead_here():
    assert (
        nnsight.ndif is nnsight_remote.ndif is ndif
        and nnsight.status is ndif.status
        and nnsight.compare is ndif.compare
    )
    assert ndif.register is nnsight.register and nnsight.is_model_running is ndif.is_model_running
    from nnsight.intervention.backends.remote import RemoteBackend as known

    assert known is RemoteBackend
    assert set(nnsight_remote.__all__) <= set(dir(nnsight_remote))
    assert all(getattr(nnsight_remote, name) is not None for name in nnsight_remote.__all__)
    with pytest.raises(AttributeError):
        nnsight_remote.nothing
