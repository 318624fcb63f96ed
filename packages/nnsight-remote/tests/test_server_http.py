"""The interface over HTTP: who may do what, what is refused and how, and what is never a failure of the server."""

from __future__ import annotations

import json

import httpx
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from serving import Client

X = torch.ones(2, 4)


@pytest.fixture
def block(model, encoded):
    with model.trace(X, backend=encoded):
        model.output.save()
    return encoded.data


def refusal(answer):
    said = answer.json()
    assert set(said) == {"reason", "message"} and said["message"], said
    return answer.status_code, said["reason"]


GUARDED = ["/status", "/env", "/whoami", "/metrics", "/models", "/jobs", "/jobs/x", "/jobs/x/result", "/jobs/x/events"]


@pytest.mark.parametrize("path", GUARDED)
@pytest.mark.parametrize("key", [None, "wrong", "nns_" + "A" * 43])
def test_without_a_key_nothing_is_said(server, path, key):
    answer = httpx.get(server.url + path, headers={"authorization": f"Bearer {key}"} if key else {})
    assert refusal(answer) == (401, "key") and answer.headers["www-authenticate"] == "Bearer"


def test_without_a_key_no_body_is_read(server):
    def endless():
        yield b"x"
        raise AssertionError("the server went on reading")

    answer = httpx.post(server.url + "/request", content=b"x" * 100_000, headers={"expect": "100-continue"})
    assert refusal(answer) == (401, "key")


def test_both_headers_for_a_key_are_taken(server):
    key = server.key("two headers")
    for header in ({"authorization": f"Bearer {key}"}, {"authorization": f"bearer  {key}"}, {"ndif-api-key": key}):
        assert httpx.get(server.url + "/whoami", headers=header).json()["name"] == "two headers"


def test_a_key_that_was_removed_lets_nobody_in(server, user):
    assert user.http.get("/whoami").status_code == 200
    server.key(user.http.get("/whoami").json()["name"])  # a new one, which voids the old
    assert refusal(user.http.get("/whoami")) == (401, "key")


def test_another_users_job_does_not_exist(server, user, block, request):
    other = server.user(request.node.name + " other")
    job = user.wait(user.submit(block)["id"])["id"]
    for answer in (
        other.http.get(f"/jobs/{job}"),
        other.http.get(f"/jobs/{job}/result"),
        other.http.get(f"/jobs/{job}/events"),
        other.http.delete(f"/jobs/{job}"),
    ):
        assert refusal(answer) == (404, "job")
    assert other.http.get("/jobs").json() == []
    assert [found["id"] for found in user.http.get("/jobs").json()] == [job]
    assert user.http.get(f"/jobs/{job}/result").status_code == 200
    admin = Client(server.url, server.admin)
    assert job in [found["id"] for found in admin.http.get("/jobs").json()]


def test_models_are_the_admins_business(server, user):
    assert refusal(user.http.post("/models", json={"name": "a", "source": "b"})) == (403, "role")
    assert refusal(user.http.delete("/models/served_models:mlp")) == (403, "role")
    admin = Client(server.url, server.admin).http
    assert refusal(admin.delete("/models/nothing")) == (404, "model")
    assert refusal(admin.post("/models", json={"name": "served_models:mlp", "source": "b"})) == (409, "model")
    assert refusal(admin.post("/models", json={"name": "a", "source": "b", "family": "os:system"})) == (422, "request")
    assert refusal(admin.post("/models", json={"name": "modèle", "source": "b"})) == (409, "model")
    remote_code = {"name": "a", "source": "b", "options": {"trust_remote_code": True}}
    assert refusal(admin.post("/models", json=remote_code)) == (403, "trust")


def test_a_request_sent_twice_is_one_job(user, block):
    first = user.http.post("/request", content=block, headers={"nnsight-request-id": "mine"})
    again = user.http.post("/request", content=block, headers={"nnsight-request-id": "mine"})
    assert (first.status_code, again.status_code) == (202, 200)
    assert first.json()["id"] == again.json()["id"]
    assert first.headers["location"] == f"/jobs/{first.json()['id']}"


