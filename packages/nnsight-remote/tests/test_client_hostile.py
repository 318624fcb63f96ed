"""Servers that send too much, anything at all, or no HTTP: each is an error of ours in bounded time and memory."""

from __future__ import annotations

import contextlib
import copy
import io
import itertools
import json
import resource
import socket
import threading
import warnings
import zipfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
import torch
import zstandard
from answering import Answering, answering, serving
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import nnsight_remote
from nnsight import CONFIG, NNsight, NNsightWarning, RemoteError, WireError, ndif
from nnsight.plugin import encode_results
from nnsight.testing.models import MLP, seeded
from nnsight_remote import DownloadError, ProtocolError, RefusedError, RemoteBackend, UnreachableError
from nnsight_remote.client import bounded, connection, download, handshake, serve_jobs
from nnsight_remote.fabric import response, results

X = torch.ones(2, 4)
KEY = "a-key-of-mine"
VALUES = encode_results({"out": torch.ones(3)})
RESULTS = {"content-type": "application/vnd.nnsight.results"}
EVENTS = {"content-type": "text/event-stream", "location": "/jobs/j1"}
MiB = 1 << 20


@pytest.fixture(autouse=True)
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CONFIG.APP, "REMOTE_LOGGING", False)
    monkeypatch.setattr(CONFIG.API, "APIKEY", KEY)
    handshake.forget()  # ports are used again
    for module, name in ((connection, "FIRST_CONTACT"), (connection, "AFTERWARDS"), (serve_jobs, "_POSTING")):
        monkeypatch.setattr(module, name, 0.0)


@pytest.fixture
def there() -> Iterator[Callable[..., Answering]]:
    with ExitStack() as stack:
        yield lambda *args, **others: stack.enter_context(answering(serving(*args, **others)))


def run(url: str) -> Any:
    model = NNsight(seeded(MLP))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NNsightWarning)
        with model.trace(X, backend=RemoteBackend(url, patience=0.0)):
            out = model.output.save()
    return out


