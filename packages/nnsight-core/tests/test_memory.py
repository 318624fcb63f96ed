"""Nothing is kept that nobody needs: no growth over many traces, no cycles that wait for the collector.

Growth is measured by counting objects and blocks of memory, not by the size of the process: the allocator decides that.
"""

from __future__ import annotations

import gc
import sys
import tracemalloc
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import nn

import nnsight
from nnsight._core.active import active
from nnsight._core.taps import _taps, running

X = torch.rand(2, 4)


@pytest.fixture(scope="module", autouse=True)
def _collecting_is_quick() -> Iterator[None]:
    gc.collect()
    gc.freeze()  # what is there already is not looked at again
    yield
    gc.unfreeze()


class Watched(nn.Module):
    """Makes a new tensor and remembers it weakly."""

    def __init__(self) -> None:
        super().__init__()
        self.made: list[weakref.ref[torch.Tensor]] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.add(x, 1)
        self.made.append(weakref.ref(y))
        return y

    def alive(self) -> int:
        return sum(ref() is not None for ref in self.made)


@pytest.fixture
def module() -> nn.Sequential:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(4, 4), Watched(), nn.Linear(4, 4), Watched(), nn.Linear(4, 4))
    module[0].unused = nn.Linear(4, 4)
    return module


@pytest.fixture
def model(module: nn.Sequential) -> nnsight.NNsight:
    return nnsight.NNsight(module)


# -- what can be done with a trace -------------------------------------------------------------------------------------


def read(model: Any) -> None:
    with model.trace(X):
        model[1].output.sum()


def read_and_replace(model: Any) -> None:
    with model.trace(X) as tracer:
        model[1].output = model[1].output * 2
        model[2].input[:] = 0
        tracer.result


def nothing(model: Any) -> None:
    with model.trace(X):
        pass


def miss(model: Any) -> None:
    with model.trace(X) as tracer:
        for _ in tracer.iter[:]:
            model[1].output


def ask_too_late(model: Any) -> None:
    try:
        with model.trace(X):
            model[2].output
            model[1].output
    except nnsight.OutOfOrderError:
        pass


def catch_a_missed_site(model: Any) -> None:
    with model.trace(X):
        model[2].skip(X)
        model[3].output
        with pytest.raises(nnsight.OutOfOrderError):
            model[1].output
        with pytest.raises(nnsight.MissedProviderError):
            model[0].unused.output


def fail(model: Any) -> None:
    try:
        with model.trace(X):
            value = model[1].output
            raise KeyError(value)
    except KeyError:
        pass


def fail_in_the_model(model: Any) -> None:
    try:
        with model.trace(X):
            model[1].output = torch.rand(9, 9)
            model[3].output
    except RuntimeError:
        pass


def stop(model: Any) -> None:
    with model.trace(X) as tracer:
        model[1].output
        tracer.stop()


def skip(model: Any) -> None:
    with model.trace(X):
        model[2].skip(model[2].input)
        model[3].output


def invoke(model: Any) -> None:
    with model.trace() as tracer:
        with tracer.invoke(X):
            first = model[1].output
        with tracer.invoke(X):
            model[1].output = first
            model[3].output
        with tracer.invoke():
            model[3].output[:] = 0


def fail_in_an_invoke(model: Any) -> None:
    try:
        with model.trace() as tracer:
            with tracer.invoke(X):
                value = model[1].output
                raise KeyError(value)
            with tracer.invoke(X):
                model[3].output
    except KeyError:
        pass


def wait_for_one_another(model: Any) -> None:
    with model.trace() as tracer:
        barrier = tracer.barrier(2)
        with tracer.invoke(X):
            value = model[1].output
            barrier()
        with tracer.invoke(X):
            barrier()
            model[1].output = value


def edit(model: Any) -> None:
    with model.edit(inplace=True):
        model[1].output = model[1].output * 2
    with model.trace(X):
        model[3].output
    model(X)
    with model.trace() as tracer:
        with tracer.invoke(X):
            model[3].output
    model.clear_edits()


