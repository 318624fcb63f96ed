"""Every value of every request is that of the model alone, whatever else is in the batch, and whatever the scheduler does.

The oracle is transformers: one forward over the prompt and the tokens that came, with plain hooks. If what it predicts at
each position is the token that came next, these are the tokens that it would have generated.
"""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import pytest
import torch
from arrivals import Arrivals, Guest

import nnsight

LAYERS, HIDDEN = 4, 128
torch.manual_seed(7)
VECTOR = torch.randn(HIDDEN) * 2
#: A cache and a budget that are far too small for all at once.
SMALL: dict[str, Any] = {
    "max_num_batched_tokens": 80,
    "max_num_seqs": 6,
    "num_gpu_blocks_override": 16,
    "enable_prefix_caching": True,
}
GREEDY: dict[str, Any] = {"temperature": 0, "ignore_eos": True}


@pytest.fixture(scope="module")
def small(pair):
    return pair("llama", **SMALL)


def stream(output):
    return output[0] + output[1]


# -- what bodies do ----------------------------------------------------------------------------------------------------


def read(book, ids, at, tokens, layer, **options):
    model = book.model
    with book.trace(ids, at, max_tokens=tokens, **GREEDY, **options) as tracer:
        seen = nnsight.save([])
        for _ in tracer.iter[:]:
            seen.append(stream(model.model.layers[layer].output))
    return lambda plain, values: {"seen": values[layer]}


def read_all(book, ids, at, tokens, layer, **options):
    model = book.model
    with book.trace(ids, at, max_tokens=tokens, **GREEDY, **options) as tracer:
        seen = nnsight.save([[] for _ in range(4)])
        logits = nnsight.save([])
        for _ in tracer.iter[:]:
            for number in range(4):
                seen[number].append(stream(model.model.layers[number].output))
            logits.append(model.logits.output)
    return lambda plain, values: {"seen": values[:LAYERS], "logits": values[-1][len(ids) - 1 :]}


def read_some(book, ids, at, tokens, layer, **options):
    model = book.model
    with book.trace(ids, at, max_tokens=tokens, **GREEDY, **options) as tracer:
        seen = nnsight.save([])
        for _ in tracer.iter[1:3]:
            seen.append(stream(model.model.layers[layer].output))
    return lambda plain, values: {"seen": values[layer][len(ids) : len(ids) + 2]}


def stop(book, ids, at, tokens, layer, **options):
    model = book.model
    with book.trace(ids, at, max_tokens=tokens, **GREEDY, **options) as tracer:
        seen = nnsight.save([])
        for step in tracer.iter[:]:
            seen.append(stream(model.model.layers[layer].output))
            if step == 1:
                tracer.stop()
    return lambda plain, values: {"seen": values[layer][: len(ids) + 1]}


def steer(book, ids, at, tokens, layer, **options):
    model = book.model
    vector = VECTOR
    with book.trace(ids, at, max_tokens=tokens, **GREEDY, **options) as tracer:
        seen = nnsight.save([])
        for _ in tracer.iter[:]:
            model.model.layers[layer].output[0][:] += vector
            seen.append(stream(model.model.layers[3].output))
    return lambda plain, values: {"seen": values[3]}


def give_up(book, ids, at, tokens, layer, **options):
    model = book.model
    with book.trace(ids, at, max_tokens=tokens, **GREEDY, **options) as tracer:
        for step in tracer.iter[:]:
            model.model.layers[layer].output[0][:] = float("nan")
            if step == 1:
                raise LookupError("in the middle")
    return ERROR


ERROR = object()
BODIES = [read, read, read_all, read_some, steer, steer, stop, give_up]


# -- the oracle --------------------------------------------------------------------------------------------------------


def alone(plain, ids, tokens, steered=None):
    """What the model gives alone: the stream after each layer, and the logits, for every token that was computed."""
    values: list[torch.Tensor] = []
    handles = []
    for number, layer in enumerate(plain.model.layers):

        def hook(module, args, output, number=number):
            output = output if isinstance(output, torch.Tensor) else output[0]
            output = output + VECTOR if number == steered else output
            values.append(output[0])
            return output

        handles.append(layer.register_forward_hook(hook))
    with torch.no_grad():
        logits = plain(torch.tensor([[*ids, *tokens[:-1]]])).logits[0]
    for handle in handles:
        handle.remove()
    return [*values, logits]


def flat(value):
    if value and isinstance(value[0], list):
        return [torch.cat(one) for one in value]
    return torch.cat(value) if value else torch.empty(0, HIDDEN)


