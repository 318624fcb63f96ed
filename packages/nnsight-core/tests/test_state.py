"""State of the thread: the model and a block each keep their own."""

from __future__ import annotations

import contextvars
from collections.abc import Callable
from typing import Any

import pytest
import torch
from core_toys import rows, seeded
from torch import nn

from nnsight import NNsight

variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="default")


class Watching(nn.Module):
    """Notes the state that each of its parts runs under."""

    def __init__(self, depth: int = 3) -> None:
        super().__init__()
        self.parts = nn.ModuleList([nn.Linear(4, 4) for _ in range(depth)])
        self.read: Callable[[], Any] = torch.is_grad_enabled
        self.seen: list[Any] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for part in self.parts:
            self.seen.append(self.read())
            x = part(x)
        self.seen.append(self.read())
        return x

    @torch.no_grad()
    def generate(self, x: torch.Tensor) -> torch.Tensor:
        """Run without gradients, as generation does."""
        return self(x)


@pytest.fixture
def net() -> Watching:
    return seeded(Watching)


@pytest.fixture
def model(net: Watching) -> Any:
    return NNsight(net)


def autocast_state() -> tuple[bool, torch.dtype]:
    return torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")


# -- grad mode -------------------------------------------------------------------------------------------------------


def test_no_grad_in_a_block_does_not_reach_the_model(model: Any, net: Watching) -> None:
    with model.trace(rows()):
        with torch.no_grad():
            inside = model.parts[0].output
            doubled = inside * 2
            model.parts[1].input
        out = model.output
    assert net.seen == [True] * 4
    assert inside.requires_grad and not doubled.requires_grad and out.requires_grad
    assert torch.is_grad_enabled()


def test_no_grad_of_the_model_does_not_reach_a_block(model: Any, net: Watching) -> None:
    seen = []
    with model.generate(rows()) as tracer:
        seen.append(torch.is_grad_enabled())
        h = model.parts[0].output
        seen.append(torch.is_grad_enabled())
        mine = (torch.ones(2, 4, requires_grad=True) * h).requires_grad
        model.parts[2].output
        seen.append(torch.is_grad_enabled())
        result = tracer.result
    assert seen == [True] * 3 and mine
    assert net.seen == [False] * 4 and not result.requires_grad and torch.is_grad_enabled()


def test_around_a_trace_it_holds_for_both(model: Any, net: Watching) -> None:
    with torch.no_grad():
        with model.trace(rows()):
            out = model.parts[1].output
            both = torch.is_grad_enabled()
    assert net.seen == [False] * 4 and not both and not out.requires_grad


def test_a_change_that_a_block_leaves_behind_is_the_callers(model: Any, net: Watching) -> None:
    try:
        with model.trace(rows()):
            model.parts[0].output
            torch.set_grad_enabled(False)
            model.parts[1].output
        assert not torch.is_grad_enabled()
    finally:
        torch.set_grad_enabled(True)
    assert net.seen == [True] * 4


def test_a_change_before_the_model_begins_is_the_callers_too(model: Any, net: Watching) -> None:
    with model.trace(rows()):
        with torch.no_grad():
            first = model.parts[0].output
        second = model.parts[1].output
    assert net.seen == [True] * 4 and first.requires_grad and second.requires_grad


def test_a_change_that_the_model_leaves_behind_is_not_the_blocks(model: Any, net: Watching) -> None:
    plain = type(net).forward

    def forward(x: torch.Tensor) -> torch.Tensor:
        torch.set_grad_enabled(False)
        x = plain(net, x)
        torch.set_grad_enabled(True)
        return x

    net.forward = forward  # type: ignore[method-assign]
    states = []
    with model.trace(rows()):
        for part in model.parts:
            part.output
            states.append(torch.is_grad_enabled())
    assert states == [True] * 3 and net.seen == [False] * 4


def test_in_invokes_each_body_keeps_its_own(model: Any, net: Watching) -> None:
    states = []
    with model.trace() as tracer:
        with tracer.invoke(rows()):
            with torch.no_grad():
                model.parts[0].output
                states.append(torch.is_grad_enabled())
                model.parts[2].output
                states.append(torch.is_grad_enabled())
        with tracer.invoke(rows()):
            model.parts[0].output
            states.append(torch.is_grad_enabled())
            model.parts[1].output
            states.append(torch.is_grad_enabled())
            out = model.output
    assert states.count(False) == 2 and states.count(True) == 2
    assert net.seen == [True] * 4 and out.requires_grad and torch.is_grad_enabled()


def test_in_invokes_of_a_generation(model: Any, net: Watching) -> None:
    states = []
    with model.trace(fn="generate") as tracer:
        with tracer.invoke(rows()):
            model.parts[0].output
            states.append(torch.is_grad_enabled())
        with tracer.invoke(rows()):
            model.parts[1].output
            states.append(torch.is_grad_enabled())
    assert states == [True, True] and net.seen == [False] * 4


def test_nested_traces_keep_their_own(model: Any, net: Watching) -> None:
    other_net = seeded(Watching)
    other = NNsight(other_net)
    with model.trace(rows()):
        model.parts[0].output
        with torch.no_grad(), other.trace(rows()):
            model.parts[1].output
            other.parts[1].output
        model.output
    assert net.seen == [True] * 4 and other_net.seen == [False] * 4 and torch.is_grad_enabled()


