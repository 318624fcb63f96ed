"""What became of a job, on its way out: events with the result at their end."""

from __future__ import annotations

import base64
import json
import time

import httpx
import pytest
import torch
from serving import SECONDS

from nnsight.plugin import decode_error, decode_results

X = torch.ones(2, 4)
EVENTS = {"accept": "text/event-stream"}


def told(answer: httpx.Response) -> list[dict]:
    """The events of an answer that is here."""
    assert answer.headers["content-type"].startswith("text/event-stream"), answer.text
    return [json.loads(line[6:]) for line in answer.text.splitlines() if line.startswith("data: ")]


@pytest.fixture
def block(model, encoded):
    with model.trace(X, backend=encoded):
        print("from the block")
        out = model.output.save()  # noqa: F841  # its name goes along
    return encoded.data


def test_whoever_waits_hears_everything_in_the_answer_to_the_request(user, block, model):
    answer = user.http.post("/request", params={"result": 10_000}, content=block, headers=EVENTS)
    *events, result = told(answer)
    job = answer.headers["location"].removeprefix("/jobs/")
    assert answer.status_code == 202 and {event["job"] for event in events} == {job}
    assert [event["text"] for event in events] == ["queued", "running", "from the block\n", "completed"]
    assert events == told(user.http.get(f"/jobs/{job}/events"))
    fetched = user.http.get(f"/jobs/{job}/result")
    assert (result["kind"], result["type"]) == ("result", fetched.headers["content-type"])
    assert base64.b64decode(result["data"]) == fetched.content
    (out,) = decode_results(fetched.content).values()
    assert torch.equal(out, model(X))


def test_a_request_sent_twice_hears_all_of_the_same_job(user, block):
    headers = {**EVENTS, "nnsight-request-id": "mine"}
    first, again = (user.http.post("/request", params={"result": 10_000}, content=block, headers=headers) for _ in "ab")
    assert (first.status_code, again.status_code) == (202, 200)
    assert told(first) == told(again) and len(user.http.get("/jobs").json()) == 1


def test_an_exception_comes_with_the_events_too(user, model, encoded):
    with model.trace(X, backend=encoded):
        model.output.save()
        1 / 0
    answer = user.http.post("/request", params={"result": 100_000}, content=encoded.data, headers=EVENTS)
    *_, last, result = told(answer)
    assert last["text"] == "failed" and result["type"] == "application/vnd.nnsight.error"
    assert isinstance(decode_error(base64.b64decode(result["data"])), ZeroDivisionError)


def test_a_result_comes_with_the_events_only_if_it_is_small_enough_and_wanted(user, block):
    job = user.wait(user.submit(block)["id"])
    for most, there in ((0, False), (job["result_bytes"] - 1, False), (job["result_bytes"], True)):
        last = told(user.http.get(f"/jobs/{job['id']}/events", params={"result": most}))[-1]
        assert (last["kind"] == "result") is there
    # That went out, and is noted a moment later, as if it had been fetched.
    deadline = time.monotonic() + SECONDS
    while "send" not in user.get(job["id"])["stages"] and time.monotonic() < deadline:
        pass
    assert user.get(job["id"])["expires"] < job["expires"]
    assert user.http.get(f"/jobs/{job['id']}/events", params={"result": 1 << 30}).status_code == 422


def test_a_job_without_a_result_ends_with_its_last_state(user, endless):
    with user.http.stream("POST", "/request", params={"result": 10_000}, content=endless, headers=EVENTS) as answer:
        lines = (line for line in answer.iter_lines() if line.startswith("data: "))
        for line in lines:
            if json.loads(line[6:])["text"] == "it runs\n":
                assert user.http.delete(answer.headers["location"]).status_code == 200
        assert json.loads(line[6:])["text"] == "cancelled"


def test_a_refused_request_is_refused_as_ever(user):
    answer = user.http.post("/request", content=b"nonsense", headers=EVENTS)
    assert (answer.status_code, answer.json()["reason"]) == (400, "wire")


def test_a_result_that_is_gone_from_the_disk_is_said_to_be(server, user, block):
    job = user.wait(user.submit(block)["id"])["id"]
    (server.store / "results" / job).unlink()
    answer = user.http.get(f"/jobs/{job}/result")
    assert (answer.status_code, answer.json()["reason"]) == (404, "job")
    assert told(user.http.get(f"/jobs/{job}/events", params={"result": 10_000}))[-1]["text"] == "completed"
