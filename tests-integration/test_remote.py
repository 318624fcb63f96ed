"""`remote=`: a language model without weights here, on a server that has them."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch

import nnsight
from nnsight import CONFIG, LanguageModel, ndif

pytest.importorskip("fastapi", reason="the extra [server] of nnsight-remote is not installed")
TOY = "nnsight/toy-landmarks"
PROMPT = "The Eiffel Tower is in the city of"


@pytest.fixture(scope="module", autouse=True)
def there(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server with the toy under another name, which is found by what it was loaded from."""
    store = tmp_path_factory.mktemp("remote") / "store"
    line = [sys.executable, "-m", "nnsight", "serve", f"toy={TOY}", f"spare={TOY}-of-others", "--port", "0"]
    process = subprocess.Popen(
        [*line, "--store", str(store), "--threads", "1"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    with pytest.MonkeyPatch.context() as patch:
        try:
            patch.setattr(CONFIG.API, "HOST", process.stdout.readline().split(" at ")[1].split()[0])
            patch.setattr(CONFIG.API, "APIKEY", process.stdout.readline().split(": ")[1].strip())
            patch.setattr(CONFIG.APP, "REMOTE_LOGGING", False)
            yield CONFIG.API.HOST
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(60)
            process.stdout.close()


@pytest.fixture
def lazy() -> LanguageModel:
    """A model without its weights; they must not be loaded."""
    model = LanguageModel(TOY)
    yield model
    assert not model.dispatched


@pytest.fixture(scope="module")
def here() -> LanguageModel:
    return LanguageModel(TOY, dispatch=True)


def close(one: torch.Tensor, other: torch.Tensor) -> None:
    torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_a_trace_of_several_prompts(lazy, here):
    with lazy.trace(remote=True) as tracer:
        with tracer.invoke(PROMPT):
            hidden = lazy.transformer.h[0].output.save()
        with tracer.invoke([PROMPT + " the", "The"]):
            lazy.transformer.h[0].output[:] = 0
            logits = lazy.lm_head.output.save()
    with here.trace() as tracer:
        with tracer.invoke(PROMPT):
            hidden_here = here.transformer.h[0].output.save()
        with tracer.invoke([PROMPT + " the", "The"]):
            here.transformer.h[0].output[:] = 0
            logits_here = here.lm_head.output.save()
    close(hidden, hidden_here)
    close(logits, logits_here)


def test_generation(lazy, here):
    with lazy.generate(PROMPT, max_new_tokens=3, remote=True) as tracer:
        states = nnsight.save([])
        for _ in tracer.iter[:]:
            states.append(lazy.lm_head.output[:, -1])
        written = tracer.result.save()
    assert len(states) == 3 and torch.equal(written, here.generate(PROMPT, max_new_tokens=3))


def test_an_edit_and_a_session_travel_along(lazy, here):
    found = []
    for model, where in ((lazy, True), (here, None)):
        with model.edit() as edited:
            model.transformer.h[1].output[:] *= 0.5
        with edited.session(remote=where):
            with edited.trace("The Colosseum is in the city of"):
                rome = edited.transformer.h[0].output
            with edited.trace(PROMPT):
                edited.transformer.h[0].output[:, 1:3] = rome[:, 1:3]
                logits = edited.lm_head.output.save()
        found.append(logits)
    close(*found)


def test_jobs_that_are_not_waited_for(lazy, here):
    async def both() -> list[dict]:
        with lazy.trace(PROMPT, remote=True, blocking=False) as one:
            logits = lazy.lm_head.output.save()
        with lazy.generate(PROMPT, max_new_tokens=2, remote=True, blocking=False) as other:
            written = other.result.save()
        return await asyncio.gather(one, other)

    traced, generated = asyncio.run(both())
    with here.trace(PROMPT):
        logits = here.lm_head.output
    close(traced["logits"], logits)
    assert torch.equal(generated["written"], here.generate(PROMPT, max_new_tokens=2))


def test_what_is_known_of_the_server(lazy):
    assert [offer.name for offer in ndif.status()] == ["toy", "spare"]
    assert ndif.is_model_running(TOY) and ndif.is_model_running(lazy) and not ndif.is_model_running("spare")
    assert not [row for row in ndif.compare(model="toy") if row is not None and row.matters]


def test_an_error_of_the_block(lazy):
    with pytest.raises(nnsight.OutOfOrderError) as raised, lazy.trace(PROMPT, remote=True):
        lazy.transformer.h[1].output
        lazy.transformer.h[0].output
    assert __file__ in "".join(raised.value.__notes__)