def check(plain, guest: Guest, ids, wanted=None, steered=None):
    """Compare the tokens and the values of one request with the oracle's."""
    tokens = list(guest.output.outputs[0].token_ids)
    values = alone(plain, ids, tokens, steered)
    assert values[-1][len(ids) - 1 :].argmax(-1).tolist() == tokens
    if wanted is None:
        return
    assert not isinstance(guest.saved, BaseException), guest.saved
    for name, value in wanted(plain, values).items():
        torch.testing.assert_close(flat(guest.saved[name]), value, rtol=1e-4, atol=1e-4)


def prompt(rng, length, shared=()):
    return [*shared, *(rng.randrange(4, 90) for _ in range(length))]


# -- the tests ---------------------------------------------------------------------------------------------------------


def mixed(served, seed, many=30, shared=True, most=40, **rules):
    """Announce requests of all kinds; return them, each with what is to be true of it."""
    rng = random.Random(seed)
    book, parties = Arrivals(served), []
    start = prompt(rng, 40)
    for _ in range(many):
        at, tokens, layer = rng.randrange(60), rng.choice([1, 2, 5, 12, 40]), rng.randrange(LAYERS)
        before = start if shared and rng.random() < 0.4 else ()
        options = {name: rule(rng) for name, rule in rules.items()}
        if rng.random() < 0.5:
            ids = prompt(rng, rng.choice([1, 2, 17, 40, 70, 150]), before)
            guest, wanted, steered = book.plain(ids, at, max_tokens=tokens, **GREEDY, **options), None, None
        else:
            body = rng.choice(BODIES)
            tokens = tokens if body is not give_up else tokens + 1
            ids = prompt(rng, rng.choice([1, 2, 17, 33, most]), before)
            wanted = body(book, ids, at, tokens, layer, **options)
            guest, steered = book.last, layer if body is steer else None
        if rng.random() < 0.1:
            guest.aborted_after = rng.randrange(1, 12)
        parties.append((guest, ids, wanted, steered))
    return book, parties


def check_all(plain, parties):
    for guest, ids, wanted, steered in parties:
        if guest.output is None:
            continue  # it was aborted
        if guest.bodies is not None:
            assert guest.output.num_cached_tokens == 0
        if wanted is ERROR:
            assert isinstance(guest.saved, LookupError) and guest.saved.args == ("in the middle",)
        else:
            check(plain, guest, ids, wanted, steered)


def test_dozens_of_mixed_requests_that_come_and_go_are_each_what_they_are_alone(small):
    seen, full = Counter[str](), False
    for seed in range(3):
        book, parties = mixed(small.served, seed)
        book.run()
        check_all(small.plain, parties)
        seen += book.seen
        full |= book.seen["most running"] == SMALL["max_num_seqs"]
        assert any(guest.output.num_cached_tokens for guest in book.guests if guest.bodies is None and guest.output)
        assert not book.scheduler.requests
    # It was as hard as it is meant to be.
    assert seen["plain preempted"] and seen["plain cut"] and seen["pauses"] and seen["traced waiting"] and full, seen
    assert not seen["traced preempted"] and not seen["traced cut"]


def test_priorities_and_limits_to_long_prompts_leave_traced_requests_whole(pair):
    served, plain, _ = pair(
        "llama",
        **{**SMALL, "num_gpu_blocks_override": 11},
        scheduling_policy="priority",
        long_prefill_token_threshold=24,
    )
    book, parties = mixed(served, 11, priority=lambda rng: rng.randrange(-3, 4))
    book.run()
    check_all(plain, parties)
    assert book.seen["plain preempted"] and book.seen["plain cut"], book.seen
    assert not book.seen["traced preempted"] and not book.seen["traced cut"]


def test_a_prompt_is_cached_for_plain_requests_and_never_from_or_for_traced_ones(small):
    model, rng = small.served, random.Random(5)
    ids = prompt(rng, 70)
    first = model.generate(ids, max_tokens=6, **GREEDY)
    with model.trace(ids, max_tokens=6, **GREEDY) as tracer:
        for _ in tracer.iter[:]:
            model.model.layers[1].output[0][:] += VECTOR
        steered = tracer.result.save()
    again = model.generate(ids, max_tokens=6, **GREEDY)
    with model.trace(ids, max_tokens=6, **GREEDY) as tracer:
        read = tracer.result.save()
    assert [one.num_cached_tokens for one in (first, steered, again, read)] == [0, 0, 64, 0]
    tokens = [list(one.outputs[0].token_ids) for one in (first, steered, again, read)]
    assert tokens[0] == tokens[2] == tokens[3]
    assert alone(small.plain, ids, tokens[1], steered=1)[-1][len(ids) - 1 :].argmax(-1).tolist() == tokens[1]
    assert alone(small.plain, ids, tokens[0])[-1][len(ids) - 1 :].argmax(-1).tolist() == tokens[0]


