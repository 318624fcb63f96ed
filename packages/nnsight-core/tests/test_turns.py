"""The facts that switching between model and body rests on, each kept true by a test here or where it is used.

Which facts: with-heads are in `test_blocks.py`, skipping in `test_blocks_skip.py`, `.save()` in `test_saving.py`, grad
mode and context in `test_state.py`, two runs at once in `test_threads.py`, crashes in `test_no_crash.py`.
"""

from __future__ import annotations

import contextvars
import copy
import ctypes
import inspect
import pickle
import struct
import sys
import warnings
from pathlib import Path
from typing import Any

import pluggy
import pytest
import torch
from torch import nn

import nnsight
from nnsight._core import turns

X = torch.rand(2, 4)

native = pytest.mark.skipif(turns._first_frame is None or not turns._pages, reason="no native first frame here")
linux = pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="reads the memory map of Linux")


def _address() -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(turns._pages[0]))


@pytest.fixture
def model() -> nnsight.NNsight:
    return nnsight.NNsight(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)))


# -- the native first frame --------------------------------------------------------------------------------------------


@native
@linux
def test_the_first_frame_can_be_executed_and_not_written() -> None:
    at = _address()
    for line in Path("/proc/self/maps").read_text().splitlines():
        span, access = line.split()[:2]
        start, end = (int(edge, 16) for edge in span.split("-"))
        if start <= at < end:
            assert access.startswith("r-x")
            return
    raise AssertionError("the page is not mapped")


@native
@linux
def test_the_unwinder_knows_nothing_about_the_first_frame() -> None:
    """relies on: `_Unwind_Find_FDE` of libgcc; its unwinder asks it at every frame, and stops where it gets nothing."""
    find = ctypes.CDLL("libgcc_s.so.1")._Unwind_Find_FDE
    find.restype, find.argtypes = ctypes.c_void_p, [ctypes.c_void_p, ctypes.c_void_p]
    bases = (ctypes.c_void_p * 3)()
    known = ctypes.cast(find, ctypes.c_void_p).value
    assert known is not None and find(known + 4, bases)
    length = len(turns._machine_code(0) or b"")
    assert not any(find(_address() + offset, bases) for offset in range(length))


@native
def test_every_greenlet_goes_through_the_first_frame(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    entered: list[Any] = []
    through = turns._first_frame
    assert through is not None

    def watching(function: Any) -> Any:
        entered.append(function)
        return through(function)

    monkeypatch.setattr(turns, "_first_frame", watching)
    monkeypatch.setattr(turns, "_idle", turns._Idle())  # none of those that were begun before
    with model.trace(X):
        model[0].output
    assert len(entered) == len(turns._idle.workers) == 1
    with model.edit() as edited:
        edited[0].output
    with edited.trace() as tracer:
        with tracer.invoke(X):
            edited[1].output
        with tracer.invoke(X):
            edited[1].output
    # Three bodies beside the model, and one of them runs in the worker that is there.
    assert len(entered) == len(turns._idle.workers) == 3
    with model.trace(X):
        hidden = model[0].output
        with model.trace(X):
            model[0].output
            loss = model.output.sum()
            with loss.backward():
                model[0]._module.weight.grad
    assert len(entered) == len(turns._idle.workers) == 3


@pytest.mark.parametrize("error", [KeyError("mine"), KeyboardInterrupt(), SystemExit(3), StopIteration(4)])
def test_exceptions_pass_through_the_first_frame_unharmed(error: BaseException) -> None:
    def fail() -> None:
        raise error

    side = turns.spawn(fail, turns.getcurrent(), contextvars.copy_context())
    with pytest.raises(type(error)) as caught:
        side.switch()
    assert caught.value is error and side.dead


def test_a_worker_that_is_done_takes_the_next_job() -> None:
    done: list[str] = []
    home = turns.getcurrent()
    first = turns.spawn(lambda: done.append("first"), home, contextvars.copy_context())
    assert not first.standing
    first.switch()
    second = turns.spawn(lambda: done.append("second"), home, contextvars.copy_context())
    assert second is first and not second.standing
    second.switch()
    assert done == ["first", "second"]


def test_the_code_for_arm_reads_its_target_where_it_was_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns.platform, "machine", lambda: "aarch64")
    target = 0x1122334455667788
    code = turns._machine_code(target)
    assert code is not None and len(code) % 4 == 0
    words = struct.unpack(f"<{len(code) // 4}I", code)
    loads = [(at, word) for at, word in enumerate(words) if word >> 24 == 0x58]  # ldr x, literal
    assert len(loads) == 1
    at, word = loads[0]
    literal = at * 4 + (word >> 5 & 0x7FFFF) * 4
    assert struct.unpack_from("<Q", code, literal)[0] == target and literal % 4 == 0
    # What is loaded is what is called, and the frame that is pushed is popped.
    assert (words[at + 1] >> 5 & 0x1F) == (word & 0x1F)
    assert words[0] == 0xA9BF7BFD and words[4] == 0xA8C17BFD and words[5] == 0xD65F03C0


