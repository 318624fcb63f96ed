"""Threads and tasks: each gets its own results from one model, however their runs lie in time."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

import nnsight
from nnsight._core.taps import running

TRACES = 500


class Handover(nn.Module):
    """Lets the other threads run in the middle of a forward."""

    def __init__(self) -> None:
        super().__init__()
        self.hand_over: Callable[[], None] | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.hand_over is not None:
            self.hand_over()
        return torch.mul(x, 2)


@pytest.fixture
def module() -> Iterator[nn.Sequential]:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(4, 4), Handover(), nn.Linear(4, 4))
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)  # threads change places all the time
    yield module
    sys.setswitchinterval(interval)
    assert not running
    assert all("forward" not in m.__dict__ for m in module.modules())


def together(*work: Callable[[], None]) -> None:
    """Run each in a thread of its own, begun at once, and raise what any of them raised."""
    start = threading.Barrier(len(work))

    def begin(one: Callable[[], None]) -> None:
        start.wait()
        one()

    with ThreadPoolExecutor(len(work)) as pool:
        for done in [pool.submit(begin, one) for one in work]:
            done.result()


def test_two_threads_trace_one_model(module: nn.Sequential) -> None:
    model = nnsight.NNsight(module)

    def trace(sign: int) -> None:
        for n in range(TRACES):
            x = torch.full((1, 4), float(sign * (n + 1)))
            with model.trace(x) as tracer:
                hidden = model[0].output
                model[1].output = hidden + sign
                result = tracer.result
            # By hand, without any module of the model: those are being traced by the other thread.
            expected = x @ module[0].weight.T + module[0].bias
            assert torch.allclose(hidden, expected, atol=1e-4, rtol=1e-5)
            assert torch.equal(result, torch.nn.functional.linear(hidden + sign, module[2].weight, module[2].bias))

    together(lambda: trace(1), lambda: trace(-1))


def test_two_threads_trace_with_invokes(module: nn.Sequential) -> None:
    model = nnsight.NNsight(module)

    def trace(sign: int) -> None:
        for n in range(TRACES):
            x = torch.full((1, 4), float(sign * (n + 1)))
            with model.trace() as tracer:
                with tracer.invoke(x):
                    mine = model[0].output
                    model[1].output = mine + sign
                    written = model[2].output
                with tracer.invoke(x + 1):
                    other = model[2].output
            assert torch.allclose(mine, module[0](x), atol=1e-4, rtol=1e-5)
            assert torch.allclose(written, module[2](mine + sign), atol=1e-4, rtol=1e-5)
            assert torch.allclose(other, module(x + 1), atol=1e-4, rtol=1e-5)

    together(lambda: trace(1), lambda: trace(-1))


def test_one_thread_traces_while_others_only_call(module: nn.Sequential) -> None:
    model = nnsight.NNsight(module)
    x = torch.rand(2, 4)
    plain = module(x)

    def trace() -> None:
        for _ in range(TRACES):
            with model.trace(x) as tracer:
                model[0].output = torch.zeros(2, 4)
                result = tracer.result
            assert torch.equal(result, module[2](torch.zeros(2, 4)))

    def call() -> None:
        for _ in range(2 * TRACES):
            assert torch.equal(module(x), plain)

    together(trace, call)


def test_edits_and_backward_in_two_threads(module: nn.Sequential) -> None:
    model = nnsight.NNsight(module)

    def work(factor: float) -> None:
        for _ in range(50):
            with model.edit() as edited:
                edited[1].output = edited[1].output * factor
            x = torch.rand(1, 4)
            with edited.trace(x):
                hidden = edited[1].output
                loss = edited.output.sum()
                with loss.backward():
                    grad = hidden.grad
            torch.testing.assert_close(hidden, module[1](module[0](x)) * factor)
            torch.testing.assert_close(grad, module[2].weight.sum(0, keepdim=True).expand(1, 4))

    together(lambda: work(2.0), lambda: work(-3.0))


def test_threads_read_new_source_at_once(module: nn.Sequential) -> None:
    """Each of these blocks, and the forward, is read for the first time by all threads at once."""
    model = nnsight.NNsight(module)
    x = torch.rand(2, 4)

    def traces() -> None:
        with model.trace() as tracer:
            with tracer.invoke(x):
                doubled = model[1].source.torch_mul_0.output
        assert torch.equal(doubled, module[0](x) * 2)

    def edits() -> None:
        with model.edit() as edited:
            edited[1].source.torch_mul_0.output = torch.ones(2, 4)
        assert torch.equal(edited(x), module[2](torch.ones(2, 4)))

    together(traces, edits, traces, edits, traces, edits)


def test_a_trace_is_begun_and_ended_inside_the_forward_of_another_thread(module: nn.Sequential) -> None:
    """The taps of the thread that began first outlive those of the one that ends first, and the other way round."""
    model = nnsight.NNsight(module)
    x = torch.rand(2, 4)
    plain = module(x)
    inside, go_on = threading.Event(), threading.Event()

    def wait() -> None:
        module[1].hand_over = None
        inside.set()
        assert go_on.wait(20)

    module[1].hand_over = wait
    seen: list[torch.Tensor] = []

    def first() -> None:
        with model.trace(x):
            seen.append(model[1].output)
            seen.append(model[2].output)

    thread = threading.Thread(target=first)
    thread.start()
    assert inside.wait(20)
    with model.trace(x + 1):
        mine = model[2].output
    go_on.set()
    thread.join()
    assert torch.equal(seen[1], plain)
    assert torch.equal(mine, module(x + 1))


def test_a_pool_of_threads_each_with_a_model_wrapper_of_its_own(module: nn.Sequential) -> None:
    def trace(n: int) -> bool:
        model = nnsight.NNsight(module)
        x = torch.full((1, 4), float(n))
        with model.trace(x):
            value = model[2].output
        return torch.allclose(value, module(x), atol=1e-4, rtol=1e-5)

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(trace, range(200)))


def test_grad_mode_belongs_to_each_thread(module: nn.Sequential) -> None:
    model = nnsight.NNsight(module)
    x = torch.rand(2, 4)

    def trace(enabled: bool) -> None:
        with torch.set_grad_enabled(enabled):
            for _ in range(100):
                with model.trace(x):
                    with torch.set_grad_enabled(not enabled):
                        inside = model[0].output
                        made = inside * 2
                    result = model[2].output
                assert result.requires_grad is enabled and made.requires_grad is False

    together(lambda: trace(True), lambda: trace(False))


# -- asyncio -----------------------------------------------------------------------------------------------------------


def test_tasks_interleave_traces_of_one_model(module: nn.Sequential) -> None:
    model = nnsight.NNsight(module)

    async def trace(n: int) -> None:
        x = torch.full((1, 4), float(n))
        with model.trace(x) as tracer:
            first = model[0].output
            for _ in range(n % 4):
                await asyncio.sleep(0)
            model[1].output = first * n
            await asyncio.sleep(0)
            last = model[2].output
            await asyncio.sleep(0)
        assert torch.equal(first, module[0](x))
        assert torch.equal(last, module[2](first * n))

    async def everything() -> None:
        await asyncio.gather(*(trace(n) for n in range(60)))

    asyncio.run(everything())


def test_tasks_interleave_traces_with_invokes(module: nn.Sequential) -> None:
    model = nnsight.NNsight(module)

    async def trace(n: int) -> None:
        x = torch.full((1, 4), float(n))
        with model.trace() as tracer:
            await asyncio.sleep(0)
            with tracer.invoke(x):
                model[1].output *= n
                mine = model[2].output
            await asyncio.sleep(0)
            with tracer.invoke(x + 1):
                other = model[2].output
        assert torch.allclose(mine, module[2](module[1](module[0](x)) * n), atol=1e-4, rtol=1e-5)
        assert torch.allclose(other, module(x + 1), atol=1e-4, rtol=1e-5)

    async def everything() -> None:
        await asyncio.gather(*(trace(n) for n in range(40)))

    asyncio.run(everything())


def test_a_task_is_cancelled_inside_a_trace(module: nn.Sequential) -> None:
    model = nnsight.NNsight(module)
    x = torch.rand(2, 4)
    reached: list[str] = []

    async def trace() -> None:
        with model.trace(x):
            model[0].output
            reached.append("inside")
            await asyncio.sleep(60)
            reached.append("after")

    async def cancel() -> None:
        task = asyncio.create_task(trace())
        while not reached:
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancel())
    assert reached == ["inside"]


def test_a_trace_asked_from_another_thread_is_an_error_and_goes_on_in_its_own(module: nn.Sequential) -> None:
    model = nnsight.NNsight(module)
    x = torch.rand(2, 4)

    async def trace() -> tuple[torch.Tensor, torch.Tensor]:
        with model.trace(x):
            first = model[0].output
            # `to_thread` takes the context along, and so the trace, but its model cannot change threads.
            with pytest.raises(nnsight.NoTraceError, match="another thread"):
                await asyncio.to_thread(lambda: model[1].output)
            return first, model[2].output

    first, last = asyncio.run(trace())
    assert torch.equal(first, module[0](x)) and torch.equal(last, module(x))