def test_what_a_body_made_no_number_does_not_reach_who_has_its_memory_next(small):
    model = small.served
    prompts = [[10 + number] * length for number, length in enumerate((1, 3, 20, 31, 33, 60, 1, 2))]
    for _ in range(2):
        with model.trace([5] * 70, max_tokens=40, **GREEDY) as tracer:
            for _ in tracer.iter[:]:
                model.model.layers[0].output[0][:] = float("nan")
        for ids in prompts:
            tokens = list(model.generate(ids, max_tokens=3, **GREEDY).outputs[0].token_ids)
            assert alone(small.plain, ids, tokens)[-1][len(ids) - 1 :].argmax(-1).tolist() == tokens


def test_nobody_waits_for_ever(small):
    rng = random.Random(3)
    book = Arrivals(small.served)
    # One prompt after another that fills a step by itself; a plain one that runs, and one that came between them.
    runs = book.plain(prompt(rng, 20), 0, max_tokens=12, **GREEDY)
    for at in range(30):
        ids = prompt(rng, 78)
        read_some(book, ids, at, 3, 0)
    between = book.plain(prompt(rng, 60), 4, max_tokens=4, **GREEDY)
    book.run()
    order = sorted(book.guests, key=lambda guest: guest.left)
    assert order.index(runs) < 15 and order.index(between) < 15
    # And the other way round.
    book = Arrivals(small.served)
    for at in range(30):
        book.plain(prompt(rng, 78), at, max_tokens=4, **GREEDY)
    read_some(book, prompt(rng, 78), 4, 4, 0)
    traced = book.last
    book.run()
    assert sorted(book.guests, key=lambda guest: guest.left).index(traced) < 15


def test_a_request_that_is_computed_again_says_so_and_the_others_go_on(small):
    rng = random.Random(8)
    book = Arrivals(small.served)
    wanted = read_all(book, ids := prompt(rng, 20), 0, 10, 0)
    broken = book.last
    plain = book.plain(mine := prompt(rng, 30), 0, max_tokens=10, **GREEDY)
    later = read_all(book, others := prompt(rng, 20), 6, 10, 0)
    book.at_step[4] = lambda: book.engine.reset_prefix_cache(reset_running_requests=True)
    book.run()
    assert isinstance(broken.saved, nnsight.NNsightError) and "each step once" in str(broken.saved)
    check(small.plain, plain, mine)
    check(small.plain, book.last, others, later)
    assert wanted is not None and len(ids) == 20


def test_logprobs_of_prompts_are_no_logits_of_anybodys_step(small):
    model, rng = small.served, random.Random(9)
    ids, others = prompt(rng, 20), prompt(rng, 30)
    with model.trace() as tracer:
        with tracer.invoke(ids, max_tokens=3, prompt_logprobs=1, **GREEDY):
            cache = tracer.cache()
            mine = tracer.result.save()
        with tracer.invoke(others, max_tokens=3, prompt_logprobs=0, **GREEDY):
            seen = nnsight.save([])
            for _ in tracer.iter[:]:
                seen.append((model.logits_processor.output, model.logits.output))
            theirs = tracer.result.save()
    for result, start in ((mine, ids), (theirs, others)):
        tokens = list(result.outputs[0].token_ids)
        logits = alone(small.plain, start, tokens)[-1]
        expected = logits[: len(start) - 1].log_softmax(-1).gather(-1, torch.tensor(start[1:])[:, None])[:, 0]
        got = [one[token].logprob for one, token in zip(result.prompt_logprobs[1:], start[1:])]
        torch.testing.assert_close(torch.tensor(got), expected, rtol=1e-4, atol=1e-4)
        wanted = logits[len(start) - 1 :]
        if result is theirs:
            for both in zip(*seen):
                torch.testing.assert_close(torch.cat(both), wanted, rtol=1e-4, atol=1e-4)
        else:
            values = [entry.output for entry in cache["logits_processor"]]
            torch.testing.assert_close(torch.cat(values), wanted, rtol=1e-4, atol=1e-4)
