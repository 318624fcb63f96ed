"""Operations of what travelled by its text: the same as at home, whether its file is at the other end or not."""

from __future__ import annotations

import asyncio
import gc
import importlib
import linecache
import sys
import textwrap
from pathlib import Path

import pytest
import torch

from nnsight import NNsight
from nnsight._core.source import given as told
from nnsight._core.source.rewrite import rewrite
from nnsight._core.wire import Decoder, Encoder

TEXT = """
    import functools
    import math
    from math import floor, sqrt

    SCALE = 3


    def decorating(function):
        @functools.wraps(function)
        def wrapper(*args, **kwargs):
            def again():
                return function(*args, **kwargs)

            return floor(again())

        return wrapper


    def plain(x: int = 2, *, by=len("four")):
        return math.floor(sqrt(x)) * SCALE + abs(by)


    @decorating
    def decorated(x=7):
        total = 0
        for part in range(x):
            total += sqrt(part)
        return total


    def counter(start):
        def add(n=2):
            nonlocal start
            start += abs(n)
            return math.sqrt(start)

        return add


    def counted(start):
        @decorating
        def down(n=3):
            return 0 if n == 0 else floor(sqrt(4)) + down(n - 1)

        return down.__wrapped__


    def renamed():
        def down(n=3):
            return 0 if n == 0 else int(sqrt(4)) + down(n - 1)

        down.__qualname__ = "down"
        return down


    def oddly_named():
        def down(n=3):
            return 0 if n == 0 else int(sqrt(4)) + down(n - 1)

        down.__qualname__ = "down (again) <x>"
        return down


    async def awaiting(x=9):
        return sqrt(x)


    class Base:
        def __init__(self, start=5):
            self.start = start

        def said(self):
            return str(self.start)


    class Private(Base):
        def __half(self):
            return sqrt(self.start)

        def said(self):
            text = super().said()

            def twice(what):
                return repr(self.__half()) + what * floor(2.5)

            return twice(text)

        @staticmethod
        def fixed():
            return math.floor(2.5)

        class Inside:
            def root(self):
                return Private.Inside.__name__ + str(sqrt(16))


    def local(scale):
        class Local(Base):
            def said(self):
                return Local.__name__ + str(floor(scale)) + super().said()

        return Local


    COUNTED, RENAMED, ODD, ADD = counted(1), renamed(), oddly_named(), counter(1)
    LOCAL = local(2.5)
"""

FUNCTIONS = {
    "plain": lambda m: m.plain,
    "under a decorator": lambda m: m.decorated.__wrapped__,
    "a decorator's, under another's name": lambda m: m.decorated,
    "over a variable": lambda m: m.ADD,
    "one that calls itself": lambda m: m.COUNTED,
    "one that calls itself, named as if in a module": lambda m: m.RENAMED,
    "one that calls itself, of no name of Python's": lambda m: m.ODD,
    "async": lambda m: m.awaiting,
    "method": lambda m: m.Base().said,
    "method with private names and super": lambda m: m.Private().said,
    "static method": lambda m: m.Private.fixed,
    "of a class in a class": lambda m: m.Private.Inside().root,
    "of a class in a function": lambda m: m.LOCAL().said,
}


@pytest.fixture
def module(tmp_path, monkeypatch):
    (tmp_path / "written_w.py").write_text(textwrap.dedent(TEXT))
    monkeypatch.syspath_prepend(tmp_path)
    yield importlib.import_module("written_w")
    sys.modules.pop("written_w", None)


def forget_the_file(module):
    del sys.modules["written_w"]
    Path(module.__file__).unlink()
    linecache.cache.pop(module.__file__, None)


def there(value, between=lambda: None):
    encoder = Encoder()
    data = encoder.pack("request", encoder.value(value, "`it`"), {})
    between()
    decoder = Decoder(data, "request", trusted=True)
    try:
        return decoder.read()
    finally:
        decoder.files.forget()


