"""What travels between machines is packed where that pays, in both directions, and cannot burst what unpacks it."""

from __future__ import annotations

import io

import httpx
import pytest
import torch
import zstandard
from answering import answering, serving
from cutting import proxy_to
from serving import SECONDS

from nnsight import CONFIG, NNsight
from nnsight.plugin import decode_results, encode_results
from nnsight.testing.models import MLP, seeded
from nnsight_remote import ProtocolError, RemoteBackend, packed
from nnsight_remote.client.address import Address

X = torch.ones(2, 4)
ZSTD = {"content-encoding": "zstd"}
REGULAR, NOISE = torch.arange(100_000) % 7, torch.randn(50_000, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def elsewhere(monkeypatch):
    """Let servers on this machine count as being on another."""
    monkeypatch.setattr(Address, "is_this_machine", False)
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setattr(CONFIG.APP, "REMOTE_LOGGING", False)


@pytest.fixture
def block(model, encoded):
    text = "a text that repeats itself " * 1000
    with model.trace(X, backend=encoded):
        size = len(text)
        out = model.output.save()  # noqa: F841  # its name goes along
    return encoded.data


def squeezed(data: bytes) -> bytes:
    return zstandard.ZstdCompressor().compress(data)


def refusal(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["reason"]


@pytest.mark.parametrize(
    ("data", "worth"),
    [(b"x" * 100_000, True), (b"x" * (packed.LEAST - 1), False), (NOISE.numpy().tobytes(), False)],
)
def test_what_does_not_shrink_or_is_small_is_left_alone(data, worth):
    assert packed.pays(io.BytesIO(data), len(data)) is worth


@pytest.mark.parametrize("size", [packed.LEAST, 100_000, 3_000_000])
def test_what_was_packed_is_unpacked(size):
    data, target, back = bytes(i % 251 for i in range(size)), io.BytesIO(), io.BytesIO()
    packed.pack(io.BytesIO(data), size, target)
    target.seek(0)
    assert packed.unpack(target, back) == size and back.getvalue() == data


def test_more_than_what_is_allowed_is_neither_held_nor_written():
    target = io.BytesIO()
    with pytest.raises(packed.TooLarge):
        packed.unpack(io.BytesIO(squeezed(bytes(1 << 30))), target, 1_000_000)
    assert len(target.getvalue()) <= 1_000_000


def test_bytes_that_lie_about_their_size_are_refused():
    honest = squeezed(b"x" * 100_000)
    assert zstandard.get_frame_parameters(honest).content_size == 100_000
    for lying in (honest[:4] + b"\x00" + honest[5:], b"nonsense", b""):
        with pytest.raises(packed.PackedWrongly):
            packed.unpack(io.BytesIO(lying), io.BytesIO())


def test_a_packed_request_is_the_request(user, block, model):
    answer = user.http.post("/request", content=squeezed(block), headers=ZSTD)
    job = user.wait(answer.json()["id"])
    assert torch.equal(user.result(job["id"])["out"], model(X))
    assert job["request_bytes"] == len(block) > 10 * len(squeezed(block))


def test_a_request_that_bursts_its_limit_is_refused_and_not_unpacked(server, request):
    user = server.user(request.node.name, request_bytes=1_000_000)
    bomb = squeezed(bytes(1 << 30))
    assert len(bomb) < 100_000
    answer = user.http.post("/request", content=bomb, headers=ZSTD)
    assert refusal(answer) == (413, "size") and "1000000" in answer.json()["message"]
    assert not list((server.store / "requests").glob("*.unpacked"))


@pytest.mark.parametrize("content", [b"nonsense", squeezed(b"x" * 1000)[:-5], squeezed(b"nonsense"), squeezed(b"")])
def test_what_is_packed_wrongly_is_refused(user, content):
    status, reason = refusal(user.http.post("/request", content=content, headers=ZSTD))
    assert status == 400 and reason in ("encoding", "wire")


def test_another_encoding_is_refused(user, block):
    answer = user.http.post("/request", content=block, headers={"content-encoding": "gzip"})
    assert refusal(answer) == (415, "encoding")


def test_a_result_is_packed_for_whoever_takes_that_and_only_if_it_pays(server, user, model, encoded):
    regular, noise = REGULAR, NOISE
    jobs = []
    for value in (regular, noise):
        with model.trace(X, backend=encoded):
            saved = value.clone().save()  # noqa: F841  # its name goes along
        jobs.append(user.wait(user.submit(encoded.data)["id"])["id"])
    for job, value, small in zip(jobs, (regular, noise), (True, False), strict=True):
        plain = user.http.get(f"/jobs/{job}/result", headers={"accept-encoding": "identity"})
        assert "content-encoding" not in plain.headers and plain.headers["vary"] == "accept-encoding"
        for accepted in ("zstd", "gzip, zstd;q=0.5"):
            with user.http.stream("GET", f"/jobs/{job}/result", headers={"accept-encoding": accepted}) as answer:
                raw = b"".join(answer.iter_raw())
            assert (answer.headers.get("content-encoding") == "zstd") is small is (len(raw) < len(plain.content) / 2)
            back = zstandard.ZstdDecompressor().decompress(raw) if small else raw
            assert back == plain.content and torch.equal(decode_results(back)["saved"], value)
        refused = user.http.get(f"/jobs/{job}/result", headers={"accept-encoding": "zstd;q=0"})
        assert "content-encoding" not in refused.headers
    path = server.store / "results" / f"{jobs[0]}.packed"
    assert path.exists() and user.http.delete(f"/jobs/{jobs[0]}").status_code == 200 and not path.exists()


def test_to_another_machine_a_block_goes_packed_and_so_comes_its_result(server, elsewhere, monkeypatch, request):
    monkeypatch.setattr(CONFIG.API, "APIKEY", server.key(request.node.name))
    regular, model = REGULAR, NNsight(seeded(MLP))
    with proxy_to(server.url) as proxy:
        with model.trace(X, backend=RemoteBackend(proxy.url, model="served_models:mlp")):
            there = (regular + 1).save()
        assert torch.equal(there, REGULAR + 1) and proxy.passed < there.nbytes / 4


def test_a_packed_download_goes_on_where_it_was_cut(server, elsewhere, monkeypatch, request):
    monkeypatch.setattr(CONFIG.API, "APIKEY", server.key(request.node.name))
    model = NNsight(seeded(MLP))
    with proxy_to(server.url) as proxy:
        backend = RemoteBackend(proxy.url, model="served_models:mlp", blocking=False)
        with model.trace(X, backend=backend) as job:
            tokens = (torch.arange(500_000) * 7919 % 50_257).save()
        job.wait(SECONDS)
        before = proxy.passed
        proxy.cut(f"GET /jobs/{job.id}/events", -1)
        proxy.cut(f"GET /jobs/{job.id}/result", 200_000, 300_000, 100)
        assert torch.equal(job.result(SECONDS)["tokens"], torch.arange(500_000) * 7919 % 50_257)
        assert proxy.is_done and proxy.passed - before < 500_000 * 8 // 2


@pytest.mark.filterwarnings("ignore:versions differ")
@pytest.mark.parametrize(
    ("encoding", "data"),
    [
        ("zstd", b"nonsense"),
        ("br", b""),
        ("zstd", zstandard.ZstdCompressor(write_content_size=False).compress(b"x" * 99)),
    ],
)
def test_a_result_that_is_packed_wrongly_is_refused(elsewhere, monkeypatch, encoding, data):
    monkeypatch.setattr(CONFIG.API, "APIKEY", "a-key")
    kind = {"content-type": "application/vnd.nnsight.results", "content-encoding": encoding}
    with answering(serving(**{"GET /jobs/j1/result": (200, kind, data)})) as there:
        with pytest.raises(ProtocolError):
            with NNsight(seeded(MLP)).trace(X, backend=RemoteBackend(there.url)) as tracer:
                tracer.result.save()


@pytest.mark.filterwarnings("ignore:versions differ")
def test_a_packed_result_is_the_result(elsewhere, monkeypatch):
    monkeypatch.setattr(CONFIG.API, "APIKEY", "a-key")
    kind = {"content-type": "application/vnd.nnsight.results", "content-encoding": "zstd"}
    values = squeezed(encode_results({"out": REGULAR}))
    with answering(serving(**{"GET /jobs/j1/result": (200, kind, values)})) as there:
        model = NNsight(seeded(MLP))
        with model.trace(X, backend=RemoteBackend(there.url)):
            out = model.output.save()
    assert torch.equal(out, REGULAR)
