"""Whatever is sent to a server, it answers soon, with a reason, and goes on serving.

What its own description allows and forbids is made up by schemathesis; what no description says (half a request, two
lengths, bodies without an end) is written into sockets. `NNSIGHT_FUZZ` says how many cases are tried; `nox -s fuzz` tries
thousands.
"""

from __future__ import annotations

import json
import os
import random
import re
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote, urlsplit

import httpx
import psutil
import pytest
import schemathesis
import served_models
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import response_schema_conformance, status_code_conformance
from serving import Client, Server

CASES = int(os.environ.get("NNSIGHT_FUZZ", "60"))
ANSWERED = 20.0  # seconds in which a server that is asked anything has said something
X = torch.ones(2, 4)
FUZZ: dict[str, Any] = {
    "deadline": None,
    "derandomize": "NNSIGHT_FUZZ" not in os.environ,
    "phases": [Phase.generate],
    "suppress_health_check": list(HealthCheck),
    "database": None,
}


@pytest.fixture(scope="module", autouse=True)
def goes_on(server: Server) -> Iterator[None]:
    """After all of this the server serves a block, has not grown, and no route has failed."""
    process = psutil.Process(server.process.pid)
    before, logged = process.memory_info().rss, len(server.logged())
    yield
    admin = httpx.Client(base_url=server.url, headers=bearer(server.admin), timeout=60)
    for view in admin.get("/models").json():
        if view["added"]:
            assert admin.delete(f"/models/{quote(view['name'], safe='')}", params={"forget": True}).status_code == 200
    model = served_models.mlp()
    with model.trace(X, backend=server.user("after the fuzz")):
        out = model.output.save()
    assert torch.equal(out, model(X))
    assert process.memory_info().rss < before + (100 << 20)
    said = server.logged()[logged:]
    failures = [line for line in said.splitlines() if "a route failed" in line or "Exception in ASGI" in line]
    assert not failures, failures


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"} if key else {}


