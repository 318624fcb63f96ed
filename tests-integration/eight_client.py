"""A user of nnsight 0.8.1, unmodified: runs blocks on a server of ours and here, and says how the two compare.

Run by `test_eight.py` in a Python where that version is installed and nothing of this repository. Arguments: the address of
the server, a key, the folder of the model, the name that the server calls it by. Writes a line of JSON for each case: its
name, and what was wrong.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
import traceback
from typing import Any

import torch
from nnsight.intervention.backends.remote import AsyncRemoteBackend, RemoteBackend, RemoteError
from nnsight.modeling import huggingface
from nnsight.modeling.transformers import TransformersModel

import nnsight
from nnsight import CONFIG

URL, KEY, FOLDER, NAME = sys.argv[1:5]
CONFIG.API.HOST, CONFIG.API.APIKEY, CONFIG.APP.REMOTE_LOGGING = URL, KEY, False
huggingface._ID_CACHE[FOLDER] = NAME  # the hub is asked what a model is called there, and there is no hub here
model = TransformersModel(FOLDER, task="text-generation", dispatch=True)
renamed = TransformersModel(FOLDER, task="text-generation", dispatch=True, rename={"transformer.h": "layers"})
PROMPT = "w1 w2 w3"
SCALE = 3.0


def equal(one: Any, other: Any) -> bool:
    """Whether two results are the same, bit for bit."""
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, (list, tuple)):
        return type(one) is type(other) and len(one) == len(other) > 0 and all(map(equal, one, other))
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    return type(one) is type(other) and bool(one == other)


def scaled(value: Any, by: float = 1.0) -> Any:
    """A function of the user's, which uses a global."""
    return value * by * SCALE


class Doubling(torch.nn.Module):
    """A module of the user's."""

    def forward(self, value: Any) -> Any:
        return value * 2


CASES: list[Any] = []


def same(block: Any) -> Any:
    """A case: a block gives there what it gives here."""

    def case() -> None:
        theirs, ours = block(True), block(False)
        assert equal(theirs, ours), (theirs, ours)

    case.__name__ = block.__name__
    CASES.append(case)
    return block


def case(function: Any) -> Any:
    CASES.append(function)
    return function


@same
def a_layer_is_read(remote: bool) -> Any:
    with model.trace(PROMPT, remote=remote):
        hidden = model.transformer.h[1].output.save()
    return hidden


@same
def values_are_changed(remote: bool) -> Any:
    with model.trace(PROMPT, remote=remote):
        model.transformer.h[0].output[:, 1] = 0
        model.transformer.h[1].output = model.transformer.h[1].output * 2
        logits = model.lm_head.output.save()
    return logits


@same
def invokes_share_a_forward(remote: bool) -> Any:
    with model.trace(remote=remote) as tracer:
        with tracer.invoke("w1 w2 w3"):
            first = model.transformer.h[0].output[:, -1].save()
        with tracer.invoke(["w4", "w5 w6"]):
            model.transformer.h[0].output[:] *= 2
            second = model.lm_head.output[:, -1].save()
        with tracer.invoke():
            whole = model.lm_head.output.save()
    return first, second, whole


@same
def a_value_goes_from_one_invoke_to_another(remote: bool) -> Any:
    with model.trace(remote=remote) as tracer:
        barrier = tracer.barrier(2)
        with tracer.invoke("w1 w2 w3"):
            embeddings = model.transformer.wte.output
            barrier()
        with tracer.invoke("w7 w8 w9"):
            barrier()
            model.transformer.wte.output = embeddings
            logits = model.lm_head.output.save()
    return logits


@same
def generation_is_walked_by_steps(remote: bool) -> Any:
    with model.generate(PROMPT, max_new_tokens=4, min_new_tokens=4, do_sample=False, remote=remote) as tracer:
        picked = nnsight.save([])
        for step in tracer.iter[:3]:
            if step == 1:
                model.transformer.h[0].output[:] = 0
            picked.append(model.lm_head.output[:, -1].argmax(-1))
        ids = tracer.result.save()
    return picked, ids


