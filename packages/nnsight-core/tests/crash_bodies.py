"""Torch errors raised wherever a trace can raise one; run by `test_no_crash.py` in a process of its own.

Each function below ends in an error of torch. Before it comes, the stack is left at one depth and written over at
another, so that whoever walks the C++ stack past a greenlet's first frame reads bytes of somebody else's.

    python crash_bodies.py ROUNDS CHIEF     each function ROUNDS times, the chief ones CHIEF times more
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

import nnsight
from nnsight._core.taps import running

X = torch.rand(2, 4)
BAD = torch.rand(3, 9)


class Relu(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.relu(x)
        return torch.matmul(y, torch.ones(4, 4))


class BadGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x * 1

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
        return grad @ BAD


class Tracing(nn.Module):
    """A module whose own forward traces another model."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        traced = nnsight.NNsight(self.inner)
        with traced.trace(x):
            value = traced[0].output
            traced[0].output = BAD
            traced.output
        return value


model = nnsight.NNsight(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)))
opened = nnsight.NNsight(nn.Sequential(Relu(), nn.Linear(4, 4)))
tracing = nnsight.NNsight(nn.Sequential(nn.Linear(4, 4), Tracing(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)))))


def deep(levels: int, then: Callable[[], Any]) -> Any:
    """Call through C frames, so that the C stack is really that deep."""
    return then() if levels == 0 else list(map(lambda _: deep(levels - 1, then), (0,)))[0]  # noqa: C417 - C frames


def scribble(levels: int) -> None:
    deep(levels, lambda: (X.T @ X, sorted((3, 1, 2), key=lambda v: v)))


# -- in an inline body -------------------------------------------------------------------------------------------------


def in_the_body(n: int) -> None:
    with model.trace(X):
        value = deep(n % 30, lambda: model[0].output)
        scribble(n % 7)
        value @ BAD


def in_the_body_before_the_model(n: int) -> None:
    with model.trace(X):
        X @ BAD


def in_the_body_after_one_was_caught(n: int) -> None:
    with model.trace(X):
        try:
            model[0].output @ BAD
        except RuntimeError:
            scribble(n % 9)
        model[1].output @ BAD


def in_a_loop(n: int) -> None:
    with model.trace(X) as tracer:
        for _ in tracer.iter[:2]:
            model[0].output @ BAD


def in_a_captured_loop(n: int) -> None:
    with model.trace(X) as tracer:
        with tracer.iter[:2]:
            model[0].output @ BAD


def in_the_result(n: int) -> None:
    with model.trace(X) as tracer:
        tracer.result @ BAD


def in_a_module_called_by_hand(n: int) -> None:
    with model.trace(X):
        model[0](model[0].input)
        model[0](BAD)


def in_a_session(n: int) -> None:
    with model.session(), model.trace(X):
        model[0].output @ BAD


# -- in the model ------------------------------------------------------------------------------------------------------


def in_the_model(n: int) -> None:
    with model.trace(X):
        deep(n % 30, lambda: model[0].input)
        scribble(n % 7 * 5)
        model[0].output = BAD
        scribble(n % 11 * 3)
        model[1].output


def in_the_model_after_the_body(n: int) -> None:
    with model.trace(X):
        deep(n % 30, lambda: model[0].input)
        model[0].output = BAD


def in_the_model_at_a_bad_input(n: int) -> None:
    with model.trace(BAD):
        model[0].output


def in_the_model_without_requests(n: int) -> None:
    with model.trace(BAD):
        pass


def in_the_model_after_a_skip(n: int) -> None:
    with model.trace(X):
        model[0].skip(BAD)


def in_the_model_after_a_bad_argument(n: int) -> None:
    with model.trace(X):
        model[1].input = BAD


def in_a_model_that_traces(n: int) -> None:
    with tracing.trace(X):
        deep(n % 10, lambda: tracing[0].output)
        scribble(n % 7)
        tracing[1].output


# -- in invokes --------------------------------------------------------------------------------------------------------


def in_an_invoke(n: int) -> None:
    with model.trace() as tracer:
        with tracer.invoke(X):
            value = deep(n % 30, lambda: model[0].output)
            scribble(n % 7 * 5)
            value @ BAD
        with tracer.invoke(X):
            model[1].output


def in_the_model_with_invokes(n: int) -> None:
    with model.trace() as tracer:
        with tracer.invoke(X):
            deep(n % 30, lambda: model[0].input)
        with tracer.invoke():
            scribble(n % 5)
            model[0].output = BAD
        with tracer.invoke(X):
            model[1].output


def in_a_trace_inside_an_invoke(n: int) -> None:
    with model.trace() as tracer:
        with tracer.invoke(X):
            model[0].input
            with model.trace(X):
                deep(n % 9, lambda: model[0].output)
                scribble(n % 5)
                model[0].output = BAD
        with tracer.invoke(X):
            model[1].output