def fail_in_an_edit(model: Any) -> None:
    with model.edit(inplace=True):
        raise KeyError(model[1].output)
    try:
        with model.trace(X):
            model[3].output
    except KeyError:
        pass
    model.clear_edits()


def backward(model: Any) -> None:
    with model.trace(X):
        hidden = model[1].output
        loss = model.output.sum()
        with loss.backward():
            hidden.grad = hidden.grad * 2


def fail_in_backward(model: Any) -> None:
    with model.trace(X):
        hidden = model[1].output
        loss = model.output.sum()
    try:
        with loss.backward():
            raise KeyError(hidden.grad)
    except KeyError:
        pass


def cache(model: Any) -> None:
    with model.trace(X) as tracer:
        kept = tracer.cache(include_inputs=True)
    assert kept["model.1"].output is not None


def cache_with_invokes(model: Any) -> None:
    with model.trace() as tracer:
        with tracer.invoke(X):
            kept = tracer.cache()
        with tracer.invoke(X):
            model[1].output
    assert kept["model.1"].output.shape == X.shape


def nest(model: Any) -> None:
    with model.trace(X):
        value = model[1].output
        with model.trace(X):
            model[1].output = value
            model[3].output


def read_an_operation(model: Any) -> None:
    with model.trace(X):
        model[1].source.torch_add_0.output


def leave_by_a_generator(model: Any) -> None:
    def values() -> Iterator[torch.Tensor]:
        with model.trace(X):
            yield model[1].output
            yield model[3].output

    for _ in values():
        break
    list(values())


def group(model: Any) -> None:
    with model.session():
        with model.trace(X):
            value = model[1].output
        with model.trace(X):
            model[1].output = value


def look_at_steps(model: Any) -> None:
    with model.trace(X) as tracer:
        with tracer.iter[:2]:
            model[1].output
            tracer.stop()


DEEDS: list[Callable[[Any], None]] = [
    read, read_and_replace, nothing, miss, ask_too_late, catch_a_missed_site, fail, fail_in_the_model, stop, skip,
    invoke, fail_in_an_invoke, wait_for_one_another, edit, fail_in_an_edit, backward, fail_in_backward, cache,
    cache_with_invokes, nest, read_an_operation, leave_by_a_generator, group, look_at_steps,
]  # fmt: skip


@contextmanager
def no_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


@pytest.mark.parametrize("deed", DEEDS, ids=lambda deed: deed.__name__)
def test_no_cycle_is_left(deed: Callable[[Any], None], model: nnsight.NNsight) -> None:
    """What a trace made is gone when it is over, without the help of the collector."""
    deed(model)  # what is made once is made
    made = model._module[1].made
    with no_collector():
        made.clear()
        deed(model)
        assert made and model._module[1].alive() == 0, "an activation outlived its trace"
        gc.set_debug(gc.DEBUG_SAVEALL)
        try:
            gc.collect()
            left = Counter(type(thing).__name__ for thing in gc.garbage)
        finally:
            gc.set_debug(0)
            gc.garbage.clear()
    assert not left, f"left for the collector: {dict(left)}"


def _forget(model: Any) -> None:
    model._module[1].made.clear()
    model._module[3].made.clear()


@pytest.mark.parametrize("deed", DEEDS, ids=lambda deed: deed.__name__)
def test_no_growth(deed: Callable[[Any], None], model: nnsight.NNsight) -> None:
    for _ in range(5):
        deed(model)
    _forget(model)
    gc.collect()
    before = len(gc.get_objects())
    for _ in range(20):
        deed(model)
        _forget(model)
    gc.collect()
    assert len(gc.get_objects()) - before < 10
    assert not running and active.get() == ()


def test_no_growth_in_ten_thousand_traces() -> None:
    module = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model = nnsight.NNsight(module)

    def traces(count: int) -> tuple[int, int]:
        for _ in range(count):
            with model.trace(X) as tracer:
                hidden = model[0].output
                model[1].output = hidden
                tracer.result
        gc.collect()
        return sys.getallocatedblocks(), len(gc.get_objects())

    with torch.no_grad():
        traces(500)
        blocks, objects = traces(500)
        more_blocks, more_objects = traces(9_000)
        assert more_objects - objects < 10
        assert more_blocks - blocks < 500, f"{more_blocks - blocks} blocks more after 9,000 traces"
        # The same in bytes; counting them is slow.
        tracemalloc.start()
        try:
            traces(100)
            before = tracemalloc.get_traced_memory()[0]
            traces(400)
            grown = tracemalloc.get_traced_memory()[0] - before
        finally:
            tracemalloc.stop()
        assert grown < 4_000, f"{grown} bytes more after 400 traces"


