"""The conversation with NDIF in its older protocol: over real HTTP and socket.io, with what can go wrong on the way."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator

import ndif_asking
import pytest
import torch
from ndif_asking import VALUE, Named, ask, result
from ndif_serving import OLDER_SERVER, Ndif, serving

import nnsight_remote
from nnsight import WireError
from nnsight_remote import ndif as facts
from nnsight_remote.client.address import Address
from nnsight_remote.client.errors import (
    JobError,
    JobGoneError,
    KeyRefusedError,
    ProtocolError,
    RefusedError,
    UnreachableError,
)
from nnsight_remote.client.handshake import forget, speak
from nnsight_remote.fabric.jobs import NdifJobs
from nnsight_remote.fabric.older.events import Events
from nnsight_remote.fabric.older.jobs import OlderJobs, key_of


@pytest.fixture(scope="module")
def server() -> Iterator[Ndif]:
    with serving(server=OLDER_SERVER) as found:
        yield found


@pytest.fixture
def ndif(server: Ndif) -> Iterator[Ndif]:
    yield server
    server.behave()
    forget()


class There(ndif_asking.There):
    """Runs blocks over the older protocol."""

    speaks = OlderJobs


def test_a_job_is_followed_over_socket_io(ndif: Ndif) -> None:
    ndif.behave(outcome={"result": result(value=VALUE), "log": ["one", "one"]})
    there = There(ndif.url)
    assert torch.equal(ask(there), VALUE)
    told = [(event.kind, event.text) for event in there.events if event.number]
    states = ["queued", "dispatched", "running"]
    assert told == [*(("state", one) for one in states), ("log", "one\n"), ("log", "one\n"), ("state", "completed")]


def test_the_request_says_what_the_older_protocol_wants(ndif: Ndif) -> None:
    before = len(ndif.behave(outcome={"result": result(value=VALUE)}))
    ask(There(ndif.url, "a-key"))
    headers = ndif.behave()[before]["headers"]
    assert headers["ndif-api-key"] == "a-key" and headers["nnsight-version"] == "0.7.0"
    assert headers["ndif-session_id"] and headers["nnsight-compress"] == "True"
    assert headers["python-version"] == sys.version.replace("\n", " ")
    assert 0 < ndif.behave()[before]["size"] < 2048


def test_a_job_that_nobody_waits_for_is_polled_from_anywhere(ndif: Ndif) -> None:
    ndif.behave(outcome={"result": result(value=VALUE), "log": ["printed"]}, seconds=0.5)
    there = There(ndif.url, followed=False)
    assert torch.equal(ask(there), VALUE)
    assert "ndif-session_id" not in ndif.behave()[-1]["headers"]
    other = There(ndif.url)
    assert other.jobs.look(there.job).state == "completed"
    assert torch.equal(other.jobs.fetch(there.job, lambda done, size: None, 10.0, False)["value"], VALUE)


def test_a_connection_that_breaks_loses_no_result_that_the_server_keeps(ndif: Ndif) -> None:
    ndif.behave(outcome={"result": result(value=VALUE)}, drop="RUNNING", keeps=True, seconds=0.5)
    there = There(ndif.url)
    assert torch.equal(ask(there), VALUE)
    assert there.events[-1].text == "completed"


def test_a_connection_that_breaks_where_nothing_is_kept_says_so(ndif: Ndif) -> None:
    ndif.behave(outcome={"error": "nobody hears this"}, drop="RUNNING", seconds=2)
    with pytest.raises(JobGoneError, match="blocking=False"):
        ask(There(ndif.url))


def test_a_result_whose_place_fails_at_first_is_fetched(ndif: Ndif) -> None:
    ndif.behave(outcome={"result": result(value=VALUE)}, failing=2)
    assert torch.equal(ask(There(ndif.url)), VALUE)


@pytest.mark.parametrize("followed", [True, False])
def test_an_error_over_there_is_told(ndif: Ndif, followed: bool) -> None:
    ndif.behave(outcome={"error": "ValueError: too large"})
    there = There(ndif.url, followed=followed)
    with pytest.raises(JobError, match="too large"):
        ask(there)
    assert there.events[-1].text == "failed"


def test_nothing_that_the_server_sends_is_run_here(ndif: Ndif) -> None:
    ndif.behave(outcome={"result": result(value=VALUE)}, stream=True)
    with pytest.raises(ProtocolError, match="to be run here"):
        ask(There(ndif.url))
    ndif.behave(outcome={"result": result(value=io.StringIO)})
    with pytest.raises(WireError, match="neither a tensor nor a plain value"):
        ask(There(ndif.url))


@pytest.mark.parametrize(("status", "kind"), [(400, RefusedError), (401, KeyRefusedError), (500, RefusedError)])
def test_a_refusal_is_told_in_its_words(ndif: Ndif, status: int, kind: type[Exception]) -> None:
    ndif.behave(refuse=[status, "the reason is this"])
    with pytest.raises(kind, match="the reason is this"):
        ask(There(ndif.url))


def test_nobody_at_the_address() -> None:
    with pytest.raises(UnreachableError, match="refused"):
        ask(There("http://127.0.0.1:9"))


def test_a_connection_that_is_closed_is_noticed_at_once(ndif: Ndif) -> None:
    there = There(ndif.url)
    events = Events.open(ndif.url, {})
    assert events.session
    events.close()
    events.close()
    with pytest.raises(Exception, match="closed"):
        events.receive(30.0)
    with pytest.raises(RefusedError, match="cannot end"):
        there.jobs.cancel("x")


@pytest.mark.parametrize("unnamed", [False, True])
def test_what_it_speaks_is_found_out_by_its_nnsight_or_by_asking(ndif: Ndif, unnamed: bool) -> None:
    ndif.behave(unnamed=unnamed)
    assert type(speak(Address(ndif.url)).jobs) is OlderJobs


def test_a_server_of_today_is_none_of_before() -> None:
    with serving() as today:
        assert type(speak(Address(today.url)).jobs) is NdifJobs


def test_what_it_is_and_has(ndif: Ndif) -> None:
    [offer] = facts.status(ndif.url)
    assert offer.source == "tests/tiny-gpt2" and offer.is_ready
    assert facts.is_model_running("tests/tiny-gpt2", ndif.url)
    assert "nnsight (0.7)" in speak(Address(ndif.url)).facts.environment().packages
    with pytest.raises(RefusedError, match="whose key"):
        facts.whoami(ndif.url)


def test_a_block_runs_by_what_a_server_says_of_itself(ndif: Ndif) -> None:
    ndif.behave(outcome={"result": result(value=VALUE)})
    assert torch.equal(ask(nnsight_remote.RemoteBackend(ndif.url, quiet=True)), VALUE)


def test_another_revision_is_another_model() -> None:
    model = Named(torch.nn.Sequential(torch.nn.Linear(4, 4)))
    key = key_of(model, "")
    assert key == 'nnsight.modeling.language.LanguageModel:{"repo_id": "tests/tiny-gpt2", "revision": null}'
    assert key_of(model, key.replace("null", '"main"')) == key.replace("null", '"main"')
    with pytest.raises(WireError, match="load it with `revision='old'`"):
        key_of(model, key.replace("null", '"old"'))