@same
def generation_is_walked_to_its_end(remote: bool) -> Any:
    with model.generate(PROMPT, max_new_tokens=3, min_new_tokens=3, do_sample=False, remote=remote) as tracer:
        seen = nnsight.save([])
        for _ in tracer.iter[:]:
            seen.append(model.transformer.h[1].output[:, -1])
    return seen


@same
def a_session_is_one_job(remote: bool) -> Any:
    with model.session(remote=remote):
        with model.trace(PROMPT):
            hidden = model.transformer.h[0].output
        total = 0
        for factor in (1, 2):
            with model.trace("w4 w5 w6"):
                model.transformer.h[0].output = hidden * factor
                logits = model.lm_head.output
            total = total + logits
        total.save()
        with model.generate(PROMPT, max_new_tokens=2, min_new_tokens=2, do_sample=False) as tracer:
            ids = tracer.result.save()
    return total, ids


@same
def gradients(remote: bool) -> Any:
    with model.trace(PROMPT, remote=remote):
        hidden = model.transformer.h[0].output
        loss = model.lm_head.output.sum()
        with loss.backward():
            grad = hidden.grad.save()
    return grad


@same
def operations_inside_a_forward(remote: bool) -> Any:
    with model.trace(PROMPT, remote=remote):
        mixed = model.transformer.h[0].attn.source.self_c_attn_1.output.save()
        fed = model.transformer.h[1].source.self_mlp_0.output.save()
    return mixed, fed


@same
def a_module_is_skipped_and_a_run_stopped(remote: bool) -> Any:
    with model.trace(PROMPT, remote=remote) as tracer:
        model.transformer.h[0].skip(model.transformer.h[0].input)
        hidden = model.transformer.h[1].output.save()
        tracer.stop()
    return hidden


@same
def functions_classes_and_closures_travel(remote: bool) -> Any:
    twice = Doubling()

    def inner(value: Any) -> Any:
        return scaled(value, by=factor)

    factor, shift = 2.0, torch.ones(32)
    with model.trace(PROMPT, remote=remote):
        hidden = (twice(inner(model.transformer.h[0].output)) + shift).save()
        shifted = (lambda value: value - shift)(hidden).save()
    return hidden, shifted


@same
def aliases(remote: bool) -> Any:
    with renamed.trace(PROMPT, remote=remote):
        hidden = renamed.layers[0].output.save()
        other = renamed.transformer.h[1].output.save()
    return hidden, other


@same
def a_head_is_applied_by_hand(remote: bool) -> Any:
    with model.trace(PROMPT, remote=remote):
        lens = model.lm_head(model.transformer.ln_f(model.transformer.h[0].output)).save()
    return lens


@same
def edits_are_replayed(remote: bool) -> Any:
    with model.edit() as (_, edited):
        edited.transformer.h[0].output[:] = 0
    with edited.trace(PROMPT, remote=remote):
        logits = edited.lm_head.output.save()
    with model.trace(PROMPT, remote=remote):
        plain = model.lm_head.output.save()
    with edited.generate(PROMPT, max_new_tokens=3, min_new_tokens=3, do_sample=False, remote=remote) as tracer:
        seen = nnsight.save([])
        for _ in tracer.iter[:3]:
            seen.append(edited.transformer.h[0].output[:, -1])
    return logits, plain, seen


@same
def a_cache(remote: bool) -> Any:
    with model.trace(PROMPT, remote=remote) as tracer:
        cache = tracer.cache(modules=[model.transformer.h[0], model.transformer.h[1]], include_inputs=True)
    found = cache["model.transformer.h.0"]
    assert sorted(cache.keys()) == ["model.transformer.h.0", "model.transformer.h.1"]
    return found.output, cache["model.transformer.h.1"].input, found.output


@same
def a_cache_of_a_generation(remote: bool) -> Any:
    with model.generate(PROMPT, max_new_tokens=3, min_new_tokens=3, do_sample=False, remote=remote) as tracer:
        cache = tracer.cache()
    return cache["model.transformer.h.1"].output, {key for key in cache.keys() if "generator" not in key}


