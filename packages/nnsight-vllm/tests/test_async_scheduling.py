"""Traced requests in an engine that schedules a step before it knows the tokens of the last one.

They give what they give where steps are scheduled one by one, and no body sees a forward of a request that was over.
"""

from __future__ import annotations

import random
from collections import Counter

import ahead
import pytest
import torch

import nnsight
from nnsight_vllm.scheduling import AsyncTracedScheduler, is_traced

GREEDY = {"temperature": 0, "ignore_eos": True}


@pytest.fixture(scope="module")
def early(llama, pair):
    """The llama, served by an engine that is a step ahead."""
    llama.served.dispatch()  # one that is not
    with pytest.MonkeyPatch.context() as patch:
        ahead.schedule_ahead(patch)
        made = pair("llama")
        made.served.dispatch()
        yield made
        made.served.shutdown()


@pytest.fixture(scope="module")
def scheduler(early):
    return early.served.__dict__["_engine"].engine.engine_core.engine_core.scheduler


def requests(model, cases, vector):
    """Run mixed requests in one trace; return what each saw of a layer, its tokens, and its number of steps."""
    found = {}
    with model.trace() as tracer:
        found = nnsight.save({})
        for number, (kind, ids, tokens, layer) in enumerate(cases):
            with tracer.invoke(ids, max_tokens=tokens, **GREEDY):
                seen = []
                for step in tracer.iter[:]:
                    output = model.model.layers[layer].output
                    if kind == "steer":
                        output[0][:] += vector
                    seen.append(output[0] + output[1])
                    if kind == "force":
                        model.samples.output[:] = 7 + step
                    if kind == "stop" and step == 1:
                        found[number] = torch.cat(seen), None, step
                        tracer.stop()
                found[number] = torch.cat(seen), tracer.result.outputs[0].token_ids, len(seen)
    return found


def test_mixed_requests_give_what_they_give_where_steps_are_scheduled_one_by_one(llama, early, scheduler):
    assert type(scheduler) is AsyncTracedScheduler
    choose = random.Random(0)
    vector = torch.randn(128, generator=torch.Generator().manual_seed(3)) * 3
    kinds = ("read", "steer", "force", "stop")
    cases = [
        (
            kinds[number % 4],
            [choose.randrange(4, 90) for _ in range(choose.choice((1, 3, 17, 60)))],
            choose.choice((2, 4, 9)),
            number % 3,
        )
        for number in range(24)
    ]
    wanted, found = (requests(one.served, cases, vector) for one in (llama, early))
    for number, (kind, _, tokens, _) in enumerate(cases):
        torch.testing.assert_close(found[number][0], wanted[number][0], atol=1e-4, rtol=1e-4)
        assert found[number][1:] == wanted[number][1:]
        assert found[number][2] == (1 if kind == "stop" else tokens)
        if kind == "force":
            assert list(found[number][1]) == [7 + step for step in range(tokens)]


def test_no_body_sees_a_forward_of_a_request_that_was_over(early):
    model, plain = early.served, early.plain
    for first in range(4, 90):
        ids = torch.tensor([[first, 17, 60]])
        with torch.no_grad():
            out = plain.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False)
        tokens = out[0, 3:].tolist()
        end = next((at for at in range(2, 11) if tokens[at] not in tokens[:at]), None)
        if end is not None:
            break
    with model.trace(ids, temperature=0, max_tokens=12, ignore_eos=True, stop_token_ids=[tokens[end]]) as tracer:
        seen = nnsight.save([])
        for step in tracer.iter[:]:
            model.logits.output  # noqa: B018
            seen.append(step)
        result = tracer.result.save()
    assert seen == list(range(end + 1)) and list(result.outputs[0].token_ids) == tokens[: end + 1]
    assert result.outputs[0].finish_reason == "stop"


def test_requests_that_nobody_looks_into_are_a_step_ahead_beside_traced_ones_that_wait(early, scheduler, monkeypatch):
    model, steps = early.served, []
    schedule = scheduler.schedule

    def looked(*args, **kwargs):
        output = schedule(*args, **kwargs)
        unknown = {one.request_id: one.num_output_placeholders for one in scheduler.running}
        scheduled = Counter(is_traced(scheduler.requests[name]) for name in output.num_scheduled_tokens)
        deepest = dict.fromkeys((False, True), 0)
        for name, count in unknown.items():
            kind = is_traced(scheduler.requests[name])
            deepest[kind] = max(deepest[kind], count)
        steps.append((scheduled, deepest))
        return output

    monkeypatch.setattr(scheduler, "schedule", looked)
    engine = model.__dict__["_engine"]
    plain = [model._prepare_input([40 + number], max_tokens=12, **GREEDY) for number in range(3)]
    added = [engine.add(one) for one in plain]
    with model.trace([5, 6], max_tokens=6, **GREEDY) as tracer:
        tokens = tracer.result.outputs[0].token_ids.save()
    engine.abort(internal for _, internal in added)
    assert len(tokens) == 6
    assert max(deepest[True] for _, deepest in steps) == 1 and max(deepest[False] for _, deepest in steps) == 2
    assert sum(scheduled[True] for scheduled, _ in steps) == 6


def test_an_error_ends_its_own_request(early):
    model = early.served
    with pytest.raises(ZeroDivisionError):
        with model.trace(max_tokens=8, **GREEDY) as tracer:
            with tracer.invoke([5, 6]):
                for step in tracer.iter[:]:
                    model.logits.output  # noqa: B018
                    1 / (2 - step)
            with tracer.invoke([7]):
                model.logits.output  # noqa: B018
    with model.trace([7], max_tokens=3, **GREEDY) as tracer:
        tokens = tracer.result.outputs[0].token_ids.save()
    assert len(tokens) == 3
