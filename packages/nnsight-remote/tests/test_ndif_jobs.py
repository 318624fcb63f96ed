"""The conversation with NDIF: over real HTTP and sockets, with what can go wrong on the way."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Iterator

import pytest
import torch
from ndif_asking import VALUE, Named, There, ask, result
from ndif_serving import Ndif, serving

from nnsight import WireError
from nnsight_remote.client.address import Address
from nnsight_remote.client.connection import Connection
from nnsight_remote.client.errors import JobError, JobGoneError, KeyRefusedError, RefusedError, UnreachableError
from nnsight_remote.fabric.facts import NdifFacts
from nnsight_remote.fabric.model import check_key


@pytest.fixture(scope="module")
def server() -> Iterator[Ndif]:
    with serving() as found:
        yield found


@pytest.fixture
def ndif(server: Ndif) -> Iterator[Ndif]:
    yield server
    server.behave()


def test_a_job_is_followed_on_its_socket(ndif: Ndif) -> None:
    ndif.behave(outcome={"result": result(value=VALUE), "log": ["one", "two"]})
    there = There(ndif.url)
    assert torch.equal(ask(there), VALUE)
    told = [(event.kind, event.text) for event in there.events]
    states = ["queued", "dispatched", "running"]
    assert told == [*(("state", one) for one in states), ("log", "one\n"), ("log", "two\n"), ("state", "completed")]
    assert [event.number for event in there.events] == list(range(1, len(told) + 1))


def test_the_request_says_what_the_protocol_wants(ndif: Ndif) -> None:
    before = len(ndif.behave(outcome={"result": result(value=VALUE)}))
    ask(There(ndif.url, "a-key"))
    seen = ndif.behave()[before]
    envelope, headers = seen["envelope"], seen["headers"]
    key, said = envelope["model_key"].split(":", 1)
    assert key == "nnsight.modeling.transformers.TransformersModel"
    assert json.loads(said) == {"repo_id": "tests/tiny-gpt2", "revision": None, "task": "text-generation"}
    assert envelope["session_id"] and envelope["compress"] is True and envelope["env"] == {}
    assert headers["ndif-api-key"] == "a-key" and headers["nnsight-version"] == "0.8.1"
    assert headers["python-version"] == sys.version and float(headers["ndif-timestamp"]) > 1e9
    assert 0 < seen["size"] < 2048


def test_a_result_elsewhere_is_fetched_and_fetched_again(ndif: Ndif) -> None:
    ndif.behave(outcome={"result": result(value=VALUE)}, by_url=True, failing=2)
    there = There(ndif.url)
    assert torch.equal(ask(there), VALUE)
    assert there.loaded and there.loaded[-1][0] == there.loaded[-1][1] > 0


def test_a_job_that_nobody_waits_for_is_polled_from_anywhere(ndif: Ndif) -> None:
    ndif.behave(outcome={"result": result(value=VALUE)}, seconds=0.5)
    there = There(ndif.url, followed=False)
    assert torch.equal(ask(there), VALUE)
    other = There(ndif.url)
    assert other.jobs.look(there.job).state == "completed"
    assert torch.equal(other.jobs.fetch(there.job, lambda done, size: None, 10.0, False)["value"], VALUE)


@pytest.mark.parametrize("state", ["QUEUED", "RUNNING"])
def test_a_socket_that_breaks_loses_no_result_that_the_server_keeps(ndif: Ndif, state: str) -> None:
    ndif.behave(outcome={"result": result(value=VALUE)}, drop=state, keeps=True, seconds=0.5)
    there = There(ndif.url)
    assert torch.equal(ask(there), VALUE)
    assert there.events[-1].text == "completed"


def test_a_socket_that_breaks_where_nothing_is_kept_says_so(ndif: Ndif) -> None:
    ndif.behave(outcome={"error": "nobody hears this"}, drop="RUNNING", seconds=2)
    with pytest.raises(JobGoneError, match="blocking=False"):
        ask(There(ndif.url))


def test_a_silent_socket_is_a_sign_of_life(ndif: Ndif, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nnsight_remote.fabric.jobs._BEAT", 0.1)
    ndif.behave(outcome={"result": result(value=VALUE)}, seconds=0.5)
    there = There(ndif.url)
    ask(there)
    assert any(event.kind == "alive" and event.number == 0 for event in there.events)


@pytest.mark.parametrize("followed", [True, False])
def test_an_error_over_there_is_told(ndif: Ndif, followed: bool) -> None:
    ndif.behave(outcome={"error": "ValueError: too large"})
    there = There(ndif.url, followed=followed)
    with pytest.raises(JobError, match="too large"):
        ask(there)
    assert there.events[-1].text == "failed"


@pytest.mark.parametrize(
    ("status", "kind"), [(400, RefusedError), (401, KeyRefusedError), (403, KeyRefusedError), (500, RefusedError)]
)
def test_a_refusal_is_told_in_its_words(ndif: Ndif, status: int, kind: type[Exception]) -> None:
    ndif.behave(refuse=[status, "the reason is this"])
    with pytest.raises(kind, match="the reason is this"):
        ask(There(ndif.url))


def test_a_request_is_sent_once_however_it_ends(ndif: Ndif) -> None:
    before = len(ndif.behave(refuse=[503, "come back later"]))
    with pytest.raises(RefusedError, match="come back later"):
        ask(There(ndif.url))
    assert len(ndif.behave()) == before


def test_nobody_at_the_address() -> None:
    with pytest.raises(UnreachableError):
        ask(There("http://127.0.0.1:9"))


def test_a_result_that_would_run_code_is_refused(ndif: Ndif) -> None:
    ndif.behave(outcome={"result": result(value=io.StringIO)})
    with pytest.raises(WireError, match="neither a tensor nor a plain value"):
        ask(There(ndif.url))


def test_the_end_of_a_job_cannot_be_asked_for(ndif: Ndif) -> None:
    with pytest.raises(RefusedError, match="cannot end"):
        There(ndif.url).jobs.cancel("x")


def test_another_revision_or_task_is_another_model(ndif: Ndif) -> None:
    model = Named(torch.nn.Sequential(torch.nn.Linear(4, 4)))
    [key, *_] = [offer.name for offer in NdifFacts(Connection(Address(ndif.url))).offers()]
    assert check_key(model, key) == key
    for name, other in (("revision", "old"), ("task", "fill-mask")):
        said = {**json.loads(key.split(":", 1)[1]), name: other}
        with pytest.raises(WireError, match=f"load it with `{name}='{other}'`"):
            check_key(model, key.split(":", 1)[0] + ":" + json.dumps(said))


def test_what_ndif_is_and_has(ndif: Ndif) -> None:
    facts = NdifFacts(Connection(Address(ndif.url, "a-key")))
    offer, cold = facts.offers()
    assert cold.state == "cold" and not cold.is_ready
    assert offer.source == "tests/tiny-gpt2" and offer.is_ready and json.loads(offer.name.split(":", 1)[1])["task"]
    environment = facts.environment()
    assert environment.python == sys.version.split()[0] and environment.packages["torch"] == "2.13.0"
    assert facts.whoami()["name"] == "somebody@example.org" and facts.is_there()
    assert "nobody" in NdifFacts(Connection(Address(ndif.url))).whoami()["name"]
