"""`VLLM(mode="async")`: outputs as they come, many at once, given up, and what is left of it: nothing."""

from __future__ import annotations

import asyncio
import gc
import multiprocessing
import os
import signal
import threading

import engines
import pytest
import torch
from vllm.v1.engine import utils

import nnsight
from nnsight import VLLM, NNsightError
from nnsight_vllm.errors import DeadEngineError

OPTIONS = {**engines.OPTIONS, "max_num_seqs": 32, "num_gpu_blocks_override": 160}
GREEDY = {"temperature": 0, "ignore_eos": True}


@pytest.fixture(scope="module")
def model(folder, plain):
    with pytest.MonkeyPatch.context() as patch:
        # A fork of this process, which has imported all that takes long to import.
        patch.setattr(utils, "get_mp_context", lambda: multiprocessing.get_context("fork"))
        with VLLM(str(folder), mode="async", turn_seconds=2, **OPTIONS) as model:
            yield model.dispatch()


@pytest.fixture(autouse=True)
def nothing_is_left(request, model):
    """After each test the engine has nothing of its traces, and all of its memory is free."""
    yield
    if "dead" not in request.node.name:
        assert asyncio.run(left(model)) == (1, 1, 0)
        assert asyncio.run(all_blocks_are_free(model))


async def left(model):
    """What a worker has of traces, asked by a body: traces and runs, itself among them, and tensors kept by earlier ones."""
    with model.trace([7, 8], max_tokens=1) as tracer:
        import gc

        from nnsight_vllm.worker.stage import Stage

        gc.collect()
        (stage,) = [one for one in gc.get_objects() if type(one) is Stage]
        kept = [mediator for queue in stage.forwards.at_output.values() for mediator in queue]
        counts = nnsight.save((len(stage.traces), len(stage.runs), len(kept)))
    await tracer.backend()
    return counts


async def all_blocks_are_free(model):
    """vLLM forgets its cache only if no request has a part of it."""
    engine = model.__dict__["_engine"].engine
    for _ in range(3):  # the end of the last request reaches the scheduler with the next step
        if await asyncio.wrap_future(engine.begin(engine.llm.reset_prefix_cache())):
            return True
        await model.generate([9], max_tokens=1)
    return False


def stream(output):
    """The residual stream after a layer of vLLM's, which returns it in two parts."""
    return output[0] + output[1]


def alone(plain, ids, tokens, layer=None, change=None):
    """What transformers makes of a prompt: the new tokens, and what a layer gave for all of it but the last of them."""
    seen, layers, hooks = [], plain.model.layers, []
    if change is not None:
        hooks.append(layers[layer].register_forward_hook(lambda module, args, out: change(out)))
    ids = torch.tensor([ids])
    with torch.no_grad():
        out = plain.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens, do_sample=False)
        if layer is not None:
            hooks.append(layers[layer].register_forward_hook(lambda module, args, out: seen.append(out)))
            plain(out[:, :-1])
    for hook in hooks:
        hook.remove()
    return out[0, ids.shape[1] :].tolist(), seen[0][0] if seen else None


def test_outputs_come_as_tokens_are_made_and_what_was_saved_comes_with_the_last_one(model, plain):
    ids = [5, 17, 60, 33]

    async def run():
        with model.trace(ids, max_tokens=6, **GREEDY) as tracer:
            hidden = [stream(model.model.layers[2].output) for _ in tracer.iter[:]].save()
            text = tracer.result.outputs[0].text.save()
        outputs = [output async for output in tracer.backend()]
        return outputs, hidden, text

    outputs, hidden, text = asyncio.run(run())
    tokens, wanted = alone(plain, ids, 6, 2)
    lengths = [len(output.outputs[0].token_ids) for output in outputs]
    assert lengths == sorted(lengths) and lengths[-1] == 6 and len(outputs) >= 3
    assert all(tokens[: len(output.outputs[0].token_ids)] == list(output.outputs[0].token_ids) for output in outputs)
    assert [output.finished for output in outputs] == [False] * (len(outputs) - 1) + [True]
    assert all(output.number == 0 for output in outputs)
    torch.testing.assert_close(torch.cat(hidden), wanted, atol=1e-4, rtol=1e-4)
    assert text == outputs[-1].outputs[0].text == outputs[-1].saves["text"]
    torch.testing.assert_close(torch.cat(outputs[-1].saves["hidden"]), wanted, atol=1e-4, rtol=1e-4)