def test_where_executable_pages_are_refused_it_is_said_once(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "_PROT_READ_EXEC", 0x7000)  # no such protection: the system refuses
    refused = turns._map_first_frame() if sys.platform != "win32" else None
    assert refused is None
    monkeypatch.setattr(turns, "_first_frame", refused)
    monkeypatch.setattr(turns, "_idle", turns._Idle())
    turns._warn_unprotected.cache_clear()
    with pytest.warns(nnsight.NNsightWarning, match="refuses executable memory"):
        with model.trace(X):
            hidden = model[0].output
    assert torch.equal(hidden, model._module[0](X))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with model.trace(X):
            first = model[0].output
            with model.trace(X):
                second = model[0].output
    assert torch.equal(hidden, first) and torch.equal(hidden, second)


def test_an_unknown_processor_has_no_first_frame(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns.platform, "machine", lambda: "abacus")
    assert turns._machine_code(0) is None
    if sys.platform != "win32":
        assert turns._map_first_frame() is None


# -- what torch does, and so what we do --------------------------------------------------------------------------------


def test_a_hook_added_to_a_running_module_is_not_called() -> None:
    """Why taps are put on before the run. If this fails, torch has become kinder, and taps could be thinner."""
    called: list[str] = []

    class HooksItself(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if not self._forward_hooks:
                self.register_forward_hook(lambda *_: called.append("hook"))
            return x

    module = HooksItself()
    module(X)
    assert called == []
    module(X)
    assert called == ["hook"]


def test_an_idle_model_is_untouched(model: Any) -> None:
    module = model._module
    with model.trace(X):
        model[0].output
    assert len(model[1].source) > 0  # opened, and still nothing is on the module
    for part in module.modules():
        assert "forward" not in part.__dict__
        assert not (part._forward_hooks or part._forward_pre_hooks or part._backward_hooks)
    assert torch.equal(pickle.loads(pickle.dumps(module))(X), module(X))
    assert torch.equal(copy.deepcopy(module)(X), module(X))


def test_a_traced_backward_runs_on_one_thread_and_a_plain_one_is_let_be(model: Any) -> None:
    """On CUDA the engine would call hooks on threads of its own, where a greenlet cannot be switched to."""
    seen: list[bool] = []

    class Look(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
            return x * 1

        @staticmethod
        def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
            seen.append(torch._C._is_multithreading_enabled())
            return grad

    with model.trace(X):
        hidden = model[0].output
        loss = Look.apply(model.output).sum()
    with loss.backward(retain_graph=True):
        hidden.grad
    loss.backward()
    assert seen == [False, True]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA")
def test_gradients_on_cuda() -> None:
    module = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)).cuda()
    model = nnsight.NNsight(module)
    with model.trace(X.cuda()):
        hidden = model[0].output
        loss = model.output.sum()
        with loss.backward():
            grad = hidden.grad
            hidden.grad = grad * 2
    torch.testing.assert_close(grad, module[1].weight.sum(0).expand(2, 4))
    torch.testing.assert_close(module[0].bias.grad, grad.sum(0) * 2)


# -- what is kept out of the way ---------------------------------------------------------------------------------------


def test_pluggy_is_not_called_inside_a_trace(model: Any) -> None:
    called: set[str] = set()
    sys.setprofile(lambda frame, event, arg: called.add(frame.f_code.co_filename))
    try:
        with model.trace(X) as tracer:
            model[0].output
            tracer.result
        with model.trace() as tracer:
            with tracer.invoke(X):
                model[0].output
            with tracer.invoke(X):
                model[1].output
    finally:
        sys.setprofile(None)
    assert turns.__file__ in called
    assert not [name for name in called if name.startswith(str(Path(pluggy.__file__).parent))]


@pytest.mark.parametrize("name", [n for n in nnsight.__all__ if inspect.isclass(getattr(nnsight, n))])
def test_the_source_of_every_public_class_can_be_found(name: str) -> None:
    """Bodies travel by source. Exported classes keep the module that they were written in, or `inspect` would fail."""
    cls = getattr(nnsight, name)
    assert f"class {cls.__name__}" in inspect.getsource(cls)