def test_wrapping_tracing_and_dropping_a_hundred_models() -> None:
    def once() -> tuple[weakref.ref[Any], ...]:
        module = nn.Sequential(*(nn.Linear(4, 4) for _ in range(10)))
        model = nnsight.NNsight(module, rename={"0": "first"})
        with model.trace(X):
            model.first.output
        with model.edit() as edited:
            edited[1].output = edited[1].output * 2
        edited(X)
        return tuple(weakref.ref(thing) for thing in (module, module[3], module[3].weight, model))

    def many(count: int) -> tuple[int, int]:
        refs = [once() for _ in range(count)]
        gc.collect()
        assert all(ref() is None for each in refs for ref in each)
        del refs
        gc.collect()
        return sys.getallocatedblocks(), len(gc.get_objects())

    blocks, objects = many(5)
    known = len(_taps)
    more_blocks, more_objects = many(100)
    assert len(_taps) == known
    assert more_objects - objects < 50
    assert more_blocks - blocks < 1_000


def test_an_activation_that_is_not_kept_is_freed_while_the_model_runs(model: nnsight.NNsight) -> None:
    alive: list[int] = []
    first, second = model._module[1], model._module[3]
    with torch.no_grad(), no_collector():
        with model.trace(X):
            model[1].output.sum()
            model[2].output.sum()
            model[3].input.sum()
            alive.append(first.alive())
        assert alive == [0]
        alive.clear()
        with model.trace() as tracer:
            with tracer.invoke(X):
                model[1].output.sum()
                model[3].input.sum()
                alive.append(first.alive())
            with tracer.invoke(X):
                model[3].output.sum()
    assert alive == [0]
    assert second.alive() == 0


def test_what_a_body_keeps_is_kept_and_nothing_else(model: nnsight.NNsight) -> None:
    with torch.no_grad(), no_collector():
        with model.trace(X) as tracer:
            kept = model[1].output
            model[3].output.sum()
        # The tracer is still bound here: it holds no values of its run.
        assert model._module[1].alive() == 1
        assert model._module[3].alive() == 0
        del kept
        assert model._module[1].alive() == 0


def test_a_tracer_that_is_kept_holds_neither_input_nor_result() -> None:
    model = nnsight.NNsight(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)))
    Kept = tuple[Any, list["weakref.ref[torch.Tensor]"]]

    # Functions of their own, without asserts: what pytest makes of those holds on to the values of a function's names.
    def inline() -> Kept:
        x = torch.rand(2, 4)
        with model.trace(x) as tracer:
            result = tracer.result
        return tracer, [weakref.ref(x), weakref.ref(result)]

    def with_invokes() -> Kept:
        x = torch.rand(2, 4)
        with model.trace() as tracer:
            with tracer.invoke(x):
                first = model[1].output
            with tracer.invoke(x):
                second = model[1].output
        return tracer, [weakref.ref(x), weakref.ref(first), weakref.ref(second)]

    with torch.no_grad(), no_collector():
        for trace in (inline, with_invokes):
            tracer, refs = trace()
            assert [ref() for ref in refs] == [None] * len(refs)


def test_a_model_is_freed_although_an_error_of_its_trace_is_kept() -> None:
    def failing() -> tuple[BaseException, weakref.ref[torch.Tensor]]:
        module = nn.Sequential(nn.Linear(4, 4), Watched())
        model = nnsight.NNsight(module)
        try:
            with model.trace(X):
                model[1].output
                raise KeyError("mine")
        except KeyError as error:
            return error.with_traceback(None), module[1].made[-1]
        raise AssertionError

    with no_collector():
        error, made = failing()
        assert made() is None
    assert error.__context__ is None
