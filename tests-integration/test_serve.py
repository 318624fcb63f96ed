"""`nnsight serve` with a language model: the command, a key, and blocks that give there what they give here."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import httpx
import pytest
import torch

import nnsight
from nnsight import LanguageModel
from nnsight.plugin import Request, decode_error, decode_results, encode_request

pytest.importorskip("fastapi", reason="the extra [server] of nnsight-remote is not installed")
TOY = "nnsight/toy-landmarks"
PROMPT = "The Eiffel Tower is in the city of"


class Sending:
    """Sends a block to the server and waits for what it saved."""

    def __init__(self, url: str, key: str) -> None:
        self._http = httpx.Client(base_url=url, headers={"authorization": f"Bearer {key}"}, timeout=90)

    def run(self, request: Request) -> dict:
        job = self._http.post("/request", content=encode_request(request)).json()
        while job["state"] not in ("completed", "failed", "cancelled"):
            job = self._http.get(f"/jobs/{job['id']}", params={"wait": 60}).json()
        answer = self._http.get(f"/jobs/{job['id']}/result")
        if job["state"] != "completed":
            raise decode_error(answer.content) if answer.status_code == 200 else AssertionError(answer.text)
        return decode_results(answer.content)


@pytest.fixture(scope="module", params=["1", "2"], ids=["one thread", "two threads"])
def there(request, tmp_path_factory):
    line = [sys.executable, "-m", "nnsight", "serve", f"toy={TOY}", "--port", "0", "--threads", request.param]
    process = subprocess.Popen(
        [*line, "--store", str(tmp_path_factory.mktemp("serve") / "store")],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    try:
        said = process.stdout.readline()
        url = said.split(" at ")[1].split()[0]
        key = process.stdout.readline().split(": ")[1].strip()
        yield Sending(url, key)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)
        process.stdout.close()


@pytest.fixture(scope="module")
def model():
    return LanguageModel(TOY)


def test_a_block_on_several_prompts(model, there):
    found = []
    for backend in (there, None):
        with model.trace(backend=backend) as tracer:
            with tracer.invoke(PROMPT):
                hidden = model.transformer.h[0].output.save()
            with tracer.invoke([PROMPT + " the", "The"]):
                model.transformer.h[0].output[:] = 0
                logits = model.lm_head.output.save()
        found.append((hidden, logits))
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-5)


def test_generation_step_by_step(model, there):
    found = []
    for backend in (there, None):
        with model.generate(PROMPT, max_new_tokens=3, backend=backend) as tracer:
            states = nnsight.save([])
            for _ in tracer.iter[:]:
                states.append(model.lm_head.output[:, -1])
            written = tracer.result.save()
        found.append((states, written))
    assert torch.equal(found[0][1], found[1][1]) and len(found[0][0]) == 3
    torch.testing.assert_close(found[0][0], found[1][0], rtol=1e-5, atol=1e-5)


def test_gradients_and_an_error(model, there):
    with model.trace(PROMPT, backend=there):
        hidden = model.transformer.h[0].output
        with model.lm_head.output.sum().backward():
            grad = hidden.grad.save()
    assert grad.shape[-1] == model.config.n_embd and grad.abs().sum() > 0
    with pytest.raises(nnsight.OutOfOrderError):
        with model.trace(PROMPT, backend=there):
            model.transformer.h[1].output
            model.transformer.h[0].output