def test_an_oversize_request_is_refused_before_it_is_read(server, request):
    user = server.user(request.node.name, request_bytes=1000)
    sent = []

    def body():
        for _ in range(100):
            sent.append(1)
            yield b"x" * 100

    announced = user.http.post("/request", content=b"x" * 1001)
    assert refusal(announced) == (413, "size") and "1000" in announced.json()["message"]
    assert refusal(user.http.post("/request", content=body())) == (413, "size")  # chunked: nothing was announced
    assert refusal(user.http.post("/request", content=b"x" * 1000)) == (400, "wire")  # its size is fine
    assert not [path for path in (server.store / "requests").iterdir() if path.stat().st_size > 1000]


def test_a_user_with_enough_in_the_queue_is_told_to_wait(server, request, model, encoded):
    user = server.user(request.node.name, queued=2)
    with model.trace(X, backend=encoded):
        while True:
            pass
    jobs = [user.submit(encoded.data)["id"] for _ in range(2)]
    answer = user.http.post("/request", content=encoded.data)
    assert refusal(answer) == (429, "queued") and answer.headers["retry-after"] == "1"
    waiting = user.get(jobs[1])
    assert (waiting["state"], waiting["position"]) == ("queued", 0)
    assert user.http.delete(f"/jobs/{jobs[1]}").json()["state"] == "cancelled"
    user.http.delete(f"/jobs/{jobs[0]}")
    assert user.wait(jobs[0])["state"] == "cancelled"


def test_a_user_who_is_too_fast_is_told_when_to_come_back(server, request, block):
    user = server.user(request.node.name, requests_per_minute=2)
    jobs = [user.submit(block)["id"] for _ in range(2)]
    answer = user.http.post("/request", content=block)
    assert refusal(answer) == (429, "rate") and 0 < int(answer.headers["retry-after"]) <= 60
    assert {user.wait(job)["state"] for job in jobs} == {"completed"}


def test_a_request_for_no_model_says_which_there_are(user, block):
    answer = user.http.post("/request", content=block, headers={"nnsight-model": "gpt9"})
    assert refusal(answer) == (404, "model") and "served_models:mlp" in answer.json()["message"]