# -- in edits ----------------------------------------------------------------------------------------------------------


def in_an_edit(n: int) -> None:
    with model.edit() as edited:
        edited[0].output @ BAD
    with edited.trace(X):
        deep(n % 30, lambda: edited[0].input)
        scribble(n % 5)
        edited[1].output


def in_an_edit_of_a_plain_call(n: int) -> None:
    with model.edit() as edited:
        edited[0].output @ BAD
    edited(X)


def in_an_edit_beside_invokes(n: int) -> None:
    with model.edit() as edited:
        edited[0].output @ BAD
    with edited.trace() as tracer:
        with tracer.invoke(X):
            edited[1].output
        with tracer.invoke(X):
            edited[1].output


def in_the_model_after_an_edit(n: int) -> None:
    with model.edit() as edited:
        edited[0].output = BAD
    with edited.trace(X):
        edited[1].output


# -- in backward -------------------------------------------------------------------------------------------------------


def in_a_backward_block(n: int) -> None:
    with model.trace(X):
        hidden = model[0].output
        loss = model.output.sum()
    with loss.backward():
        deep(n % 30, lambda: hidden.grad)
        scribble(n % 5)
        hidden.grad @ BAD


def in_a_backward_inside_the_trace(n: int) -> None:
    with model.trace(X):
        hidden = model[0].output
        loss = model.output.sum()
        with loss.backward():
            hidden.grad @ BAD


def in_the_engine_before_it_starts(n: int) -> None:
    with model.trace(X):
        hidden = model[0].output
        matrix = model.output
    with matrix.backward():
        hidden.grad


def in_the_engine_the_second_time(n: int) -> None:
    with model.trace(X):
        hidden = model[0].output
        loss = model.output.sum()
    loss.backward()
    with loss.backward():
        hidden.grad


def in_the_engine_after_a_gradient(n: int) -> None:
    with model.trace(X):
        hidden = model[0].output
        last = model.output
    loss = last.sum()
    middle = BadGradient.apply(hidden)
    with (loss + middle.sum()).backward():
        deep(n % 30, lambda: middle.grad)
        scribble(n % 5)
        hidden.grad


# -- in operations -----------------------------------------------------------------------------------------------------


def in_a_body_at_an_operation(n: int) -> None:
    with opened.trace(X):
        opened[0].source.torch_relu_0.output @ BAD


def in_the_model_at_an_operation(n: int) -> None:
    with opened.trace(X):
        deep(n % 30, lambda: opened[0].source.torch_relu_0.input)
        scribble(n % 5)
        opened[0].source.torch_relu_0.output = BAD
        opened[1].output


# -- nested ------------------------------------------------------------------------------------------------------------


def in_nested_bodies(n: int) -> None:
    with model.trace(X):
        model[0].output
        with opened.trace(X):
            deep(n % 9, lambda: opened[0].output)
            with model.trace(X):
                model[0].output
                with opened.trace(X):
                    opened[0].output @ BAD


def in_a_nested_model(n: int) -> None:
    with model.trace(X):
        model[0].output
        with model.trace(X):
            deep(n % 9, lambda: model[0].output)
            with model.trace(X):
                deep(n % 12, lambda: model[0].input)
                scribble(n % 7)
                model[0].output = BAD


def at_every_level(n: int, levels: int = 5) -> None:
    with model.trace(X):
        model[0].output
        try:
            if levels:
                at_every_level(n, levels - 1)
        except RuntimeError:
            scribble(n % 5)
        model[1].output @ BAD


CHIEF = (in_the_body, in_the_model, in_an_invoke, in_a_backward_block)
EVERYWHERE = [v for k, v in list(globals().items()) if k.startswith(("in_", "at_"))]


def check(raises: Callable[[int], None], n: int) -> None:
    try:
        raises(n)
    except RuntimeError as error:
        if isinstance(error, nnsight.NNsightError):
            raise SystemExit(f"{raises.__name__} raised an error of nnsight's own: {error}") from error
    else:
        raise SystemExit(f"{raises.__name__} raised nothing")
    if running:
        raise SystemExit(f"{raises.__name__} left a run behind")
    for envoy in (model, opened, tracing):
        for module in envoy._module.modules():
            if "forward" in module.__dict__:
                raise SystemExit(f"{raises.__name__} left a module changed")


def main(rounds: int, chief: int) -> None:
    count = 0
    for n in range(rounds):
        for raises in EVERYWHERE:
            check(raises, n)
            count += 1
    for raises in CHIEF:
        for n in range(chief):
            check(raises, n)
            count += 1
    with model.trace(X):
        hidden = model[0].output
    if not torch.equal(hidden, model._module[0](X)):
        raise SystemExit("the model is not what it was")
    print(count, "errors")


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
