"""vLLM's own server with standing edits: a process on the loopback, the openai client, and transformers with hooks."""

from __future__ import annotations

import multiprocessing
import os
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import openai
import pytest
import torch
from plain_tokens import hooked, tokens_of

from nnsight_vllm.model import VLLM

pytestmark = pytest.mark.timeout(300)  # a server starts in the first of them

KEY = "the administrator's"
ADMIN = {"Authorization": f"Bearer {KEY}"}
PROMPTS = [[5, 6, 7, 8], [9, 10], [number % 80 + 4 for number in range(60)]]
#: Asked of the server for each request: the tokens themselves, and as many as are asked for.
GREEDY = {"temperature": 0, "max_tokens": 6, "extra_body": {"ignore_eos": True, "return_token_ids": True}}


@pytest.fixture(scope="module")
def kind():
    return "gpt2"


@pytest.fixture(scope="module")
def vector():
    return torch.randn(128, generator=torch.Generator().manual_seed(3)) * 4


@pytest.fixture(scope="module")
def edits(folder, plain, vector, tmp_path_factory):
    """Files with edits, which need no engine to be written."""
    files = tmp_path_factory.mktemp("edits")
    model = VLLM(str(folder), dtype="float32", max_model_len=256)
    with model.edit() as calm:
        model.transformer.h[1].output[:] += vector
    with model.edit() as wild:
        model.transformer.h[2].output = model.transformer.h[2].output * -2
    with model.edit() as broken:
        if model.transformer.h[0].output.shape[0] == 1:
            raise LookupError("one row only")
    for name, edited in {"calm": calm, "wild": wild, "broken": broken}.items():
        edited.save_edits(files / name)
    return files


def _serve(arguments, environment, log):
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.environ.update(environment)
    from vllm.v1.engine import utils

    from nnsight_vllm.command import serve

    # The engine is a fork of the server, which has imported all that takes long to import.
    utils.get_mp_context = lambda: multiprocessing.get_context("fork")

    serve(arguments)