def test_bytes_that_are_no_request_are_refused(user, block):
    changed = bytearray(block)
    changed[len(block) // 2] ^= 1
    for data in (b"this is no block", b"nnswire\n", block[:-1], block + b"x", bytes(changed)):
        assert refusal(user.http.post("/request", content=data)) == (400, "wire")


def test_an_empty_request_is_refused(user):
    assert refusal(user.http.post("/request", content=b"")) == (400, "request")


def test_a_result_is_fetched_as_often_as_it_is_wanted_and_in_parts(user, block):
    job = user.wait(user.submit(block)["id"])["id"]
    whole = user.http.get(f"/jobs/{job}/result")
    assert whole.headers["content-type"] == "application/vnd.nnsight.results"
    rest = user.http.get(f"/jobs/{job}/result", headers={"range": "bytes=3-"})
    assert rest.status_code == 206 and rest.content == whole.content[3:]
    # It is kept for a shorter time once it was fetched.
    assert user.get(job)["expires"] < user.get(job)["finished"] + 24 * 3600 - 60


def test_a_result_can_be_waited_for(user, block):
    answer = user.http.get(f"/jobs/{user.submit(block)['id']}/result", params={"wait": 60})
    assert answer.headers["content-type"] == "application/vnd.nnsight.results"


def test_a_finished_job_can_be_thrown_away(server, user, block):
    job = user.wait(user.submit(block)["id"])["id"]
    assert (server.store / "results" / job).exists()
    assert user.http.delete(f"/jobs/{job}").json()["state"] == "completed"
    assert refusal(user.http.get(f"/jobs/{job}")) == (404, "job")
    assert not (server.store / "results" / job).exists()


def test_a_result_that_is_not_there_says_why(user, block, model, encoded):
    with model.trace(X, backend=encoded):
        while True:
            pass
    job = user.submit(encoded.data)["id"]
    answer = user.http.get(f"/jobs/{job}/result")
    assert refusal(answer) == (409, "unfinished") and answer.headers["retry-after"]
    user.http.delete(f"/jobs/{job}")
    user.wait(job)
    assert refusal(user.http.get(f"/jobs/{job}/result")) == (409, "cancelled")


def test_events_go_on_from_the_last_that_was_seen(user, model, encoded):
    with model.trace(X, backend=encoded):
        print("one")
    job = user.wait(user.submit(encoded.data)["id"])["id"]
    events = list(user.follow(job))
    assert [event["number"] for event in events] == list(range(1, len(events) + 1))
    assert list(user.follow(job, after=2)) == events[2:]
    resumed = user.http.get(f"/jobs/{job}/events", headers={"last-event-id": "2"})
    assert [json.loads(line[6:]) for line in resumed.text.splitlines() if line.startswith("data: ")] == events[2:]


def test_the_server_says_what_it_is(server, user, block):
    user.wait(user.submit(block)["id"])
    status = user.http.get("/status").json()
    (model,) = status["models"]
    assert (model["name"], model["isolation"], status["trusted"]) == ("served_models:mlp", "fork", False)
    env = user.http.get("/env").json()
    assert env["packages"]["torch"] == torch.__version__ == env["models"]["served_models:mlp"]["packages"]["torch"]
    assert env["protocol"] == 1 and env["python"].count(".") == 2
    me = user.http.get("/whoami").json()
    assert (me["role"], me["limits"]["memory_bytes"]) == ("user", 512 << 20)
    numbers = user.http.get("/metrics").text
    assert 'nnsight_jobs_total{model="served_models:mlp",outcome="completed"}' in numbers
    assert me["name"] not in numbers
    assert httpx.get(server.url + "/ping").text == "pong"


def test_the_interface_describes_itself(server):
    schema = httpx.get(server.url + "/openapi.json").json()
    page = httpx.get(server.url + "/docs").text
    for path in ("/request", "/jobs/{id}", "/jobs/{id}/result", "/jobs/{id}/events", "/status", "/env", "/whoami"):
        assert path in schema["paths"] and path in page
    assert "http://" not in page and "https://" not in page, "the page fetches something from elsewhere"


def test_the_log_is_lines_of_json_without_keys_or_what_users_sent(server, user, model, encoded):
    with model.trace(X, backend=encoded):
        print("something private")
    user.wait(user.submit(encoded.data)["id"])
    lines = [json.loads(line) for line in server.logged().splitlines() if line.startswith("{")]
    assert {"a job came in", "a job ended"} <= {line["event"] for line in lines}
    assert "something private" not in server.logged() and "nns_" not in server.logged()


METHODS = st.sampled_from(["GET", "POST", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS"])
ROUTES = [
    "/",
    "/request",
    "/jobs",
    "/jobs/{}",
    "/jobs/{}/result",
    "/jobs/{}/events",
    "/models",
    "/models/{}",
    "/status",
]
TEXT = st.text(st.characters(codec="utf-8"), max_size=20)
HEADERS = st.dictionaries(
    st.sampled_from(["nnsight-model", "nnsight-request-id", "content-type", "last-event-id", "range", "accept"]),
    st.text('abc09-=:,;"{}%\xff', max_size=20),
    max_size=3,
)


@settings(
    max_examples=100, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(METHODS, st.sampled_from(ROUTES), TEXT, st.dictionaries(TEXT, TEXT, max_size=3), HEADERS, st.binary(max_size=99))
def test_nonsense_is_refused_and_never_a_failure(server, method, route, part, query, headers, body):
    key = {"authorization": f"Bearer {server.admin}"}
    encoded = {name: text.encode("latin-1") for name, text in headers.items()}
    path = route.format(httpx.QueryParams({"p": part or "x"})["p"].replace("/", "%2F").replace("?", "%3F") or "x")
    try:
        request = httpx.Request(method, server.url + path, params=query, headers={**encoded, **key}, content=body)
    except (httpx.InvalidURL, UnicodeEncodeError):
        return
    with httpx.Client(timeout=30) as client:
        answer = client.send(request)
    assert answer.status_code < 500, (answer.status_code, answer.text)
    if answer.status_code >= 400 and method != "HEAD":
        refusal(answer)