def test_many_traces_at_once_are_each_what_they_are_alone(model, plain):
    vector = torch.randn(128, generator=torch.Generator().manual_seed(3)) * 3

    async def one(number):
        ids = [4 + (7 * number + at) % 88 for at in range(1 + number % 9)]
        tokens, layer = 2 + number % 7, number % 4
        with model.trace(ids, max_tokens=tokens, **GREEDY) as tracer:
            hidden = nnsight.save([])
            for _ in tracer.iter[:]:
                if number % 2:
                    model.model.layers[layer].output[0][:] += vector
                hidden.append(stream(model.model.layers[layer].output))
        if number % 3:
            last = await tracer.backend()
        else:
            async for last in tracer.backend():  # noqa: B007
                await asyncio.sleep(0)
        change = (lambda out: out + vector) if number % 2 else None
        wanted_tokens, wanted = alone(plain, ids, tokens, layer, change)
        assert list(last.outputs[0].token_ids) == wanted_tokens
        torch.testing.assert_close(torch.cat(hidden), wanted, atol=1e-4, rtol=1e-4)
        return number

    async def all_of_them():
        return await asyncio.gather(*map(one, range(48)))

    assert asyncio.run(all_of_them()) == list(range(48))


def test_invokes_of_one_trace_are_told_apart_and_each_ends_with_what_its_body_saved(model, plain):
    prompts = {0: ([5, 6, 7], 7), 1: ([40], 2), 2: ([60, 61], 4)}

    async def run():
        with model.trace(**GREEDY) as tracer:
            seen = nnsight.save({})
            for number, (ids, tokens) in prompts.items():
                with tracer.invoke(ids, max_tokens=tokens):
                    own = stream(model.model.layers[1].output).save()
                    seen[number] = tracer.result.outputs[0].token_ids
        ended = [(output.number, output.saves) async for output in tracer.backend() if output.finished]
        last = await tracer.backend()
        return ended, last, seen, own

    ended, last, seen, own = asyncio.run(run())
    assert sorted(number for number, _ in ended) == [0, 1, 2] and ended[0][0] == 1
    for number, saves in ended:
        tokens, hidden = alone(plain, *prompts[number], layer=1)
        torch.testing.assert_close(saves["own"], hidden[: len(prompts[number][0])], atol=1e-4, rtol=1e-4)
        assert list(saves["seen"][number]) == tokens == list(seen[number]) == list(last[number].outputs[0].token_ids)
    torch.testing.assert_close(own, dict(ended)[2]["own"])


def test_what_a_body_saves_comes_as_it_is_made_and_what_was_given_stays_as_it_was(model, plain):
    async def run():
        with model.trace([5, 6, 7], max_tokens=12, **GREEDY) as tracer:
            hidden, by = nnsight.save([]), nnsight.save({})
            for step in tracer.iter[:]:
                hidden.append(stream(model.model.layers[1].output))
                by[step] = model.logits.output.argmax(-1)
            text = tracer.result.outputs[0].text.save()  # noqa: F841
        return [output async for output in tracer.backend()], hidden

    outputs, hidden = asyncio.run(run())
    tokens, wanted = alone(plain, [5, 6, 7], 12, 1)
    made = {}
    for output in outputs:
        made_by_now = len(output.outputs[0].token_ids)
        assert len(output.saves["hidden"]) >= made_by_now <= len(output.saves["by"])
        torch.testing.assert_close(
            torch.cat(output.saves["hidden"]), wanted[: 2 + len(output.saves["hidden"])], atol=1e-4, rtol=1e-4
        )
        for piece in output.pieces:
            made = piece.added_to(made)
        assert list(made) == list(output.saves) and len(made["hidden"]) == len(output.saves["hidden"])
    assert [int(made["by"][step]) for step in range(12)] == tokens
    assert ("text" in outputs[-2].saves, "text" in outputs[-1].saves) == (False, True)
    assert len(outputs[0].saves["hidden"]) < len(outputs[-1].saves["hidden"]) == len(hidden) == 12


def test_a_value_that_cannot_travel_ends_its_own_trace_with_what_it_is(model):
    async def run():
        with model.trace([5, 6, 7], max_tokens=200, **GREEDY) as tracer:
            import threading

            for _ in tracer.iter[:]:
                model.model.layers[1].output  # noqa: B018
                lock = nnsight.save([threading.Lock()])  # noqa: F841
        return [len(output.outputs[0].token_ids) async for output in tracer.backend()]

    with pytest.raises(nnsight.WireError, match="lock"):
        asyncio.run(run())