@pytest.fixture(scope="module")
def address(folder, edits, tmp_path_factory):
    """The address of a server, from `nnsight vllm-serve`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp("log") / "server"
    sizes = {"max-model-len": 256, "max-num-batched-tokens": 128, "max-num-seqs": 8, "block-size": 32}
    arguments = [str(folder), "--host=127.0.0.1", f"--port={port}", "--served-model-name=tiny", "--dtype=float32"]
    arguments += [f"--{name}={size}" for name, size in sizes.items()] + ["--num-gpu-blocks-override=40"]
    arguments.append("--chat-template={% for message in messages %}{{ message['content'] }} {% endfor %}")
    arguments += [f"--edit=calm={edits / 'calm'}", f"--edit=rows={edits / 'calm'},tokenwise"]
    environment = {"NNSIGHT_ADMIN_KEY": KEY}
    process = multiprocessing.get_context("fork").Process(target=_serve, args=(arguments, environment, str(log)))
    process.start()
    address = f"http://127.0.0.1:{port}"
    try:
        _await(process, f"{address}/health", log)
        yield address
    finally:
        process.terminate()
        process.join(30)
        if process.is_alive():
            process.kill()


def _await(process, url, log):
    until = time.monotonic() + 240
    ended = threading.Event()
    with httpx.Client(verify=False) as client:  # noqa: S501  # plain HTTP: certificates are costly to read
        while process.is_alive() and time.monotonic() < until:
            try:
                if client.get(url).status_code == 200:
                    return
            except httpx.TransportError:
                ended.wait(0.5)
    raise AssertionError(f"the server did not start:\n{log.read_text()[-6000:]}")


@pytest.fixture
def client(address):
    return openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)


def asking(*names):
    return (
        {**GREEDY, "extra_body": {**GREEDY["extra_body"], "vllm_xargs": {"nnsight": list(names)}}} if names else GREEDY
    )


def complete(client, prompt, *names):
    return client.completions.create(model="tiny", prompt=prompt, **asking(*names)).choices[0].token_ids


@pytest.fixture(scope="module")
def calm(plain, vector):
    with hooked(plain.transformer.h[1], lambda output: output + vector):
        return [tokens_of(plain, prompt, 6) for prompt in PROMPTS]


@pytest.fixture(scope="module")
def unsteered(plain):
    return [tokens_of(plain, prompt, 6) for prompt in PROMPTS]


def test_requests_that_name_an_edit_have_it_and_those_beside_them_do_not(client, calm, unsteered):
    assert calm != unsteered
    asked = [(prompt, names) for names in ((), ("calm",), ("rows",)) for prompt in PROMPTS] * 2
    with ThreadPoolExecutor(8) as pool:
        got = list(pool.map(lambda one: complete(client, one[0], *one[1]), asked))
    assert got == (unsteered + calm + calm) * 2


def test_a_stream_of_an_edited_request_is_what_it_gives_at_once(client, calm, unsteered):
    for names, wanted in ((("calm",), calm), ((), unsteered)):
        stream = client.completions.create(model="tiny", prompt=PROMPTS[0], stream=True, **asking(*names))
        tokens = [token for chunk in stream for choice in chunk.choices for token in choice.token_ids or ()]
        assert tokens == wanted[0]


def test_a_chat_can_have_an_edit(client, plain, vector):
    answer = client.chat.completions.create(
        model="tiny", messages=[{"role": "user", "content": "w3 w9 w27"}], **asking("calm")
    )
    assert answer.prompt_token_ids == [7, 13, 31]
    with hooked(plain.transformer.h[1], lambda output: output + vector):
        assert answer.choices[0].token_ids == tokens_of(plain, answer.prompt_token_ids, 6)


@pytest.mark.parametrize("stream", [False, True])
def test_a_name_that_is_not_there_is_a_bad_request_and_the_server_goes_on(client, unsteered, stream):
    with pytest.raises(openai.BadRequestError, match="No edit 'angry' is installed on this engine; there are: 'calm'"):
        client.completions.create(model="tiny", prompt=PROMPTS[0], stream=stream, **asking("angry"))
    with pytest.raises(openai.BadRequestError, match="the name of a standing edit, or a list of names"):
        client.completions.create(model="tiny", prompt=PROMPTS[0], stream=stream, **asking(3))
    assert complete(client, PROMPTS[0]) == unsteered[0]


def test_fields_that_are_ours_to_write_are_refused_in_requests(client, unsteered):
    for mine in ({"nnsight_salt": "mine"}, {"nnsight_trace": ["none", 0]}, {"nnsight_trace": 3}):
        body = {**GREEDY["extra_body"], "vllm_xargs": mine}
        with pytest.raises(openai.BadRequestError, match="is written by nnsight itself"):
            client.completions.create(model="tiny", prompt=PROMPTS[2], **{**GREEDY, "extra_body": body})
    assert complete(client, PROMPTS[2]) == unsteered[2]


def test_edits_are_installed_and_removed_while_the_server_runs(address, client, edits, plain, unsteered):
    url = f"{address}/nnsight/edits/wild"
    with httpx.Client(headers=ADMIN) as admin:
        made = admin.put(url, content=(edits / "wild").read_bytes(), params={"every": "true"})
        assert made.status_code == 200 and made.json()["every"] is True
        try:
            assert [one["name"] for one in admin.get(f"{address}/nnsight/edits").json()["edits"]] == [
                "calm",
                "rows",
                "wild",
            ]
            with hooked(plain.transformer.h[2], lambda output: output * -2):
                wanted = [tokens_of(plain, prompt, 6) for prompt in PROMPTS]
            assert wanted != unsteered
            assert [complete(client, prompt) for prompt in PROMPTS] == wanted
        finally:
            assert admin.delete(url).status_code == 200
        assert admin.delete(url).status_code == 400
        assert admin.put(url, content=b"no edits").status_code == 400
        assert admin.post(url).status_code == 405
    assert [complete(client, prompt) for prompt in PROMPTS] == unsteered


def test_nobody_else_may_install_one(address, edits):
    for headers in ({}, {"Authorization": "Bearer guessed"}):
        answer = httpx.put(f"{address}/nnsight/edits/wild", content=(edits / "wild").read_bytes(), headers=headers)
        assert answer.status_code == 401
    assert httpx.get(f"{address}/nnsight/edits").status_code == 401


@pytest.mark.parametrize("tokenwise", ["false", "true"])
def test_an_edit_that_raises_ends_its_own_request_and_its_sender_hears_what(
    address, client, edits, unsteered, tokenwise
):
    url = f"{address}/nnsight/edits/broken"
    with httpx.Client(headers=ADMIN) as admin:
        admin.put(url, content=(edits / "broken").read_bytes(), params={"tokenwise": tokenwise}).raise_for_status()
        try:
            with ThreadPoolExecutor(2) as pool:
                beside = pool.submit(complete, client, PROMPTS[1])
                with pytest.raises(openai.InternalServerError, match="raised LookupError: one row only"):
                    complete(client, PROMPTS[0], "broken")
                assert beside.result() == unsteered[1]
            with pytest.raises(openai.APIError, match="raised LookupError: one row only"):
                list(client.completions.create(model="tiny", prompt=PROMPTS[0], stream=True, **asking("broken")))
        finally:
            admin.delete(url).raise_for_status()


def test_a_prompt_that_an_edit_could_not_see_whole_is_a_bad_request(client, plain, vector):
    prompt = [number % 80 + 4 for number in range(150)]
    with pytest.raises(openai.BadRequestError, match="150 tokens, and the engine takes 128 in one step"):
        complete(client, prompt, "calm")
    with hooked(plain.transformer.h[1], lambda output: output + vector):
        assert complete(client, prompt, "rows") == tokens_of(plain, prompt, 6)
