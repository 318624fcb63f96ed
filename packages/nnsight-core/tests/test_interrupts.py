"""However a trace is left - interrupted, failed, abandoned, collected - the model is what it was and usable."""

from __future__ import annotations

import asyncio
import gc
import signal
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import nn

import nnsight
from nnsight._core.active import active
from nnsight._core.taps import running

X = torch.rand(2, 4)


@pytest.fixture(scope="module", autouse=True)
def _collecting_is_quick() -> Iterator[None]:
    gc.collect()
    gc.freeze()  # what is there already is not looked at again
    yield
    gc.unfreeze()


class Interrupting(nn.Module):
    """Raises what it is told to, at the beginning or at the end of its forward."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 4)
        self.error: BaseException | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.inner(x)
        if self.error is not None:
            raise self.error
        return y


class Stubborn(nn.Module):
    """Swallows whatever is raised in it, as bad code does, and goes on."""

    def __init__(self, times: int = 1) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.last = nn.Linear(4, 4)
        self.times = times
        self.swallowed: list[str] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for _ in range(self.times):
            try:
                x = self.first(x)
            except:  # noqa: E722 - this is what the test is about
                self.swallowed.append("first")
        try:
            return self.last(x)
        except:  # noqa: E722
            self.swallowed.append("last")
            return x


@pytest.fixture
def module() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 4), Interrupting(), nn.Linear(4, 4))


@contextmanager
def untouched(module: nn.Module) -> Iterator[None]:
    """Check that what happens inside leaves the module as it was, this thread without a run, and a trace possible."""
    before = [(m, dict(m.__dict__), list(m._forward_hooks)) for m in module.modules()]
    runs, stack, grad = dict(running), active.get(), torch.is_grad_enabled()
    yield
    for m, own, hooks in before:
        assert m.__dict__.keys() == own.keys()
        assert "forward" not in m.__dict__ and list(m._forward_hooks) == hooks
    assert running == runs
    assert active.get() == stack
    assert torch.is_grad_enabled() is grad
    for m in module.modules():
        if isinstance(m, Interrupting):
            m.error = None
    model = nnsight.NNsight(module)
    with model.trace(X) as tracer:
        result = tracer.result
    assert torch.equal(result, module(X))


# -- KeyboardInterrupt and other errors --------------------------------------------------------------------------------

ERRORS = [KeyboardInterrupt, SystemExit, ValueError, StopIteration, GeneratorExit, asyncio.CancelledError, MemoryError]


@pytest.mark.parametrize("kind", ERRORS)
@pytest.mark.parametrize("asked", ["nothing", "something", "everything"])
def test_an_error_in_the_body(module: nn.Sequential, kind: type[BaseException], asked: str) -> None:
    error = kind("mine")
    model = nnsight.NNsight(module)
    with untouched(module):
        with pytest.raises(kind) as caught:
            with model.trace(X) as tracer:
                if asked != "nothing":
                    model[0].output
                if asked == "everything":
                    tracer.result
                raise error
    assert caught.value is error


@pytest.mark.parametrize("kind", ERRORS)
@pytest.mark.parametrize("asked", ["nothing", "before", "at", "after"])
def test_an_error_in_the_model(module: nn.Sequential, kind: type[BaseException], asked: str) -> None:
    error = module[1].error = kind("its own")
    model = nnsight.NNsight(module)
    reached = []
    with untouched(module):
        with pytest.raises(kind) as caught:
            with model.trace(X):
                if asked == "before":
                    model[0].output
                if asked == "at":
                    model[1].inner.output
                if asked == "after":
                    model[2].output
                reached.append(asked)
    assert caught.value is error
    # It comes out at the line that waited for the model.
    assert reached == ([] if asked == "after" else [asked])


@pytest.mark.parametrize("kind", ERRORS)
@pytest.mark.parametrize("which", [0, 1, 2])
def test_an_error_in_an_invoke(module: nn.Sequential, kind: type[BaseException], which: int) -> None:
    error = kind("mine")
    model = nnsight.NNsight(module)
    seen: list[int] = []
    with untouched(module):
        with pytest.raises(kind) as caught:
            with model.trace() as tracer:
                with tracer.invoke(X):
                    model[0].output
                    if which == 0:
                        raise error
                    model[2].output
                    seen.append(0)
                with tracer.invoke(X):
                    model[1].output
                    if which == 1:
                        raise error
                    model[2].output
                    seen.append(1)
                with tracer.invoke():
                    model[2].output
                    if which == 2:
                        raise error
                    seen.append(2)
    assert caught.value is error
    assert seen == ([0, 1] if which == 2 else [])


@pytest.mark.parametrize("kind", ERRORS)
def test_an_error_in_the_model_with_invokes(module: nn.Sequential, kind: type[BaseException]) -> None:
    error = module[1].error = kind("its own")
    model = nnsight.NNsight(module)
    with untouched(module):
        with pytest.raises(kind) as caught:
            with model.trace() as tracer:
                with tracer.invoke(X):
                    model[0].output
                with tracer.invoke(X):
                    model[2].output
    assert caught.value is error


@pytest.mark.parametrize("kind", ERRORS)
@pytest.mark.parametrize("asked", [False, True])
def test_an_error_in_an_edit(module: nn.Sequential, kind: type[BaseException], asked: bool) -> None:
    error = kind("the edit's")
    model = nnsight.NNsight(module)
    with model.edit() as edited:
        edited[0].output
        raise error
    with untouched(module):
        with pytest.raises(kind) as caught:
            with edited.trace(X):
                if asked:
                    edited[2].output
    assert caught.value is error


@pytest.mark.parametrize("kind", ERRORS)
def test_an_error_in_a_backward_block(module: nn.Sequential, kind: type[BaseException]) -> None:
    error = kind("mine")
    model = nnsight.NNsight(module)
    with untouched(module):
        with model.trace(X):
            hidden = model[0].output
            loss = model.output.sum()
        with pytest.raises(kind) as caught:
            with loss.backward():
                hidden.grad
                raise error
    assert caught.value is error
    assert "grad" not in torch.Tensor.__dict__


def test_a_model_that_fails_after_the_body_has_caught_its_error(module: nn.Sequential) -> None:
    module[1].error = KeyboardInterrupt()
    model = nnsight.NNsight(module)
    with untouched(module):
        with model.trace(X):
            with pytest.raises(KeyboardInterrupt):
                model[2].output
            with pytest.raises(nnsight.OutOfOrderError):
                model[0].output


def test_an_interrupt_while_the_model_runs(module: nn.Sequential) -> None:
    """A real signal, handled by the interpreter in whatever greenlet is running."""

    def interrupt(*_: Any) -> None:
        signal.raise_signal(signal.SIGINT)

    hook = module[1].inner.register_forward_pre_hook(interrupt)
    model = nnsight.NNsight(module)
    # What a shell starts in the background ignores the signal, and then Python installs no handler of its own.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        for ask in (lambda: model[2].output, lambda: None):
            with pytest.raises(KeyboardInterrupt):
                with model.trace(X):
                    ask()
    finally:
        signal.signal(signal.SIGINT, before)
        hook.remove()
    with untouched(module):
        pass


# -- leaving early -----------------------------------------------------------------------------------------------------


def test_return_break_and_continue(module: nn.Sequential) -> None:
    model = nnsight.NNsight(module)

    def by_return() -> torch.Tensor:
        with model.trace(X):
            return model[0].output
        raise AssertionError("not reached")

    with untouched(module):
        assert torch.equal(by_return(), module[0](X))
        for _ in range(3):
            with model.trace(X):
                value = model[0].output
                break
        else:
            raise AssertionError("not reached")
        assert torch.equal(value, module[0](X))
        for _ in range(3):
            with model.trace(X):
                value = model[1].output
                continue
        assert torch.equal(value, module[1](module[0](X)))


def _values(model: Any) -> Iterator[torch.Tensor]:
    with model.trace(X):
        yield model[0].output
        yield model[1].output
        yield model[2].output


def test_a_generator_gives_values_one_by_one(module: nn.Sequential) -> None:
    model = nnsight.NNsight(module)
    with untouched(module):
        first, second, third = _values(model)
    assert torch.equal(third, module(X)) and torch.equal(second, module[1](module[0](X)))
    assert torch.equal(first, module[0](X))


def test_a_suspended_generator_leaves_the_model_usable(module: nn.Sequential) -> None:
    model = nnsight.NNsight(module)
    values = _values(model)
    first = next(values)
    assert torch.equal(module(X), module[2](module[1](first)))
    with model.trace(X + 1):
        inside = model[1].output
    assert torch.equal(inside, module[1](module[0](X + 1)))
    assert torch.equal(next(values), module[1](first))
    values.close()
    with untouched(module):
        pass


@pytest.mark.parametrize("taken", [1, 2, 3])
@pytest.mark.parametrize("how", ["close", "collect", "throw"])
def test_a_suspended_generator_is_given_up(module: nn.Sequential, taken: int, how: str) -> None:
    model = nnsight.NNsight(module)
    with untouched(module):
        values = _values(model)
        for _ in range(taken):
            next(values)
        if how == "close":
            values.close()
        elif how == "throw":
            with pytest.raises(KeyError, match="mine"):
                values.throw(KeyError("mine"))
        del values
        gc.collect()


def test_suspended_generators_are_given_up_in_any_order(module: nn.Sequential) -> None:
    model = nnsight.NNsight(module)
    with untouched(module):
        several = [_values(model) for _ in range(5)]
        for values in several:
            next(values)
        for at in (2, 0, 2, 1, 0):
            several.pop(at).close()


def test_a_suspended_generator_in_a_cycle_is_collected(module: nn.Sequential) -> None:
    model = nnsight.NNsight(module)
    with untouched(module):
        values = _values(model)
        next(values)
        cycle = [values]
        cycle.append(cycle)
        del values, cycle
        gc.collect()


def test_a_suspended_generator_is_collected_by_another_thread(module: nn.Sequential) -> None:
    model = nnsight.NNsight(module)
    kept = [_values(model)]
    next(kept[0])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        thread = threading.Thread(target=kept.clear)
        thread.start()
        thread.join()
    gc.collect()
    assert all("forward" not in m.__dict__ for m in module.modules())
    # What ended over there is no scope here any more: edits count again, and nothing can be saved.
    with model.edit() as edited:
        edited[2].output = torch.zeros(2, 4)
    assert not edited(X).any()
    with pytest.raises(nnsight.SaveOutsideTraceError):
        nnsight.save(X)
    with untouched(module):
        with model.trace(X):
            model[0].output
    assert active.get() == ()


def test_a_thread_that_ends_with_a_suspended_generator(module: nn.Sequential) -> None:
    model = nnsight.NNsight(module)
    kept: list[Any] = []

    def begin() -> None:
        values = _values(model)
        next(values)
        kept.append(values)

    thread = threading.Thread(target=begin)
    thread.start()
    thread.join()
    kept.clear()
    gc.collect()
    with untouched(module):
        pass


def test_a_generator_may_be_advanced_by_another_thread(module: nn.Sequential) -> None:
    model = nnsight.NNsight(module)
    values = _values(model)
    next(values)
    errors: list[BaseException] = []

    def advance() -> None:
        try:
            next(values)
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=advance)
    thread.start()
    thread.join()
    # A greenlet belongs to its thread. What matters is that this is an error there, and that nothing stays behind.
    assert len(errors) == 1
    gc.collect()
    values.close()
    with untouched(module):
        pass


# -- a model that swallows ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("times", [1, 3])
def test_a_model_that_swallows_the_end_of_an_inline_run(times: int) -> None:
    module = Stubborn(times)
    model = nnsight.NNsight(module)
    before = module(X)
    with pytest.raises(ValueError, match="mine"):
        with model.trace(X):
            model.first.output
            raise ValueError("mine")
    with model.trace(X) as tracer:
        model.first.input
        tracer.stop()
    assert module.swallowed == ["first", "first"]
    assert not running and "forward" not in module.first.__dict__
    assert torch.equal(module(X), before)


@pytest.mark.parametrize("times", [1, 3])
def test_a_model_that_swallows_the_end_of_a_run_with_invokes(times: int) -> None:
    module = Stubborn(times)
    model = nnsight.NNsight(module)
    before = module(X)
    seen: list[str] = []
    with pytest.raises(ValueError, match="mine"):
        with model.trace() as tracer:
            with tracer.invoke(X):
                model.first.output
                raise ValueError("mine")
            with tracer.invoke(X):
                model.last.output
                seen.append("the other invoke went on")
    assert "first" in module.swallowed and not seen
    assert not running and "forward" not in module.first.__dict__
    assert torch.equal(module(X), before)


def test_a_model_that_swallows_the_error_of_an_edit() -> None:
    module = Stubborn()
    model = nnsight.NNsight(module)
    with model.edit() as edited:
        edited.first.output
        raise ValueError("the edit's")
    for ask in (lambda: edited.last.output, lambda: None):
        with pytest.raises(ValueError, match="the edit's"):
            with edited.trace(X):
                ask()
    assert not running and "forward" not in module.first.__dict__


def test_a_model_that_raises_while_it_is_given_up() -> None:
    class Raising(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            try:
                return self.inner(x)
            finally:
                x @ torch.rand(3, 9)

    module = Raising()
    model = nnsight.NNsight(module)
    with pytest.raises(Exception) as caught:
        with model.trace(X):
            model.inner.output
            raise ValueError("mine")
    related = {type(caught.value), type(caught.value.__context__), type(caught.value.__cause__)}
    assert ValueError in related
    assert not running and "forward" not in module.inner.__dict__ and active.get() == ()


# -- stop --------------------------------------------------------------------------------------------------------------


def test_stop_ends_the_forward_and_the_block(module: nn.Sequential) -> None:
    ran: list[str] = []
    module[2].register_forward_hook(lambda *_: ran.append("last"))
    model = nnsight.NNsight(module)
    with untouched(module):
        with model.trace(X) as tracer:
            value = model[0].output
            tracer.stop()
            ran.append("the rest of the block")
        assert ran == []
    assert torch.equal(value, module[0](X))


def test_stop_of_an_outer_trace_from_an_inner_one(module: nn.Sequential) -> None:
    model = nnsight.NNsight(module)
    after: list[str] = []
    with untouched(module):
        with model.trace(X) as outer:
            model[0].output
            with model.trace(X):
                model[1].output
                outer.stop()
                after.append("inner")
            after.append("outer")
    assert after == []


def test_stop_in_an_invoke_ends_all_of_them(module: nn.Sequential) -> None:
    model = nnsight.NNsight(module)
    after: list[str] = []
    with untouched(module):
        with model.trace() as tracer:
            with tracer.invoke(X):
                model[0].output
                tracer.stop()
            with tracer.invoke(X):
                model[2].output
                after.append("second")
    assert after == []


@pytest.mark.parametrize("leave", [lambda: None, lambda: 1 / 0])
def test_grad_mode_survives_however_a_trace_is_left(module: nn.Sequential, leave: Callable[[], Any]) -> None:
    model = nnsight.NNsight(module)
    for outside in (True, False):
        with torch.set_grad_enabled(outside):
            try:
                with model.trace(X):
                    with torch.set_grad_enabled(not outside):
                        model[0].output
                        leave()
            except ZeroDivisionError:
                pass
            assert torch.is_grad_enabled() is outside