def endless(part: bytes) -> Callable[[], Iterator[bytes]]:
    """A body without an end, which gives up where a client that reads on would have filled the memory."""
    return lambda: itertools.repeat(part * (MiB // len(part)), 512)


def told(*said: Any, before: bytes = b"") -> bytes:
    return before + b"".join(f"data: {json.dumps(one)}\n\n".encode() for one in said)


def event(**others: Any) -> dict[str, Any]:
    return {"job": "j1", "number": 1, "at": 0, "kind": "state", "text": "completed", **others}


@pytest.mark.parametrize(
    "line", ["GET /env", "GET /models", "POST /request", "GET /jobs/j1/events", "GET /jobs/j1/result"]
)
@pytest.mark.parametrize("status", [200, 404, 500])
def test_an_answer_without_an_end_is_given_up(there, monkeypatch, line, status):
    monkeypatch.setattr(bounded, "LINE", 8 * MiB)
    monkeypatch.setattr(download, "MOST", 8 * MiB)
    server = there(VALUES, **{line: (status, {**RESULTS}, endless(b"x"))})
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ProtocolError):
        run(server.url)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 << 10


def test_an_answer_that_comes_forever_in_small_parts_is_given_up(there, monkeypatch):
    monkeypatch.setattr(bounded, "SECONDS", 0.05)
    with pytest.raises(UnreachableError, match="did not end"):
        run(there(**{"GET /env": (200, {}, lambda: itertools.repeat(b" ", MiB))}).url)


def test_events_that_come_with_the_answer_have_bounded_lines(there, monkeypatch):
    monkeypatch.setattr(bounded, "LINE", 2 * MiB)
    with pytest.raises(ProtocolError, match="told something in more than"):
        run(there(**{"POST /request": (202, EVENTS, endless(b"data:"))}).url)


@pytest.mark.parametrize("encoding", ["gzip", "zstd", "br", "nonsense"])
@pytest.mark.parametrize("line", ["GET /env", "POST /request", "GET /jobs/j1/events"])
def test_a_packed_answer_is_not_unpacked(there, line, encoding):
    bomb = zstandard.compress(b" " * (64 * MiB))
    with pytest.raises(ProtocolError, match="packed"):
        run(there(**{line: (200, {"content-encoding": encoding}, bomb)}).url)


@pytest.mark.parametrize("charset", ["zlib", "hex", "rot13", "utf-16", "no-such"])
def test_what_an_answer_says_of_its_characters_is_not_believed(there, charset):
    kind = {"content-type": f"text/plain; charset={charset}"}
    with pytest.raises(RefusedError, match="out of order"):
        run(there(**{"GET /env": (500, kind, b"out of order")}).url)
    _, headers, body = serving()["GET /jobs/j1/events"]
    server = there(VALUES, **{"GET /jobs/j1/events": (200, {**headers, **kind}, body)})
    assert torch.equal(run(server.url), torch.ones(3))


def test_a_packed_result_holds_no_more_than_was_announced(there, monkeypatch):
    monkeypatch.setattr(download, "IN_MEMORY", MiB)
    bomb = zstandard.compress(b"\0" * (32 * MiB))
    packed = (200, {**RESULTS, "content-encoding": "zstd"}, bomb)
    view = {**serving()["GET /jobs/j1"], "result_bytes": 1000}
    with pytest.raises(ProtocolError, match="more than announced"):
        run(there(**{"GET /jobs/j1/result": packed, "GET /jobs/j1": view}).url)
    monkeypatch.setattr(download, "MOST", 16 * MiB)
    with pytest.raises(DownloadError, match="16777216 are taken"):
        run(there(**{"GET /jobs/j1/result": packed}).url)


def test_a_result_that_is_packed_and_announced_arrives(there, monkeypatch):
    monkeypatch.setattr(download, "IN_MEMORY", 1000)
    values = encode_results({"out": torch.zeros(10_000)})
    packed = (200, {**RESULTS, "content-encoding": "zstd"}, zstandard.compress(values))
    view = {**serving()["GET /jobs/j1"], "result_bytes": len(values)}
    assert torch.equal(run(there(**{"GET /jobs/j1/result": packed, "GET /jobs/j1": view}).url), torch.zeros(10_000))


def test_a_result_of_unsaid_length_ends_where_the_job_says(there):
    view = {**serving()["GET /jobs/j1"], "result_bytes": len(VALUES)}
    cut = (200, RESULTS, lambda: iter([VALUES[:10], VALUES[10:]]))
    assert torch.equal(run(there(**{"GET /jobs/j1/result": cut, "GET /jobs/j1": view}).url), torch.ones(3))
    longer = (200, RESULTS, lambda: iter([VALUES, b"x"]))
    with pytest.raises(ProtocolError, match=f"more than the {len(VALUES)} bytes"):
        run(there(**{"GET /jobs/j1/result": longer, "GET /jobs/j1": view}).url)


def test_a_result_that_is_said_to_be_larger_than_any_disk_is_not_begun(there):
    huge = (200, {**RESULTS, "content-length": str(10**17)}, endless(b"x"))
    with pytest.raises(DownloadError, match="are taken"):
        run(there(**{"GET /jobs/j1/result": huge}).url)


@pytest.mark.parametrize("length", ["-1", "many", "9" * 5000, "1, 2", "0x10"])
def test_a_length_that_is_no_number_is_an_error_of_ours(there, length):
    for line in ("GET /env", "GET /jobs/j1/result"):
        with pytest.raises(RemoteError):
            run(there(**{line: (200, {**RESULTS, "content-length": length}, VALUES)}).url)


def test_a_part_that_nobody_asked_for_is_no_result(there):
    part = (206, {**RESULTS, "content-range": "bytes 0-9/10"}, VALUES[:10])
    with pytest.raises((RemoteError, WireError)):
        run(there(**{"GET /jobs/j1/result": part}).url)


@pytest.mark.parametrize(
    "said",
    [
        event(number=1e999),
        event(number=-1),
        event(number=10**300),
        event(number=True),
        event(number="1"),
        event(kind=["state"]),
        event(kind=None),
        event(text=None),
        event(text="exploded"),
        {"kind": "result", "type": 3, "data": ""},
        {"kind": "result", "type": "x", "data": "%%%"},
        {"kind": "result", "type": "x", "data": None},
        event(kind="value", data=7),
        [],
        None,
        "x",
    ],
)
def test_an_event_of_another_form_is_an_error_of_ours(there, said):
    with pytest.raises(ProtocolError):
        run(there(VALUES, **{"GET /jobs/j1/events": (200, {}, told(said))}).url)


def test_events_of_a_kind_that_is_not_known_are_passed_over(there):
    body = told(
        event(kind="weather", text="rain"), event(number=2**52), before=b"id\nretry: x\n\xff\xfe\ndatadata: {\n"
    )
    server = there(VALUES, **{"GET /jobs/j1/events": (200, {}, body)})
    assert torch.equal(run(server.url), torch.ones(3))


def test_half_a_character_is_printed_as_something_else(there, monkeypatch):
    printed = io.TextIOWrapper(io.BytesIO(), "utf-8")
    monkeypatch.setattr("sys.stdout", printed)
    body = told(event(kind="log", text="a\ud800b\n"), event(number=2))
    assert torch.equal(run(there(VALUES, **{"GET /jobs/j1/events": (200, {}, body)}).url), torch.ones(3))
    printed.flush()
    assert printed.buffer.getvalue() == b"a?b\n"  # type: ignore[attr-defined]  # it is a BytesIO


def test_json_without_a_bottom_is_an_error_of_ours(there):
    deep = b"[" * 500_000
    for line in ("GET /env", "GET /models", "POST /request", "GET /jobs/j1/events"):
        with pytest.raises(ProtocolError):
            run(there(VALUES, **{line: (200, {}, b"data: " * ("events" in line) + deep + b"\n\n")}).url)
    with pytest.raises(RefusedError):
        run(there(**{"GET /env": (500, {}, deep)}).url)


@pytest.mark.parametrize(
    "place", ["", "/jobs/", "/jobs/..", "/jobs/.", "/jobs/a b", "/jobs/a?b=c", "/jobs/" + "a" * 999, "/jobs/%2e"]
)
def test_a_job_whose_id_is_none_is_an_error_of_ours(there, place):
    headers = {**EVENTS, "location": place}
    with pytest.raises(ProtocolError, match="id of a job"):
        run(there(VALUES, **{"POST /request": (202, headers, told(event()))}).url)


@pytest.mark.parametrize("id", ["", "..", "a/b", "j1\r\nx: y", 7, None, {}])
def test_an_id_of_another_form_is_an_error_of_ours(there, id):
    view = {**serving()["GET /jobs/j1"], "id": id}
    server = there(VALUES, **{"POST /request": (202, {}, view), "GET /jobs": [view]})
    with pytest.raises(ProtocolError):
        run(server.url)
    with pytest.raises(ProtocolError):
        ndif.jobs(server.url)


@pytest.mark.parametrize("name", ["a\r\nx: y", "mlp\u2028", "é", " mlp", None, ["mlp"]])
def test_a_model_whose_name_cannot_be_sent_is_an_error_of_ours(there, name):
    models = [{**serving()["GET /models"][0], "name": name}]
    with pytest.raises(ProtocolError, match="name of a model"):
        run(there(VALUES, **{"GET /models": models}).url)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize(
    "line", ["GET /env", "GET /models", "POST /request", "GET /jobs/j1/events", "GET /jobs/j1/result"]
)
def test_no_redirection_is_followed_with_the_key(there, line, status):
    other = there(VALUES)
    path = line.partition(" ")[2]
    server = there(VALUES, **{line: (status, {"location": other.url + path}, b"")})
    with pytest.raises(ProtocolError, match=other.url) as raised:
        run(server.url)
    assert not other.asked and KEY not in str(raised.value)
    assert all(headers["authorization"] == f"Bearer {KEY}" for _, headers in server.asked)


@pytest.mark.parametrize("place", ["http://[", "", "\x7f", "//", "javascript:alert(1)", "x" * 50_000])
def test_a_redirection_to_nowhere_is_an_error_of_ours(there, place):
    with pytest.raises(RemoteError) as raised:
        run(there(**{"GET /env": (302, {"location": place}, b"")}).url)
    assert len(str(raised.value)) < 2000


@pytest.mark.parametrize(
    "said",
    [
        b"",
        b"\x00" * 100,
        b"SSH-2.0-OpenSSH_9.6\r\n",
        b"HTTP/1.1",
        b"HTTP/1.1 999999 what\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nno colon\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 50_000,
        b"HTTP/1.1 200 OK\r\na: " + b"x" * MiB,
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nffffffffffffffff\r\nx",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: gzip\r\n\r\nx",
        b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\nabcdef",
        b"HTTP/1.1 200 OK\r\ncontent-length: 50\r\n\r\n{}",
        b"HTTP/1.1 101 Switching Protocols\r\n\r\n",
        b"HTTP/1.1 204 No Content\r\n\r\n",
    ],
)
def test_what_is_no_http_is_an_error_of_ours(said):
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def talk() -> None:
            with contextlib.suppress(OSError):
                while True:
                    one, _ = listening.accept()
                    with one:
                        one.recv(1 << 16)
                        one.sendall(said)

        threading.Thread(target=talk, daemon=True).start()
        try:
            with pytest.raises(RemoteError) as raised:
                run(f"http://127.0.0.1:{listening.getsockname()[1]}")
        finally:
            with contextlib.suppress(OSError):
                listening.shutdown(socket.SHUT_RDWR)
    assert KEY not in str(raised.value)


NDIF = {"python_version": "3.12.1 (main)", "packages": {"torch": torch.__version__, "nnsight": "0.8.1"}}


def test_nothing_is_compared_with_ndif_that_it_cannot_have(there):
    shown = str(ndif.compare(there(**{"GET /env": NDIF}).url))
    assert "torch" in shown and "python" in shown and "nnsight-core" not in shown and "nnsight-hf" not in shown
    assert "nnsight-core" in str(ndif.compare(there().url))


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("GET /env", {**NDIF, "packages": []}),
        ("GET /status", {"deployments": {"a": 1}}),
        ("GET /status", {"deployments": {"a": {"model_key": "x:" + "[" * 100_000}}}),
        ("GET /status", []),
        ("GET /whoami", {"email": "me", "tags": 7}),
        ("GET /whoami", {"email": "me", "tags": [1]}),
    ],
)
def test_what_ndif_says_in_another_form_is_an_error_of_ours(there, line, said):
    server = there(**{"GET /env": NDIF, "GET /status": {"deployments": {}}, line: said})
    with pytest.raises(ProtocolError):
        ndif.compare(server.url)
        ndif.status(server.url)
        ndif.whoami(server.url)