@pytest.mark.parametrize("failing", ["block", "model"])
def test_after_an_error_the_state_is_the_callers(model: Any, net: Watching, failing: str) -> None:
    with pytest.raises((ZeroDivisionError, RuntimeError)):
        with model.generate(rows()):
            model.parts[0].output
            if failing == "block":
                1 / 0
            model.parts[1].input = torch.ones(3, 3)
    assert torch.is_grad_enabled() and autocast_state()[0] is False


def test_after_stopping_the_state_is_the_callers(model: Any, net: Watching) -> None:
    with model.generate(rows()) as tracer:
        model.parts[0].output
        tracer.stop()
    assert torch.is_grad_enabled()


def test_inference_mode_around_a_trace(model: Any, net: Watching) -> None:
    net.read = torch.is_inference_mode_enabled
    with torch.inference_mode():
        with model.trace(rows()):
            model.parts[0].output[:] = 0
            out = model.output
    assert net.seen == [True] * 4 and out.is_inference() and not torch.is_inference_mode_enabled()


# -- autocast --------------------------------------------------------------------------------------------------------


def test_autocast_in_a_block_does_not_reach_the_model(model: Any, net: Watching) -> None:
    net.read = autocast_state
    plain = autocast_state()
    with model.trace(rows()):
        with torch.autocast("cpu", torch.bfloat16):
            h = model.parts[0].output
            mine = h @ torch.ones(4, 4)
            model.parts[1].output
            again = torch.is_autocast_enabled("cpu")
        out = model.output
    assert net.seen == [plain] * 4 and again
    assert h.dtype is torch.float32 and mine.dtype is torch.bfloat16 and out.dtype is torch.float32
    assert autocast_state() == plain


def test_autocast_of_the_model_does_not_reach_a_block(model: Any, net: Watching) -> None:
    plain = type(net).forward

    def forward(x: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return plain(net, x)

    net.forward = forward  # type: ignore[method-assign]
    net.read = autocast_state
    with model.trace(rows()):
        h = model.parts[0].output
        mine = torch.ones(4, 4) @ torch.ones(4, 4)
        inside = torch.is_autocast_enabled("cpu")
        out = model.output
    assert h.dtype is torch.bfloat16 and mine.dtype is torch.float32 and not inside
    assert all(enabled and dtype is torch.bfloat16 for enabled, dtype in net.seen) and out.dtype is torch.bfloat16
    assert not torch.is_autocast_enabled("cpu")


def test_autocast_around_a_trace_holds_for_both(model: Any, net: Watching) -> None:
    net.read = autocast_state
    with torch.autocast("cpu", torch.bfloat16):
        with model.trace(rows()):
            h = model.parts[0].output
            inside = autocast_state()
            out = model.output
    assert h.dtype is out.dtype is torch.bfloat16 and inside == (True, torch.bfloat16)
    assert net.seen == [(True, torch.bfloat16)] * 4 and not torch.is_autocast_enabled("cpu")


# -- context variables -----------------------------------------------------------------------------------------------


def test_the_model_sees_the_callers_context(model: Any, net: Watching) -> None:
    net.read = variable.get
    token = variable.set("caller")
    try:
        with model.trace(rows()):
            model.parts[0].output
    finally:
        variable.reset(token)
    assert net.seen == ["caller"] * 4


def test_what_a_block_sets_is_the_blocks_own(model: Any, net: Watching) -> None:
    net.read = variable.get
    token = variable.set("caller")
    try:
        with model.trace(rows()):
            model.parts[0].output
            variable.set("block")
            model.parts[1].output
            seen = variable.get()
        after = variable.get()
    finally:
        variable.reset(token)
    assert seen == after == "block" and net.seen == ["caller"] * 4


def test_what_the_model_sets_is_the_models_own(model: Any, net: Watching) -> None:
    def read() -> str:
        value = variable.get()
        variable.set("model")
        return value

    net.read = read
    seen = []
    with model.trace(rows()):
        for part in model.parts:
            part.output
            seen.append(variable.get())
    assert seen == ["default"] * 3 and net.seen == ["default", "model", "model", "model"]
    assert variable.get() == "default"


def test_invokes_see_the_callers_context(model: Any, net: Watching) -> None:
    seen = []
    token = variable.set("caller")
    try:
        with model.trace() as tracer:
            with tracer.invoke(rows()):
                model.parts[0].output
                seen.append(variable.get())
                variable.set("mine")
                model.parts[1].output
                seen.append(variable.get())
            with tracer.invoke(rows()):
                model.parts[1].output
                seen.append(variable.get())
    finally:
        variable.reset(token)
    assert sorted(seen) == ["caller", "caller", "mine"]


# -- random numbers and defaults are shared, as in a plain call ------------------------------------------------------


def test_random_numbers_are_those_of_a_plain_call() -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5), nn.Linear(4, 4), nn.Dropout(0.5)).train()
    model = NNsight(net)
    torch.manual_seed(3)
    want = net(rows())
    torch.manual_seed(3)
    with model.trace(rows()):
        model[0].output
        model[2].output
        out = model.output
    assert torch.equal(out, want)
