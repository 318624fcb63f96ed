"""`nnsight serve` with a model of vLLM: the same blocks give what they give here, and many users' run in one batch."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from serving import Server, serving

import nnsight
from nnsight import NNsightError
from nnsight_remote import JobCancelledError, JobError, RemoteBackend

GREEDY: dict[str, Any] = {"temperature": 0, "ignore_eos": True}
IDS = [5, 17, 33, 60, 21]


@pytest.fixture(scope="module")
def server(llama, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    from engines import OPTIONS

    store = tmp_path_factory.mktemp("served") / "store"
    with serving(store, f"tiny={llama.folder}", {**OPTIONS, "turn_seconds": 5}) as server:
        yield server


@pytest.fixture
def there(server, request) -> RemoteBackend:
    """The server, for a user that no other test knows."""
    return backend(server, request.node.name[:80])


def backend(server: Server, user: str, *limits: str, **options: Any) -> RemoteBackend:
    return RemoteBackend(server.url, key=server.key(user, *limits), **{"quiet": True, **options})


def doubled(value):
    return value * 2


def test_what_is_saved_there_is_what_transformers_computes_and_what_a_run_here_saves(llama, there):
    model, plain = llama.served, llama.plain
    found = {}
    for name, where in (("there", {"backend": there}), ("here", {})):
        with model.trace(IDS, max_tokens=4, **GREEDY, **where) as tracer:
            seen = nnsight.save([])
            for _ in tracer.iter[:]:
                seen.append(doubled(model.model.layers[1].mlp.down_proj.output[0]))
            result = tracer.result.save()
        found[name] = seen, list(result.outputs[0].token_ids)
    rows = []
    hook = plain.model.layers[1].mlp.down_proj.register_forward_hook(lambda module, args, out: rows.append(out[0]))
    with torch.no_grad():
        tokens = plain.generate(
            torch.tensor([IDS]), attention_mask=torch.ones(1, 5, dtype=torch.long), max_new_tokens=4, do_sample=False
        )
    hook.remove()
    for seen, drawn in found.values():
        assert drawn == tokens[0, 5:].tolist()
        for ours, theirs in zip(seen, rows, strict=True):
            torch.testing.assert_close(ours, theirs * 2, rtol=1e-4, atol=1e-5)


def test_a_change_reaches_the_tokens_of_its_own_request_and_no_other(llama, there):
    model = llama.served
    with model.trace(backend=there, **GREEDY) as tracer:
        with tracer.invoke(IDS, max_tokens=3):
            for _ in tracer.iter[:]:
                model.logits.output[:, 7] = 1e4
            steered = nnsight.save(tracer.result)
        with tracer.invoke(IDS, max_tokens=3):
            plain = nnsight.save(tracer.result)
    assert list(steered.outputs[0].token_ids) == [7, 7, 7]
    assert plain.outputs[0].token_ids == model.generate(IDS, max_tokens=3, **GREEDY).outputs[0].token_ids


def test_a_plain_generation_gives_what_the_engine_gives(llama, there):
    model = llama.served
    one = model.generate(IDS, max_tokens=3, backend=there, **GREEDY)
    several = model.generate([IDS, IDS[:2]], max_tokens=3, backend=there, **GREEDY)
    here = model.generate([IDS, IDS[:2]], max_tokens=3, **GREEDY)
    assert type(one) is type(here[0])
    assert one.outputs[0].token_ids == here[0].outputs[0].token_ids
    assert [each.outputs[0].token_ids for each in several] == [each.outputs[0].token_ids for each in here]
    assert [each.outputs[0].text for each in several] == [each.outputs[0].text for each in here]


def test_a_session_keeps_values_there_between_its_traces(llama, there):
    model = llama.served
    with model.session(backend=there):
        with model.trace(IDS, max_tokens=1, **GREEDY):
            first = model.model.layers[0].output[0].save()
        print(first.shape)
        with model.trace(IDS[:2], max_tokens=1, **GREEDY):
            again = (model.model.layers[0].output[0] - first[:2]).save()
    # Tokens see those before them only.
    torch.testing.assert_close(again, torch.zeros_like(again), rtol=0, atol=1e-5)


def test_what_is_printed_there_is_heard_here(llama, server, capsys):
    model = llama.served
    with model.session(backend=backend(server, "zoe", quiet=False)):
        print("around the trace")
        with model.trace(IDS, max_tokens=2, **GREEDY) as tracer:
            for step in tracer.iter[:]:
                print("step", step, model.logits.output.shape[-1])
            tracer.log("at the end", len(tracer.result.outputs))
    said = capsys.readouterr().out
    for line in ("around the trace", "step 0 96", "step 1 96", "at the end 1"):
        assert line in said


def test_an_error_is_the_users_own_with_its_line_and_the_engine_serves_on(llama, there):
    model = llama.served

    class MineError(KeyError):
        pass

    with pytest.raises(KeyError) as caught:
        with model.trace(IDS, max_tokens=3, backend=there):
            raise MineError(model.model.layers[0].mlp.output.shape[0])
    assert caught.value.args == (5,)
    assert "raise MineError(" in "".join(getattr(caught.value, "__notes__", ()))
    with pytest.raises(NNsightError, match="passed"):
        with model.trace(IDS, max_tokens=1, backend=there):
            model.model.layers[2].mlp.output.save()
            model.model.layers[1].mlp.output.save()
    with pytest.raises(Exception, match="max_tokens"):
        with model.trace(IDS, max_tokens=-3, backend=there):
            model.logits.output.save()
    with model.trace(IDS, max_tokens=1, backend=there, **GREEDY):
        shape = model.logits.output.shape.save()
    assert tuple(shape) == (1, 96)


def test_a_body_that_never_gives_its_turn_back_is_ended_and_the_engine_serves_on(llama, there):
    model = llama.served
    with pytest.raises(TimeoutError, match="had its turn"):
        with model.trace(IDS, max_tokens=2, backend=there):
            model.logits.output  # noqa: B018
            while True:
                pass
    assert len(model.generate(IDS, max_tokens=2, backend=there, **GREEDY).outputs[0].token_ids) == 2


def test_the_requests_of_several_users_step_together(llama, server):
    model, seen = llama.served, {}
    # It goes on until it is told not to. Bodies share the engine's process, so that others see there how it does.
    with model.session(backend=backend(server, "ada", blocking=False)) as job:
        while True:
            with model.trace(IDS, max_tokens=100, **GREEDY) as tracer:
                for step in tracer.iter[:]:
                    torch.steps_of_ada = getattr(torch, "steps_of_ada", 0) + 1
                    if step == 1:
                        print("it runs")
    server.until_printed(job.id, "it runs")

    def ask(name: str, length: int) -> None:
        with model.trace(IDS[:length], max_tokens=50, backend=backend(server, name), **GREEDY) as tracer:
            steps = nnsight.save([])
            for step in tracer.iter[:]:
                if step == 0:
                    hidden = model.model.layers[1].mlp.down_proj.output[0].save()
                steps.append(torch.steps_of_ada)
        seen[length] = hidden, steps[-1] - steps[0]

    threads = [threading.Thread(target=ask, args=(f"user {length}", length)) for length in (2, 3, 4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    job.cancel()
    for length in (2, 3, 4):
        with model.trace(IDS[:length], max_tokens=1):
            hidden = model.model.layers[1].mlp.down_proj.output[0].save()
        torch.testing.assert_close(seen[length][0], hidden, rtol=1e-4, atol=1e-5)
        assert seen[length][1] >= 10  # of 49, as hers are begun anew


def test_a_job_that_is_cancelled_leaves_the_batch(llama, server):
    model = llama.served
    where = backend(server, "carl", blocking=False)
    with model.session(backend=where) as job:
        while True:
            with model.trace(IDS, max_tokens=100, **GREEDY) as tracer:
                for step in tracer.iter[:]:
                    if step == 5:
                        print("five steps")
    server.until_printed(job.id, "five steps")
    job.cancel()
    assert server.wait(job.id)["state"] == "cancelled"
    with pytest.raises(JobCancelledError):
        job.result()
    assert len(model.generate(IDS, max_tokens=2, backend=backend(server, "dora"), **GREEDY).outputs[0].token_ids) == 2


def test_a_job_that_takes_longer_than_its_user_may_is_ended(llama, server):
    model = llama.served
    with pytest.raises(JobError, match="limit"):
        with model.session(backend=backend(server, "eve", "run_seconds=2")):
            while True:
                with model.trace(IDS, max_tokens=100, **GREEDY):
                    model.logits.output  # noqa: B018


def test_what_only_whoever_runs_the_server_may_do_is_refused(llama, there, tmp_path):
    model, mine = llama.served, str(tmp_path / "left-behind")
    with pytest.raises(NNsightError, match="for all of its users"):
        with model.session(backend=there):
            model.uninstall("calm")
    with pytest.raises(NNsightError, match="rehearses"):
        model.trace(IDS, remote="local")
    with pytest.raises(PermissionError):
        with model.trace(IDS, max_tokens=1, backend=there):
            model.logits.output  # noqa: B018
            open(mine, "w")  # noqa: SIM115
    with pytest.raises(ImportError, match="subprocess"):
        with model.trace(IDS, max_tokens=1, backend=there):
            model.logits.output  # noqa: B018
            import subprocess  # noqa: F401