def test_ndif_may_say_nothing_of_its_python(there):
    ndif.compare(there(**{"GET /env": {**NDIF, "python_version": ""}}).url)


def archive(data: bytes, packed: int = zipfile.ZIP_DEFLATED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", packed) as zipped:
        zipped.writestr("archive/data.pkl", data)
    return file.getvalue()


def test_a_result_of_ndif_that_unpacks_to_more_than_it_may_is_refused(monkeypatch):
    monkeypatch.setattr(results, "MOST", MiB)
    for bomb in (zstandard.compress(bytes(32 * MiB)), archive(bytes(32 * MiB))):
        with pytest.raises(ProtocolError):
            results.decode(bomb)
    with pytest.raises(ProtocolError, match="more than it has bytes"):
        response.read(archive(bytes(32 * MiB)))


@pytest.mark.parametrize(
    "code",
    [b"", b".", b"(", b"N(t\x85R.", b"I" + b"9" * 5000 + b"\n.", b"cos\nsystem\n(S'x'\ntR.", b"\x8e" + b"\xff" * 8],
)
def test_a_pickle_of_ndif_that_is_none_is_an_error_of_ours(code):
    for read in (response.read, results.decode):
        with pytest.raises((RemoteError, WireError)):
            read(archive(code, zipfile.ZIP_STORED))
    with pytest.raises(ProtocolError):
        response.read("[" * 100_000)


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["1", -1, 10**30, "\ud800"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
VIEW: dict[str, Any] = {
    **serving()["GET /jobs/j1"],
    "submitted": 1.0,
    "result_bytes": len(VALUES),
    "streams": True,
    "failure": {"reason": "x", "message": "y", "type": "", "traceback": "", "encoded": False},
}
GOOD: dict[str, Any] = {
    "GET /env": {"protocol": 1, "python": "3.11.0", "packages": {"torch": "2"}, "models": {"mlp": {"packages": {}}}},
    "GET /status": {"version": "1", "uptime_seconds": 1.0, "trusted": False, "models": []},
    "GET /models": serving()["GET /models"],
    "GET /whoami": {"name": "me", "role": "user", "limits": {"request_bytes": 10**9}},
    "GET /jobs": [VIEW],
    "GET /jobs/j1": VIEW,
    "POST /request": VIEW,
    "events": event(),
    "result": {"kind": "result", "type": RESULTS["content-type"], "data": ""},
}


@pytest.fixture(scope="module")
def fickle() -> Iterator[Answering]:
    with answering({}) as server:
        yield server


@st.composite
def answers(draw: Any) -> tuple[str, Any]:
    """A place, and what is said there: anything, or what belongs there with anything in one of its fields."""
    line = draw(st.sampled_from(sorted(GOOD)))
    if draw(st.booleans()):
        return line, draw(JSON)
    said = here = copy.deepcopy(GOOD[line])
    while True:
        places = sorted(here) if isinstance(here, dict) else range(len(here))
        at = draw(st.sampled_from(list(places)))
        if not (isinstance(here[at], (dict, list)) and here[at] and draw(st.booleans())):
            here[at] = draw(JSON)
            return line, said
        here = here[at]


@settings(max_examples=100, deadline=None, database=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(answers(), st.sampled_from([200, 202, 404, 409, 500]))
def test_whatever_is_answered_is_a_value_or_an_error_of_ours(fickle, changed, status):
    line, said = changed
    fickle.answers.clear()
    fickle.answers.update({**serving(VALUES), **{name: one for name, one in GOOD.items() if " " in name}})
    events = told(said) if line in ("events", "result") else told(event())
    fickle.answers["GET /jobs/j1/events"] = (200, {}, events)
    if " " in line:
        fickle.answers[line] = (status, {}, said)
    handshake.forget()
    url, known = fickle.url, nnsight_remote.job("j1", fickle.url)
    ours = contextlib.suppress(RemoteError, WireError)
    with ours:
        assert torch.equal(run(url), torch.ones(3))
    for ask in (ndif.status, ndif.compare, ndif.jobs, ndif.whoami):
        with ours:
            str(ask(url)).encode()  # it can be printed
    with ours:
        assert ndif.is_model_running("mlp", url) in (True, False)
    with ours:
        assert known.look().state in ("queued", "running", "completed", "failed", "cancelled")
    with ours:
        known.cancel(0.0)