# -- what the description says ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE])
@pytest.mark.parametrize("who", ["admin", "user", "nobody"])
def test_what_the_description_allows_and_forbids_is_answered_as_it_says(
    server: Server, user: Client, who: str, mode: GenerationMode
) -> None:
    schema = schemathesis.openapi.from_url(server.url + "/openapi.json")
    key = {"admin": server.admin, "user": user.http.headers["authorization"].partition(" ")[2], "nobody": ""}[who]
    checks = [not_a_server_error, status_code_conformance, response_schema_conformance]
    operations = [found.ok() for found in schema.get_all_operations()]
    for operation in operations:
        strategy = operation.as_strategy(generation_mode=mode)

        @settings(max_examples=max(2, CASES // len(operations) // 2), **FUZZ)
        @given(strategy)
        def try_it(case: Any) -> None:
            case.headers = {
                name: text for name, text in (case.headers or {}).items() if name.lower() != "authorization"
            }
            try:
                answer = case.call(headers=bearer(key), timeout=ANSWERED)
            except (ValueError, UnicodeError):
                return  # nothing that can be sent
            case.validate_response(answer, checks=checks)
            if answer.status_code >= 400 and case.method.upper() != "HEAD":
                assert {"reason", "message"} <= set(answer.json()), answer.text

        try:
            try_it()
        except Exception as error:
            if type(error).__name__ not in (
                "Unsatisfiable",
                "SkipTest",
            ):  # what takes nothing cannot be given what is wrong
                raise


# -- what it does not say --------------------------------------------------------------------------------------------


def say(server: Server, data: bytes, *, close: bool = True, seconds: float = ANSWERED) -> bytes:
    """Send bytes, and return what is answered until the server hangs up."""
    parts = urlsplit(server.url)
    with socket.create_connection((parts.hostname, parts.port), timeout=seconds) as line:
        heard = b""
        try:
            line.sendall(data)
            if close:
                line.shutdown(socket.SHUT_WR)
            while more := line.recv(1 << 16):
                heard += more
        except OSError as error:
            if isinstance(error, TimeoutError):
                raise
            # Otherwise it hung up in the middle of what was said.
        return heard


def statuses(heard: bytes) -> list[int]:
    return [int(found) for found in re.findall(rb"HTTP/1\.1 (\d{3}) ", heard)]


def check(heard: bytes, *, silent: bool = True) -> list[int]:
    """See that what was answered is no failure, and says why; the server may also just hang up."""
    found = statuses(heard)
    assert (found or silent) and all(status < 500 or status in (503, 507) for status in found), heard
    head, _, body = heard.partition(b"\r\n\r\n")
    if len(found) == 1 and found[0] >= 400 and b"chunked" not in head and body and b"/ws/" not in head:
        said = json.loads(body)
        assert isinstance(said, str) or {"reason", "message"} <= set(said) or "code" in said, heard
    return found


def request(line: str, key: str = "", *headers: str, body: bytes = b"") -> bytes:
    all_headers = ["host: x", *([f"authorization: Bearer {key}"] if key else []), *headers]
    return "\r\n".join([line, *all_headers, "", ""]).encode("latin-1") + body


MALFORMED = {
    "nothing": b"",
    "noise": bytes(range(256)) * 4,
    "no version": b"GET /ping\r\n\r\n",
    "no method": b"\r\n\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00" + bytes(200),
    "two lengths": request("POST /request HTTP/1.1", "", "content-length: 3", "content-length: 4", body=b"abcd"),
    "a length and chunks": request(
        "POST /request HTTP/1.1", "", "content-length: 3", "transfer-encoding: chunked", body=b"3\r\nabc\r\n0\r\n\r\n"
    ),
    "a negative length": request("POST /request HTTP/1.1", "", "content-length: -1"),
    "a huge length": request("POST /request HTTP/1.1", "", "content-length: " + "9" * 25),
    "a length that is no number": request("POST /models HTTP/1.1", "", "content-length: 1e3"),
    "a chunk of no size": request("POST /models HTTP/1.1", "", "transfer-encoding: chunked", body=b"zz\r\n"),
    "an unknown coding": request("POST /models HTTP/1.1", "", "transfer-encoding: gzip", body=b"x"),
    "a header without a colon": b"GET /ping HTTP/1.1\r\nhost x\r\n\r\n",
    "a folded header": b"GET /ping HTTP/1.1\r\nhost: x\r\na: b\r\n c\r\n\r\n",
    "no host": b"GET /status HTTP/1.1\r\n\r\n",
    "two hosts": b"GET /status HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n",
    "null in a header": b"GET /status HTTP/1.1\r\nhost: a\0b\r\n\r\n",
    "a header of a megabyte": request("GET /status HTTP/1.1", "", "x: " + "y" * (1 << 20)),
    "headers without an end": request("GET /status HTTP/1.1", "", *(f"h{n}: {n}" for n in range(50_000))),
    "a path of a megabyte": request(f"GET /{'a' * (1 << 20)} HTTP/1.1"),
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "HTTP/0.9": b"GET /\r\n",
    "CONNECT": request("CONNECT example.org:443 HTTP/1.1"),
    "a proxy's request": request("GET http://example.org/ HTTP/1.1"),
    "another method": request("BREW /status HTTP/1.1"),
    "half of a pair, then a request": request("GET /status HTTP/1.1") + b"GET /sta",
    "many at once": request("GET /ping HTTP/1.1") * 50,
}


@pytest.mark.parametrize("data", MALFORMED.values(), ids=MALFORMED)
def test_what_is_no_http_is_refused_or_hung_up_on(server: Server, data: bytes) -> None:
    check(say(server, data))


ENDLESS = {
    "a body that is not all there": ("content-length: 1000", b"x"),
    "chunks that do not end": ("transfer-encoding: chunked", b"1\r\nx\r\n" * 100),
    "a chunk that is not all there": ("transfer-encoding: chunked", b"ffffff\r\nxxx"),
}


@pytest.mark.parametrize("path", ["/request", "/models", "/ws/socket.io/?EIO=4&transport=polling", "/nowhere"])
@pytest.mark.parametrize("way", ENDLESS.values(), ids=ENDLESS)
def test_a_body_that_is_cut_short_is_no_failure(server: Server, path: str, way: tuple[str, bytes]) -> None:
    for key in ("", server.admin):
        check(say(server, request(f"POST {path} HTTP/1.1", key, way[0], "connection: close", body=way[1])))


@pytest.mark.parametrize("path", ["/models", "/ws/socket.io/?EIO=4&transport=polling", "/nowhere", "/jobs/x", "/ping"])
@pytest.mark.parametrize("key", [False, True])
def test_a_body_that_nobody_asked_for_is_not_read_to_its_end(server: Server, path: str, key: bool) -> None:
    head = request(f"POST {path} HTTP/1.1", server.admin if key else "", "transfer-encoding: chunked")
    heard = say(
        server,
        head + b"10000\r\n" + b"x" * (1 << 16) + b"\r\n" + b"10000\r\n" + b"x" * (1 << 16) + b"\r\n",
        close=False,
    )
    assert check(heard, silent=False)[0] == 413


def test_a_range_is_taken_if_it_is_one_and_there(server: Server, user: Client, model: Any) -> None:
    with model.trace(X, backend=user):
        out = model.output.save()
    path = f"/jobs/{user.job['id']}/result"
    whole = user.http.get(path).content
    for asked, status, content in [
        ("bytes=0-3", 206, whole[:4]),
        ("bytes=-4", 206, whole[-4:]),
        (f"bytes={len(whole) - 1}-", 206, whole[-1:]),
        (f"bytes={len(whole)}-", 416, None),
        ("bytes=-0", 416, None),
        *((odd, 200, whole) for odd in ("bytes=", "bytes=a-b", "bytes=5-2", "lines=1-2", "bytes=--1", "bytes=1-2,3-4")),
        ("bytes=" + ",".join(f"{n}-" for n in range(5000)), 200, whole),
        ("bytes=" + "9" * 40 + "-", 200, whole),
    ]:
        answer = user.http.get(path, headers={"range": asked})
        assert answer.status_code == status, (asked, answer.status_code, answer.text[:100])
        assert answer.json()["reason"] == "range" if content is None else answer.content == content


ODD_NUMBERS = [
    "nan",
    "inf",
    "-inf",
    "-1",
    "1e400",
    "9" * 30,
    "0x10",
    "1_0",
    "",
    " 1",
    "\u0661",
    "1;2",
    "null",
    "true",
    "-0",
]


def test_odd_numbers_are_refused_or_taken_and_never_a_failure(server: Server, user: Client, model: Any) -> None:
    with model.trace(X, backend=user):
        out = model.output.save()
    job = user.job["id"]
    for odd in ODD_NUMBERS:
        for path, name in [
            ("/jobs", "count"),
            (f"/jobs/{job}", "wait"),
            (f"/jobs/{job}/events", "after"),
            (f"/jobs/{job}/events", "result"),
        ]:
            answer = user.http.get(path, params={name: odd})
            assert answer.status_code in (200, 422), (path, odd, answer.status_code)
            twice = user.http.get(f"{path}?{name}={quote(odd)}&{name}=1&{name}")
            assert twice.status_code in (200, 422)
        answer = user.http.get(f"/jobs/{job}/events", headers={"last-event-id": odd.strip().encode("utf-8")})
        assert answer.status_code == 200


@pytest.mark.parametrize(
    "body",
    [
        *(b"", b"null", b"[]", b"{", b"\xff\xfe", b"[" * 30_000, b'{"a":' * 10_000, b"1" * 60_000, b'"\\ud800"'),
        b'{"name": "n", "source": "\\ud800"}',
        b'{"name": "n\\u0000", "source": "s"}',
        b'{"name": "n", "source": "s", "options": {"a": NaN}}',
        b'{"name": "n", "source": "s", "options": {"a": 1e999}}',
        b'{"name": "n", "source": "s", "options": {"\\udc00": "\\ud800"}}',
        b'{"name": "n", "source": "s", "options": {"a": ' + b"9" * 5000 + b"}}",
        b'{"name": "n", "source": "s", "options": ' + json.dumps({str(n): n for n in range(500)}).encode() + b"}",
        b'{"name": "n", "source": "s", "family": "__class__"}',
        b'{"name": ' + b'"n' + b"n" * 50_000 + b'", "source": "s"}',
    ],
)
def test_a_model_that_is_stated_oddly_is_refused(server: Server, body: bytes) -> None:
    for kind in ("application/json", "text/plain", "application/json; charset=utf-16", "multipart/form-data", ""):
        answer = httpx.post(
            server.url + "/models",
            content=body,
            headers={**bearer(server.admin), "content-type": kind},
            timeout=ANSWERED,
        )
        assert answer.status_code in (400, 409, 422), (kind, answer.status_code, answer.text)
        assert set(answer.json()) == {"reason", "message"}


PLACES = [
    "../../etc/passwd",
    "..%2f..%2fkeys",
    "%2e%2e/%2e%2e",
    "%00",
    "%ff%fe",
    "a" * 5000,
    "'; drop table jobs; --",
    "*",
    "%",
    "\\..\\x",
    "jobs.sqlite",
    "💥",
    "%u0041",
    ".",
]


@pytest.mark.parametrize("place", PLACES)
def test_paths_lead_nowhere_but_to_what_there_is(server: Server, place: str) -> None:
    raw = place if "%" in place else quote(place, safe="./")
    for method, path in [
        ("GET", "/jobs/{}"),
        ("GET", "/jobs/{}/result"),
        ("GET", "/jobs/{}/events"),
        ("DELETE", "/jobs/{}"),
        ("DELETE", "/models/{}"),
        ("GET", "/assets/{}"),
        ("GET", "/{}"),
    ]:
        heard = say(server, request(f"{method} {path.format(raw)} HTTP/1.1", server.admin, "connection: close"))
        (status,) = check(heard, silent=False)
        assert status in (400, 404, 405, 422) or (path, place) in [("/{}", "."), ("/jobs/{}", ".")], heard


def test_odd_headers_of_a_request_are_refused_or_taken(server: Server, user: Client) -> None:
    for name in ("nnsight-model", "nnsight-request-id", "accept", "content-type", "authorization", "content-length"):
        for value in (
            b"\xff\xfe",
            b"a" * 5000,
            b"'; drop table jobs; --",
            b"%00",
            b"\xc3\xa9",
            b"",
            b"1e3",
            b"Bearer",
            b"Basic eDp5",
        ):
            head = request(
                "POST /request HTTP/1.1",
                user.http.headers["authorization"][7:],
                "connection: close",
                "content-length: 3",
            )
            head = head[:-2] + name.encode() + b": " + value + b"\r\n\r\nabc"
            assert set(check(say(server, head))) <= {400, 401, 404, 413, 422, 429}


# -- slow ones -------------------------------------------------------------------------------------------------------


def test_heads_and_bodies_that_do_not_come_are_not_waited_for(tmp_path: Any) -> None:
    hurried = Server(tmp_path / "store", program="hurried")
    with hurried.running():
        key = hurried.admin
        slow = {
            "no head": b"",
            "half of a head": b"GET /ping HTTP/1.1\r\nhost:",
            "half of a second head": request("GET /ping HTTP/1.1") + b"GET /pi",
            "no body": request("POST /models HTTP/1.1", "", "content-length: 10", body=b"x"),
            "no job": request("POST /request HTTP/1.1", key, "content-length: 10", body=b"x"),
        }
        heard: dict[str, bytes] = {}
        threads = [
            threading.Thread(target=lambda name=name, data=data: heard.update({name: say(hurried, data, close=False)}))
            for name, data in slow.items()
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(ANSWERED)
        assert heard["no head"] == heard["half of a head"] == b""
        assert statuses(heard["half of a second head"]) == [200]
        assert statuses(heard["no body"]) == statuses(heard["no job"]) == [408]


def test_a_connection_that_is_dripped_into_hinders_nobody(server: Server) -> None:
    parts = urlsplit(server.url)
    lines = [socket.create_connection((parts.hostname, parts.port)) for _ in range(100)]
    try:
        for line in lines:
            line.sendall(b"POST /request HTTP/1.1\r\nhost: x\r\nx")
        began = time.monotonic()
        assert httpx.get(server.url + "/ping", timeout=ANSWERED).text == "pong"
        assert time.monotonic() - began < ANSWERED / 2
    finally:
        for line in lines:
            line.close()


# -- sockets ---------------------------------------------------------------------------------------------------------

SOCKETS = "/ws/socket.io/"


@pytest.mark.parametrize(
    "query",
    [
        "",
        "?EIO=4",
        "?EIO=3&transport=polling",
        "?EIO=4&transport=no",
        "?EIO=4&transport=polling&sid=x",
        "?EIO=4&transport=websocket",
        "?EIO=%ff&transport=polling&sid=%00",
        "?transport=polling&EIO=4&EIO=5",
    ],
)
def test_what_is_no_socket_io_is_refused(server: Server, query: str) -> None:
    for method in ("GET", "POST", "PUT", "OPTIONS", "DELETE"):
        check(
            say(
                server,
                request(
                    f"{method} {SOCKETS}{query} HTTP/1.1", "", "connection: close", "content-length: 3", body=b"abc"
                ),
            )
        )


PACKETS = [
    *(
        b"",
        b"x",
        b"9",
        b"4",
        b"40",
        b"41",
        b"42",
        b"42[]",
        b'42["follow"]',
        b"42{",
        b"4" + b"[" * 5000,
        b"40null",
        b"40[]",
        b'40{"key": 1}',
    ),
    *(
        b'420["follow", {"job": 1}]',
        b'420["follow", {"job": "x", "after": 1e99}]',
        b"45-9999999-[]",
        b"451-[]",
        b"\xff\xfe",
        b"6" * 9000,
    ),
    *(
        b"44",
        b"4499999",
        b"40/elsewhere,{}",
        b"2probe",
        b"5",
        b"1",
        b"\x1e".join([b"42[]"] * 100),
        b"bAAAA",
        b'42["connect"]',
        b'42["disconnect"]',
    ),
]


@pytest.mark.parametrize("packet", PACKETS)
def test_nonsense_over_polling_is_refused(server: Server, packet: bytes) -> None:
    with httpx.Client(base_url=server.url, timeout=ANSWERED) as http:
        opened = http.get(SOCKETS, params={"EIO": "4", "transport": "polling"})
        where = {"EIO": "4", "transport": "polling", "sid": json.loads(opened.text[1:])["sid"]}
        assert http.post(SOCKETS, params=where, content=packet).status_code < 500


def test_nonsense_over_websockets_is_refused(server: Server, user: Client) -> None:
    from websockets.exceptions import ConnectionClosed
    from websockets.sync.client import connect

    key = user.http.headers["authorization"][7:]
    for packet in PACKETS:
        with connect(
            server.url.replace("http", "ws") + SOCKETS + "?EIO=4&transport=websocket", open_timeout=ANSWERED
        ) as line:
            try:
                line.send("40" + json.dumps({"key": key}))
                line.send(packet)
                line.send(packet.decode("latin-1"))
                line.send('420["follow", {"job": "x", "after": %s}]' % ("9" * 40))
                while True:
                    line.recv(timeout=0.02)
            except (ConnectionClosed, TimeoutError):
                continue


# -- changed at random -----------------------------------------------------------------------------------------------

GOOD = [
    ("GET /jobs?count=3 HTTP/1.1", b""),
    ("GET /jobs/x/events?after=0&result=9 HTTP/1.1", b""),
    ("GET /jobs/x/result?wait=0 HTTP/1.1", b""),
    ("DELETE /models/x?forget=true HTTP/1.1", b""),
    ("POST /models HTTP/1.1", b'{"name": "n", "source": "s:t", "options": {"a": 1.5}}'),
    ("POST /request HTTP/1.1", b"nnswire\n\1\0\0\0" + bytes(30)),
    ("GET /ws/socket.io/?EIO=4&transport=polling HTTP/1.1", b""),
]


@given(seed=st.integers(0, 2**60))
@settings(max_examples=CASES * 2, **FUZZ)
def test_requests_that_were_changed_are_answered(server: Server, seed: int) -> None:
    chance = random.Random(seed)
    line, body = chance.choice(GOOD)
    headers = ["connection: close", f"content-length: {len(body)}", "nnsight-model: m", "range: bytes=0-3"]
    data = bytearray(request(line, chance.choice((server.admin, "")), *headers, body=body))
    for _ in range(chance.choice((1, 2, 3, 8))):
        at = chance.randrange(len(data))
        cut = chance.choice((0, 0, 1, 5))
        data[at : at + cut] = chance.choice(
            (
                chance.randbytes(chance.randrange(4)),
                b"\r\n",
                b"\0",
                b"%",
                b"..",
                b"9" * 30,
                data[: chance.randrange(60)],
                b"\xff",
            )
        )
    check(say(server, bytes(data)))