def noted(callable):
    """Return what a function or method gives with its calls noted, and the calls' names, operations and lines."""
    function = getattr(callable, "__func__", callable)
    rewritten = rewrite(function)
    calls = []

    def noting(operation):
        def stand_in(callee, /, *args, **kwargs):
            calls.append(operation.name)
            return callee(*args, **kwargs)

        return stand_in

    bound = rewritten.bind(function, [noting(one) for one in rewritten])
    own = [callable.__self__] if function is not callable else []
    result = bound(*own)
    if asyncio.iscoroutine(result):
        result = asyncio.run(result)
    return result, calls, rewritten.operations, rewritten.lines, rewritten.first_line


@pytest.mark.parametrize("file_stays", [True, False])
@pytest.mark.parametrize("which", FUNCTIONS)
def test_operations_are_those_of_home(module, which, file_stays):
    chosen = FUNCTIONS[which](module)
    sent = there(chosen, (lambda: None) if file_stays else lambda: forget_the_file(module))
    again = noted(sent)
    Path(module.__file__).write_text(textwrap.dedent(TEXT))
    home = noted(chosen)
    assert again == home and home[1]


def test_what_is_defined_inside_has_operations_too(module):
    sent = there(module.counter, lambda: forget_the_file(module))
    result, calls, *_ = noted(sent(2))
    assert (result, calls) == (2.0, ["abs_0", "math_sqrt_0"])


def test_nested_functions_keep_their_qualified_names(module):
    sent = there(module.Private(), lambda: forget_the_file(module))
    function = type(sent).said
    inside = []
    bound = rewrite(function).bind(
        function, [lambda callee, /, *args, **kwargs: inside.append(callee) or callee(*args, **kwargs)] * 20
    )
    bound(sent)
    assert "Private.said.<locals>.twice" in [getattr(one, "__qualname__", "") for one in inside]


def test_nothing_is_said_of_code_that_is_gone(module):
    gc.collect()
    before = set(told._given)
    sent = there(module.plain)
    assert told.given(sent.__code__) is not None
    del sent
    gc.collect()
    assert set(told._given) <= before


LAYERS = """
    import math

    import torch
    import torch.nn.functional as F
    from torch.nn.functional import gelu


    def squashed(x):
        y = torch.tanh(x)
        return F.relu(y) * math.sqrt(2)


    class Layer(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = torch.nn.Linear(4, 4)

        def scaled(self, x):
            return math.sqrt(2) * gelu(x)

        def forward(self, x):
            return squashed(self.scaled(self.linear(x)))


    class Whole(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = Layer()

        def forward(self, x):
            return torch.sin(self.layer(x)) + 1
"""


def test_operations_of_a_users_model_in_another_interpreter(tmp_path, monkeypatch):
    (tmp_path / "layers_w.py").write_text(textwrap.dedent(LAYERS))
    monkeypatch.syspath_prepend(tmp_path)
    layers_w = importlib.import_module("layers_w")
    model, x = NNsight(layers_w.Whole()), torch.linspace(-1, 1, 8).reshape(2, 4)
    with model.session(remote="local"):
        with model.trace(x):
            activated = model.layer.source.self_scaled_0.source.gelu_0.output.save()
            model.layer.source.squashed_0.source.torch_tanh_0.output *= 2
            got = [activated, model.layer.output, model.output]
            got.save()
        with model.trace(x):
            before = model.source.torch_sin_0.input.save()
    inner = torch.nn.functional.gelu(model.layer._module.linear(x))
    layer = torch.relu(torch.tanh(inner * 2**0.5) * 2) * 2**0.5
    for one, other in zip(got, [inner, layer, torch.sin(layer) + 1], strict=True):
        torch.testing.assert_close(one, other)
    torch.testing.assert_close(before, layers_w.squashed(model.layer._module.scaled(model.layer._module.linear(x))))
    del sys.modules["layers_w"]