def test_a_loop_that_is_left_gives_its_trace_up(model):
    async def run():
        with model.trace([5, 6], max_tokens=200, **GREEDY) as tracer:
            hidden = [model.model.layers[0].output[0] for _ in tracer.iter[:]].save()  # noqa: F841
        async for output in tracer.backend():
            assert not output.finished
            break
        with pytest.raises(NNsightError, match="given up"):
            await tracer.backend()
        with pytest.raises(NNsightError, match="asked for already"):
            async for _ in tracer.backend():
                pass

    asyncio.run(run())


@pytest.mark.parametrize("how", ["cancel", "cancel await", "aclose", "forget"])
def test_a_trace_is_given_up_with_its_task_or_when_it_is_closed_and_others_go_on(how, model, plain):
    async def endless(began):
        with model.trace([5, 6], max_tokens=250, **GREEDY) as tracer:
            hidden = [model.model.layers[0].output[0] for _ in tracer.iter[:]].save()  # noqa: F841
        if how == "cancel await":
            began.set()
            await tracer.backend()
        async for _ in tracer.backend():
            began.set()
            if how == "aclose":
                await tracer.backend().aclose()
            if how == "forget":
                return

    async def run():
        began = asyncio.Event()
        task = asyncio.ensure_future(endless(began))
        with model.trace([9, 10, 11], max_tokens=12, **GREEDY) as tracer:
            tokens = tracer.result.outputs[0].token_ids.save()
        other = asyncio.ensure_future(tracer.backend()._wait())
        await began.wait()
        if how.startswith("cancel"):
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        elif how == "aclose":
            with pytest.raises(NNsightError, match="given up"):
                await task
        else:
            await task
        await other
        return tokens

    assert list(asyncio.run(run())) == alone(plain, [9, 10, 11], 12)[0]


def test_one_that_was_never_asked_for_is_never_begun(model):
    with model.trace([5, 6], max_tokens=3) as tracer:
        hidden = model.model.layers[0].output[0].save()
    asyncio.run(tracer.backend().aclose())
    with pytest.raises(NNsightError, match="given up"):
        tracer.backend().result()
    with pytest.raises(NameError):
        hidden  # noqa: B018


def test_an_error_of_a_body_is_raised_where_it_is_waited_for_and_the_others_go_on(model, plain):
    async def run():
        with model.trace(max_tokens=5, **GREEDY) as tracer:
            with tracer.invoke([5, 6]):
                for step in tracer.iter[:]:
                    model.model.layers[1].output  # noqa: B018
                    1 / (2 - step)
            with tracer.invoke([50]):
                model.model.layers[1].output  # noqa: B018
        numbers = []
        with pytest.raises(ZeroDivisionError) as caught:
            async for output in tracer.backend():
                numbers.append((output.number, output.finished))
        assert (1, True) in numbers and (0, True) not in numbers
        return caught.value

    error = asyncio.run(run())
    assert "1 / (2 - step)" in "".join(getattr(error, "__notes__", [])) + str(error)


def test_an_endless_loop_ends_its_own_trace(model, plain):
    async def endless():
        with model.trace([5, 6], max_tokens=5) as tracer:
            while True:
                pass
        await tracer.backend()

    async def run():
        with model.trace([9, 10], max_tokens=9, **GREEDY) as tracer:
            tokens = tracer.result.outputs[0].token_ids.save()
        failed, _ = await asyncio.gather(endless(), tracer.backend()._wait(), return_exceptions=True)
        assert isinstance(failed, TimeoutError)
        return tokens

    assert list(asyncio.run(run())) == alone(plain, [9, 10], 9)[0]