@same
def plain_values_and_whole_outputs(remote: bool) -> Any:
    with model.trace(PROMPT, remote=remote):
        output = model.output.save()
        shape = nnsight.save(tuple(output.logits.shape))
        words = model.tokenizer.decode([3, 4]).save()
    return output.logits, shape, words, type(output).__name__


@same
def other_inputs(remote: bool) -> Any:
    ids = model.tokenizer(["w1 w2", "w3 w4"], return_tensors="pt")
    found = []
    for given, named in (([[3, 4, 5]], {}), (ids, {}), (ids["input_ids"], {}), ((), dict(ids))):
        with model.trace(*([] if given == () else [given]), **named, remote=remote):
            logits = model.lm_head.output.save()
        found = [*found, logits]
    return found


@same
def a_part_of_the_model_is_traced(remote: bool) -> Any:
    backend = RemoteBackend(model.to_model_key()) if remote else None
    with model.transformer.h[0].mlp.trace(torch.ones(1, 2, 32), backend=backend):
        value = model.transformer.h[0].mlp.act.output.save()
    return value


@same
def another_way_of_attention(remote: bool) -> Any:
    eager = TransformersModel(FOLDER, task="text-generation", dispatch=True, attn_implementation="eager")
    with eager.trace(PROMPT, output_attentions=True, remote=remote):
        weights = eager.output.attentions[0].save()
    return weights


@case
def prints_arrive_as_log() -> None:
    backend = RemoteBackend(model.to_model_key())
    told: list[Any] = []
    backend.display.update = told.append
    with model.trace(PROMPT, backend=backend):
        print("shape", tuple(model.transformer.h[0].output.shape))
        print("two\nlines", end="")
        kept = [1].save()
    assert kept == [1]
    assert [one.description for one in told if one.status.value == "LOG"] == ["shape (1, 3, 32)", "two", "lines"]
    states = [one.status.value for one in told if one.status.value != "LOG"]
    assert states == ["RECEIVED", "QUEUED", "RUNNING", "COMPLETED"], states


@case
def errors_arrive_with_the_users_line() -> None:
    try:
        with model.trace(PROMPT, remote=True):
            model.transformer.h[0].output
            1 / 0  # noqa: B018
    except RemoteError as error:
        said = str(error)
    assert "ZeroDivisionError: division by zero" in said and "1 / 0" in said and __file__ in said, said
    try:
        with model.trace(PROMPT, remote=True):
            import os
    except RemoteError as error:
        assert "does not let a block import 'os'" in str(error), error
    else:
        raise AssertionError(os)


@case
def what_is_not_understood_is_refused_by_name() -> None:
    blocks = ((_pipe, "pipe"), (_hook, "hook=True"), (_session_pipe, "`model.pipe` runs the pipeline"))
    for block, words in (*blocks, (_operation, "`attention_interface_1` is counted differently")):
        try:
            block()
        except RemoteError as error:
            assert words in str(error) and "Traceback" not in str(error), error
        else:
            raise AssertionError(words)


def _pipe() -> None:
    with model.pipe(PROMPT, remote=True) as tracer:
        tracer.result.save()


def _operation() -> None:
    with model.trace(PROMPT, remote=True):
        model.transformer.h[0].attn.source.attention_interface_1.output[0].save()


def _session_pipe() -> None:
    with model.session(remote=True):
        model.pipe("w1").save()


def _hook() -> None:
    with model.trace(PROMPT, remote=True):
        model.transformer.h[0](model.transformer.h[0].input, hook=True).save()


