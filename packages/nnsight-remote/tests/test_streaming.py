"""Saved values that arrive while the block runs."""

from __future__ import annotations

import asyncio
import base64
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import served_models
import socketio
import torch
from cutting import proxy_to
from serving import SECONDS, Client, Server

import nnsight
import nnsight_remote
from nnsight import CONFIG
from nnsight.testing.reference import Hooked
from nnsight_remote import JobCancelledError, JobError, Piece, RefusedError, RemoteBackend, StreamCutError

X = torch.linspace(-1, 1, 12).reshape(3, 4)
STEPS = 5


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    models = ["mlp=served_models:mlp", "generating=served_models:generating"]
    store = tmp_path_factory.mktemp("streaming") / "store"
    with Server(store, "--room", "2", "--limit", "memory_bytes=1G", models=models).running() as server:
        yield server


@pytest.fixture(autouse=True)
def key(server: Server, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Be a user that no other test knows."""
    key = server.key(request.node.name[:100])
    monkeypatch.setattr(CONFIG.API, "HOST", server.url)
    monkeypatch.setattr(CONFIG.API, "APIKEY", key)
    monkeypatch.setattr(CONFIG.APP, "REMOTE_LOGGING", False)
    return key


@pytest.fixture
def model() -> Any:
    return served_models.mlp()


@pytest.fixture
def generating() -> Any:
    return served_models.generating()


@pytest.fixture
def steps(generating) -> list[torch.Tensor]:
    """What the first module gives in each step, by plain hooks."""
    with torch.no_grad():
        return Hooked(generating._module, lambda: generating._module.generate(X, STEPS)).outputs["first"]


def streaming(model: str = "mlp", host: str | None = None) -> RemoteBackend:
    return RemoteBackend(host, model=model, stream=True)


def generate(generating: Any, host: str | None = None) -> Any:
    """Send a block that saves something in each step."""
    with generating.trace(X, STEPS, fn="generate", backend=streaming("generating", host)) as run:
        seen = nnsight.save([])
        for _ in run.iter[:]:
            seen.append(generating.first.output)
        end = run.result.save()
    return run


def assembled(pieces: Any) -> dict[str, Any]:
    """What the pieces make when they are put together."""
    values: dict[str, Any] = {}
    for piece in pieces:
        piece.put_into(values)
    return values


def same(one: Any, other: Any) -> bool:
    """Whether two values are the same bit for bit."""
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


def test_each_step_of_a_generation_is_a_piece_and_all_of_them_are_the_result(generating, steps):
    job = generate(generating)
    pieces = list(job.stream())
    assert [(piece.name, piece.at) for piece in pieces] == [
        ("seen", ()),
        *[("seen", (n,)) for n in range(STEPS)],
        ("end", ()),
    ]
    assert pieces[0].value == [] and same([piece.value for piece in pieces[1:-1]], steps)
    assert same(assembled(pieces), job.result()) and same(job.result()["seen"], steps)


def test_values_arrive_while_the_block_runs(model):
    with model.trace(X, backend=streaming()) as job:
        first = model.embed.output.save()
        kept = nnsight.save([model.layers[0].output])
        kept.append(model.layers[1].output)
        model.output
        while True:  # it is not finished before it is cancelled
            pass
    stream = job.stream()
    pieces = [next(stream) for _ in range(3)]
    assert job.status == "running"
    hooked = Hooked(model._module, lambda: model._module(X))
    assert [(piece.name, piece.at) for piece in pieces] == [("first", ()), ("kept", ()), ("kept", (1,))]
    assert torch.equal(pieces[0].value, hooked["embed"]) and torch.equal(pieces[1].value[0], hooked["layers.0"])
    assert torch.equal(pieces[2].value, hooked["layers.1"])
    job.cancel()
    with pytest.raises(JobCancelledError):
        next(stream)


def test_in_the_order_of_events_a_value_stands_before_what_the_block_prints_next(model, key, server):
    with model.session(backend=streaming()) as job:
        for number in range(3):
            with model.trace(X):
                out = (model.output + number).save()
            print("after", number)
    pieces = [(piece.number, piece.value) for piece in job.stream()]
    user = nnsight_remote.job(job.id)
    user.wait()
    printed = user.log
    assert printed == "after 0\nafter 1\nafter 2\n" and job.log == printed
    assert [number for number, _ in pieces] == sorted({number for number, _ in pieces})
    assert all(torch.equal(value, model(X) + n) for n, (_, value) in enumerate(pieces)) and len(pieces) == 3


def test_lists_and_dicts_in_one_another_grow_by_their_items(model):
    with model.session(backend=streaming()) as job:
        found = nnsight.save({"head": [], "layers": {}})
        for number in range(2):
            with model.trace(X * (number + 1)):
                for n, layer in enumerate(model.layers):
                    found["layers"].setdefault(n, []).append(layer.output)
                found["head"].append(model.head.output)
        found["count"] = 2
    pieces = list(job.stream())
    places = [piece.at for piece in pieces]
    assert places[0] == () and ("head", 1) in places and ("layers", 2, 1) in places and places[-1] == ("count",)
    assert len(set(places)) == len(places)
    assert same(assembled(pieces), job.result())


def test_a_name_that_is_bound_to_another_saved_value_is_told_again(model):
    with model.session(backend=streaming()) as job:
        for number in range(3):
            with model.trace(X):
                last = (model.output * number).save()
    pieces = list(job.stream())
    assert [(piece.name, piece.at) for piece in pieces] == [("last", ())] * 3
    assert same([piece.value for piece in pieces], [model(X) * number for number in range(3)])
    assert same(assembled(pieces), job.result())


def test_a_list_that_has_become_shorter_is_told_as_a_whole(model):
    with model.session(backend=streaming()) as job:
        window = nnsight.save([])
        for number in range(4):
            window.append(number)
            if number == 2:
                window.clear()
            with model.trace(X):
                model.output
    pieces = [(piece.at, piece.value) for piece in job.stream()]
    assert pieces == [((), [0]), ((1,), 1), ((), []), ((0,), 3)]
    assert job.result() == {"window": [3]}


def test_names_of_invokes_arrive_while_they_run(model):
    with model.trace(backend=streaming()) as run:
        with run.invoke(X):
            one = nnsight.save([model.embed.output])
            one.append(model.layers[2].output)
        with run.invoke(X * 2):
            two = model.layers[1].output.save()
    pieces = list(run.stream())
    assert [(piece.name, piece.at) for piece in pieces] == [("one", ()), ("two", ()), ("one", (1,))]
    assert same(assembled(pieces), dict(run.result()))


def test_what_is_changed_afterwards_is_in_the_result_only(model):
    with model.session(backend=streaming()) as job:
        with model.trace(X):
            kept = nnsight.save([model.output])
        with torch.no_grad():
            kept[0][:] = 0
        with model.trace(X):
            model.output
    (piece,) = job.stream()
    assert torch.equal(piece.value[0], model(X)) and torch.equal(job.result()["kept"][0], torch.zeros_like(model(X)))


def test_an_error_comes_after_all_that_was_saved_before(model):
    with model.trace(X, backend=streaming()) as job:
        kept = nnsight.save([])
        kept.append(model.embed.output)
        1 / 0
    stream, pieces = job.stream(), []
    with pytest.raises(ZeroDivisionError):
        for piece in stream:
            pieces.append(piece)
    assert [piece.at for piece in pieces] == [(), (0,)]


def test_a_value_that_cannot_travel_is_an_error_where_it_is_saved(model):
    with model.trace(X, backend=streaming()) as job:
        first = model.embed.output.save()
        number = (n for n in range(3))
        nnsight.save(number)
        model.output
        print("not reached")
    with pytest.raises(nnsight.WireError, match="number"):
        list(job.stream())
    assert job.log == ""


def test_a_large_value_is_fetched_by_itself(model, server):
    with proxy_to(server.url) as proxy:
        with model.trace(X, backend=streaming(host=proxy.url)) as job:
            small = model.embed.output.save()
            large = torch.arange(300_000).save()
        proxy.cut(f"GET /jobs/{job.id}/values/", 100_000, 700_000)
        pieces = list(job.stream())
        fetched = [line for line in proxy.seen if "/values/" in line]
        result = job.result()
    assert [piece.name for piece in pieces] == ["small", "large"] and proxy.cuts == 2
    assert torch.equal(pieces[1].value, torch.arange(300_000)) and same(assembled(pieces), result)
    assert len(fetched) == 3 and len(set(fetched)) == 1


@pytest.mark.parametrize("after", [0, 300, 1500, 2500, 4000])
def test_a_connection_that_breaks_loses_nothing_and_doubles_nothing(generating, steps, server, after):
    with proxy_to(server.url) as proxy:
        job = generate(generating, proxy.url)
        proxy.cut(f"GET /jobs/{job.id}/events", after, after, after + 1000)
        pieces = list(job.stream())
    assert [piece.at for piece in pieces] == [(), *[(n,) for n in range(STEPS)], ()]
    assert same(assembled(pieces)["seen"], steps) and proxy.cuts


def test_a_stream_is_taken_up_behind_a_piece_and_in_another_process(generating, server, key):
    job = generate(generating)
    stream = job.stream()
    first = [next(stream) for _ in range(3)]
    stream.close()
    rest = list(nnsight_remote.job(job.id).stream(after=first[-1].number))
    assert same(assembled([*first, *rest]), job.result())
    program = """
        import sys
        import nnsight_remote
        pieces = list(nnsight_remote.job(sys.argv[1], sys.argv[2], key=sys.argv[3]).stream())
        print([(piece.name, piece.at, piece.number) for piece in pieces])
    """
    command = [sys.executable, "-c", textwrap.dedent(program), job.id, server.url, key]
    there = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=True).stdout
    assert there.strip() == str([(piece.name, piece.at, piece.number) for piece in [*first, *rest]])


def test_several_streams_are_heard_at_once(generating, steps):
    async def seen(job: Any) -> list[Piece]:
        return [piece async for piece in job.stream()]

    async def several() -> list[list[Piece]]:
        return await asyncio.gather(*(seen(generate(generating)) for _ in range(3)))

    for pieces in asyncio.run(several()):
        assert same(assembled(pieces)["seen"], steps)


def test_whoever_gives_up_waiting_for_a_piece_does_not_lose_it(model):
    with model.trace(X, backend=streaming()) as job:
        first = model.embed.output.save()
        while True:
            model.output

    async def impatient() -> str:
        stream = job.stream()
        task = asyncio.ensure_future(anext(stream))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return (await anext(stream)).name

    try:
        assert asyncio.run(impatient()) == "first"
    finally:
        job.cancel()


def test_a_job_that_was_not_asked_to_says_so(model):
    with model.trace(X, backend=RemoteBackend(model="mlp", blocking=False)) as job:
        out = model.output.save()
    with pytest.raises(RefusedError, match="stream=True"):
        next(job.stream())
    assert torch.equal(job.result()["out"], model(X))


def test_a_block_that_hands_over_too_much_goes_on_and_its_result_is_whole(model, server, monkeypatch):
    monkeypatch.setattr(CONFIG.API, "APIKEY", server.key("much", stream_bytes=100_000))
    with model.session(backend=streaming()) as job:
        many = nnsight.save([])
        for number in range(20):
            many.append(torch.full((4000,), float(number)))
            with model.trace(X):
                model.output
    pieces = []
    with pytest.raises(StreamCutError, match="100000 bytes"):
        for piece in job.stream():
            pieces.append(piece)
    assert [piece.at for piece in pieces] == [(), *[(n,) for n in range(1, len(pieces))]] and 3 < len(pieces) < 8
    values = job.result()["many"]
    assert same(values, [torch.full((4000,), float(number)) for number in range(20)])
    details = job.look().details
    assert 0 < details["streamed_bytes"] <= 100_000
    assert (server.store / "values" / job.id).stat().st_size == details["streamed_bytes"]


def test_a_value_that_is_larger_than_a_file_may_be_is_told_of(model, server, monkeypatch):
    monkeypatch.setattr(CONFIG.API, "APIKEY", server.key("large", result_bytes=100_000))
    with model.trace(X, backend=streaming()) as job:
        kept = nnsight.save([torch.zeros(100_000)])
        model.output
        kept.clear()
    with pytest.raises(StreamCutError, match="larger than a file may be"):
        list(job.stream())
    assert job.result() == {"kept": []}


def test_what_a_block_writes_into_its_own_pipe_is_its_own_affair(model):
    with model.trace(X, backend=streaming()) as job:
        model.output
        import os

        for file in range(3, 30):
            try:
                os.write(file, b"nonsense\n" * 10)
            except OSError:
                pass
    with pytest.raises((StreamCutError, JobError, ImportError)):
        list(job.stream())


def test_what_was_handed_over_is_thrown_away_with_its_job(generating, server):
    job = generate(generating)
    list(job.stream())
    file = server.store / "values" / job.id
    assert file.stat().st_size == job.look().details["streamed_bytes"] > 0
    job._jobs._connection.ask("DELETE", f"/jobs/{job.id}")
    assert not file.exists()


def test_nothing_is_kept_of_a_job_that_does_not_stream(model, server):
    with model.trace(X, backend=RemoteBackend(model="mlp", blocking=False)) as job:
        kept = nnsight.save([model.embed.output])
    job.wait()
    assert not (server.store / "values" / job.id).exists() and job.look().details["streams"] is False
    assert {event.kind for event in job._jobs.watch(job.id, 0, SECONDS, values=True)} == {"state"}


def test_a_job_that_is_run_again_hands_over_everything_again(model, tmp_path, monkeypatch):
    server = Server(tmp_path / "store", models=["mlp=served_models:mlp"])
    with server.running():
        monkeypatch.setattr(CONFIG.API, "APIKEY", server.admin)
        with proxy_to(server.url) as proxy:
            with model.trace(X, backend=streaming(host=proxy.url)) as job:
                kept = nnsight.save([model.embed.output])
                kept.append(model.layers[0].output)
                while True:
                    model.output
            stream = job.stream()
            before = [next(stream) for _ in range(2)]
            server.kill()
            server.start()
            proxy.lead_to(server.url)
            again = [next(stream) for _ in range(2)]
            assert [piece.at for piece in before] == [piece.at for piece in again] == [(), (1,)]
            assert again[0].number > before[-1].number and same(assembled(before), assembled(again))
            # What the first attempt handed over is gone: whoever comes now gets it once.
            late = job.stream()
            assert [next(late).number for _ in range(2)] == [piece.number for piece in again]
            job.cancel()


def test_values_are_events_over_socket_io_too_and_files_over_http(generating, server, key):
    job = generate(generating)
    values = {piece.number: piece.value for piece in job.stream()}
    heard, ended = [], threading.Event()
    follower = socketio.Client()
    follower.on("event", heard.append)
    follower.on("end", lambda said: ended.set())
    follower.connect(server.url, auth={"key": key}, socketio_path="/ws/socket.io", transports=["websocket"])
    try:
        follower.call("follow", {"job": job.id, "values": 100_000}, timeout=SECONDS)
        assert ended.wait(SECONDS)
    finally:
        follower.disconnect()
    user, told = Client(server.url, key), [event for event in heard if event["kind"] == "value"]
    assert [event["number"] for event in told] == list(values)
    for event in told:
        answer = user.http.get(f"/jobs/{job.id}/values/{event['number']}")
        assert base64.b64decode(event["data"]) == answer.content and len(answer.content) == event["bytes"]
        assert same(nnsight.plugin.decode_message(answer.content)[1]["value"], values[event["number"]])
    assert user.http.get(f"/jobs/{job.id}/values/1").status_code == 404  # that event is no value
    assert server.user("somebody else").http.get(f"/jobs/{job.id}/values/{told[0]['number']}").status_code == 404