def test_stopping_ends_the_request_and_what_was_saved_is_there(model, plain):
    async def run():
        with model.trace([5, 6, 7], max_tokens=200, **GREEDY) as tracer:
            hidden = nnsight.save([])
            for step in tracer.iter[:]:
                hidden.append(stream(model.model.layers[3].output))
                if step == 2:
                    tracer.stop()
        last = await tracer.backend()
        return hidden, last

    hidden, last = asyncio.run(run())
    tokens, wanted = alone(plain, [5, 6, 7], 3, 3)
    assert list(last.outputs[0].token_ids) == tokens[: len(last.outputs[0].token_ids)] and len(hidden) == 3
    torch.testing.assert_close(torch.cat(hidden), wanted, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kept", [False, True])
def test_a_stop_string_ends_the_request_before_the_block_sees_another_step(model, plain, kept):
    first = next(first for first in range(4, 90) if len(set(alone(plain, [first, 17], 8)[0][:4])) == 4)
    tokens = alone(plain, [first, 17], 8)[0]
    word = f"w{tokens[3] - 4}"

    async def run():
        with model.trace([first, 17], max_tokens=8, stop=[word], include_stop_str_in_output=kept, **GREEDY) as tracer:
            seen = nnsight.save([])
            for step in tracer.iter[:]:
                model.logits.output  # noqa: B018
                seen.append(step)
            text = tracer.result.outputs[0].text.save()
        return (await tracer.backend()).outputs[0], seen, text

    output, seen, text = asyncio.run(run())
    assert (output.finish_reason, output.stop_reason) == ("stop", word)
    assert text == output.text and text.endswith(word) == kept and len(text.split()) == 3 + kept
    assert seen == [0, 1, 2, 3] and list(output.token_ids) == tokens[:4]


def test_generate_is_awaited_or_gone_through(model, plain):
    async def run():
        one = await model.generate([5, 6], max_tokens=3, **GREEDY)
        two = await model.generate([[5, 6], [7]], max_tokens=3, **GREEDY)
        lengths = [len(o.outputs[0].token_ids) async for o in model.generate([5, 6], max_tokens=5, **GREEDY)]
        numbers = {o.number async for o in model.generate([[5], [6], [7]], max_tokens=3, **GREEDY)}
        return one, two, lengths, numbers

    one, two, lengths, numbers = asyncio.run(run())
    assert list(one.outputs[0].token_ids) == list(two[0].outputs[0].token_ids) == alone(plain, [5, 6], 3)[0]
    assert list(two[1].outputs[0].token_ids) == alone(plain, [7], 3)[0]
    assert lengths == sorted(lengths) and lengths[-1] == 5 and numbers == {0, 1, 2}


def test_what_vllm_refuses_is_raised_as_a_value_error(model):
    with pytest.raises(ValueError, match="600 input tokens"):
        asyncio.run(model.generate([5] * 600, max_tokens=3)._wait())
    with pytest.raises(nnsight.WireError):
        lock = threading.Lock()
        with model.trace([5], max_tokens=3) as tracer:  # noqa: F841
            print(lock)


def test_threads_and_loops_come_and_go(model, plain):
    found = {}

    def ask(number):
        with model.trace([5 + number], max_tokens=4, **GREEDY) as tracer:
            tokens = tracer.result.outputs[0].token_ids.save()
        if number % 2:
            tracer.backend().result()
        else:
            asyncio.run(tracer.backend()._wait())
        found[number] = list(tokens)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {number: alone(plain, [5 + number], 4)[0] for number in range(6)}


def test_a_trace_is_forgotten_by_whoever_asked_when_it_is_over(model):
    async def run():
        with model.trace([5, 6], max_tokens=2) as tracer:
            hidden = model.model.layers[0].output[0].save()  # noqa: F841
        async for _ in tracer.backend():
            pass

    asyncio.run(run())
    gc.collect()
    before = sum(type(one) is torch.Tensor for one in gc.get_objects())
    for _ in range(5):
        asyncio.run(run())
    gc.collect()
    assert sum(type(one) is torch.Tensor for one in gc.get_objects()) <= before


def test_a_dead_engine_is_told_to_everybody_who_waits_and_to_later_ones_until_it_is_cleared_away(model):
    processes = model.__dict__["_engine"].engine.llm.engine_core.resources.engine_manager.processes
    pids = [process.pid for process in processes]

    async def waiting(kill):
        with model.trace([5, 6], max_tokens=250, **GREEDY) as tracer:
            hidden = [model.model.layers[0].output[0] for _ in tracer.iter[:]].save()  # noqa: F841
        async for _ in tracer.backend():
            if kill and pids:
                os.kill(pids.pop(), signal.SIGKILL)

    async def run():
        return await asyncio.gather(*(waiting(number == 3) for number in range(4)), return_exceptions=True)

    assert [type(error) for error in asyncio.run(run())] == [DeadEngineError] * 4
    with model.trace([5, 6], max_tokens=2) as tracer:
        model.model.layers[0].output[0].save()
    with pytest.raises(DeadEngineError, match=r"model\.shutdown\(\)"):
        asyncio.run(tracer.backend()._wait())
    model.shutdown()
    assert not model.dispatched and not any(process.is_alive() for process in processes)