@case
def a_job_is_polled() -> None:
    backend = RemoteBackend(model.to_model_key(), blocking=False)
    with model.trace(PROMPT, backend=backend):
        logits = model.lm_head.output.save()
    while (found := RemoteBackend(model.to_model_key(), blocking=False, job_id=backend.job_id)()) is None:
        time.sleep(0.05)
    with model.trace(PROMPT):
        logits = model.lm_head.output.save()
    assert torch.equal(found["logits"], logits)
    failing = RemoteBackend(model.to_model_key(), blocking=False)
    with model.trace(PROMPT, backend=failing):
        [].pop()
    try:
        while failing() is None:
            time.sleep(0.05)
    except RemoteError as error:
        assert "IndexError: pop from empty list" in str(error)
    else:
        raise AssertionError("no error")


@case
def a_job_is_awaited() -> None:
    async def both() -> Any:
        backends = [AsyncRemoteBackend(model.to_model_key()) for _ in range(2)]
        for backend in backends:
            with model.trace(PROMPT, backend=backend):
                logits = model.lm_head.output.save()  # noqa: F841
        streamed = [one async for one in backends[1]]
        return (await backends[0])["logits"], streamed[-1]["logits"]

    theirs, streamed = asyncio.run(both())
    with model.trace(PROMPT):
        logits = model.lm_head.output.save()
    assert torch.equal(theirs, logits) and torch.equal(streamed, logits)


@case
def a_large_result_has_an_address() -> None:
    with model.trace(PROMPT, remote=True):
        large = torch.arange(6_000_000, dtype=torch.int16).view(2, -1).save()
        noise = torch.rand(3_000_000).save()
    assert torch.equal(large, torch.arange(6_000_000, dtype=torch.int16).view(2, -1)) and noise.std() > 0.2
    CONFIG.API.COMPRESS = False
    try:
        a_layer_is_read(True)
    finally:
        CONFIG.API.COMPRESS = True


@case
def a_socket_that_is_cut_loses_no_result() -> None:
    backend = AsyncRemoteBackend(model.to_model_key())
    with model.trace(PROMPT, backend=backend):
        hidden = model.transformer.h[0].output.save()
    first = backend.parse(backend.connection.recv())
    backend.connection.sock.close()
    while (found := RemoteBackend(model.to_model_key(), blocking=False, job_id=first.id)()) is None:
        time.sleep(0.05)
    with model.trace(PROMPT):
        hidden = model.transformer.h[0].output.save()
    assert torch.equal(found["hidden"], hidden)


@case
def the_server_tells_what_it_is() -> None:
    status = nnsight.status()
    assert NAME in status and status[NAME]["state"] == "RUNNING" and NAME in str(status)
    compared = nnsight.compare()
    assert compared.python_matches and compared.packages["torch"]["match"], compared.packages
    assert "nnsight" in compared.critical_mismatches
    assert nnsight.whoami() == {**nnsight.whoami(), "email": "admin", "tags": ["admin"]}


@case
def a_wrong_key_is_refused() -> None:
    for wrong in ("nns_wrong", ""):
        for blocking in (True, False):
            backend = RemoteBackend(model.to_model_key(), api_key=wrong or None, blocking=blocking)
            backend.api_key = wrong
            try:
                with model.trace(PROMPT, backend=backend):
                    [1].save()
            except Exception as error:
                assert "key" in str(error) and "401" in str(error) or isinstance(error, RemoteError), error
                assert ("not known here" if wrong else "a key is needed") in str(error), error
            else:
                raise AssertionError("it was let in")


@case
def another_model_is_refused() -> None:
    for key, words in (
        (model.to_model_key().replace(NAME, "tests/another"), "no model 'tests/another' here"),
        (model.to_model_key().replace("text-generation", "fill-mask"), "not here for the task 'fill-mask'"),
        ("nnsight.modeling.diffusion.DiffusionModel:{}", "DiffusionModel' is not run"),
        ("nonsense", "key of the model"),
    ):
        try:
            with model.trace(PROMPT, backend=RemoteBackend(key)):
                [1].save()
        except RemoteError as error:
            assert words in str(error), error
        else:
            raise AssertionError(key)


def main() -> None:
    for one in CASES:
        try:
            one()
            said = ""
        except BaseException:
            said = traceback.format_exc()
        print(json.dumps([one.__name__, said]), flush=True)


if __name__ == "__main__":
    main()
