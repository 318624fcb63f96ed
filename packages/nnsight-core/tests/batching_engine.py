"""An engine whose requests begin and end when they are told to, and what one body gets there, served in different ways."""

from __future__ import annotations

import copy
import importlib.util
import itertools
import sys
import textwrap
import traceback

import torch
from toy_engine import Network, Served, ToyEngine

from nnsight import NNsight
from nnsight._core.cache import Cache
from nnsight.plugin import Forwards, PlainLayout, decode_bodies


class Pair(torch.nn.Module):
    """Returns two tensors with rows, and one without."""

    def forward(self, x):
        return x * 2, x + 1, torch.arange(3.0)


class Deep(Network):
    """The network of the toy engine, with a list of layers and one that returns a tuple."""

    def __init__(self, size=4):
        super().__init__(size)
        self.layers = torch.nn.ModuleList([torch.nn.Linear(size, size) for _ in range(2)])
        self.pair = Pair()

    def forward(self, x):
        residual = self.first(x)
        for layer in self.layers:
            residual = residual + torch.tanh(layer(residual))
        a, b, _ = self.pair(residual)
        residual += self.second(a - b)
        return residual


class Batching(ToyEngine):
    """An engine whose requests begin and end when they are told to; plain ones run along."""

    def __init__(
        self, module, begins, steps, together=True, plain=0, pauses=(), looks=(), grouping=True, ends_at_once=False
    ):
        super().__init__(module)
        self.ends_at_once = ends_at_once
        self.forwards = Forwards(NNsight(module))
        self.forwards.serves_together = together
        self.grouping = grouping
        self.begins, self.lengths, self.plain, self.pauses, self.looks = begins, steps, plain, pauses, looks
        self.at = 0
        #: What some had saved when they were looked at.
        self.seen = []

    def serve(self, bodies, inputs):
        sent = decode_bodies(bodies, NNsight(self.module))
        if not self.grouping:
            sent._alike.membership = lambda number, stack: None
        rows = [args[0] for args, _, _ in inputs]
        runs, done, left = {}, {}, list(self.lengths[: len(rows)])
        beside = torch.ones(self.plain, 4)
        with torch.inference_mode():
            for self.at in range(100):
                part = [n for n in range(len(rows)) if self.begins[n] <= self.at and n not in done]
                part = [n for n in part if (self.at, n) not in self.pauses]
                if not part and len(done) == len(rows):
                    break
                for n in part:
                    if n not in runs:
                        runs[n] = sent.begin(n, self.forwards)
                where, at = {}, self.plain
                order = part if self.at // 3 % 2 else part[::-1]
                for n in order:
                    where[runs[n]] = (at, len(rows[n]))
                    at += len(rows[n])
                if list(where.items()) != list(self.where.items()):
                    self.where = where
                with self.forwards.forward(self.where, PlainLayout(at), even=at == self.plain + len(order)):
                    out = self.module(torch.cat([beside, *(rows[n] for n in order)]))
                for n in order:
                    start, count = where[runs[n]]
                    rows[n] = out[start + count - 1 : start + count].clone()
                    left[n] -= 1
                    if not left[n] or runs[n].wants_no_more:
                        done[n] = rows[n]
                out.fill_(float("nan"))
                for n in [n for at, n in self.looks if at == self.at]:
                    self.seen.append({name: _copy(value) for name, value in sent.saved(n).items()})
        if self.ends_at_once:
            sent.end_at_once()
        for n, run in runs.items():
            run.finish(done[n])
        assert not self.forwards.tapped and not self.forwards.at_output and not self.forwards.at_input
        failures = {n: runs[n].failure for n in range(len(rows))}
        return [{"failed": failure} if failure else sent.saved(n) for n, failure in failures.items()]


_numbers = itertools.count()


def module_of(folder, name, text):
    """Write a module and import it: blocks are captured from files."""
    path = folder / f"{name}.py"
    path.write_text(text)
    spec = importlib.util.spec_from_file_location(name, path)
    made = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


def trace_of(folder, body, before=""):
    """Write a function with a trace of one block for all prompts, and return it."""
    name = f"together_{next(_numbers)}"
    text = (
        "import nnsight\nimport random\nimport torch\n"
        "def run(model, prompts, vector, scale, flags):\n"
        "    with model.trace() as tracer:\n"
        f"{textwrap.indent(textwrap.dedent(before), '        ')}\n"
        "        for prompt in prompts:\n"
        "            with tracer.invoke(prompt):\n"
        f"{textwrap.indent(textwrap.dedent(body).strip(), ' ' * 16)}\n"
    )
    return module_of(folder, name, text).run


class Collecting(Served):
    """Keeps what each request saved."""

    def trace(self, *inputs, **kwargs):
        tracer = super().trace(*inputs, **kwargs)
        engine = self.__dict__["engine"]
        serve = engine.serve

        def keep(bodies, inputs):
            engine.saved = serve(bodies, inputs)
            engine.serve = serve
            return [{} for _ in engine.saved]

        engine.serve = keep
        return tracer


def both(module, folder, body, before="", prompts=None, begins=None, steps=None, **options):
    """Run the body for all prompts, together, one by one, and with a turn of its own in each step, and compare.

    Returns:
        What was saved together.
    """
    torch.manual_seed(1)
    prompts = [torch.randn(n, 4) for n in (3, 1, 2, 5)] if prompts is None else prompts
    begins = begins or [0] * len(prompts)
    steps = steps or [4, 2, 6, 1][: len(prompts)]
    vector, run = torch.randn(4), trace_of(folder, body, before)
    found = []
    for together, grouping in ((True, True), (True, False), (False, False)):
        engine = Batching(module, begins, steps, together, grouping=grouping, **options)
        run(Collecting(engine), prompts, vector.clone(), 0.3, [True, False])
        found.append([*engine.saved])
        found[-1].append({"seen": engine.seen})
    for mine, alone, in_turns in zip(*found, strict=True):
        equal(mine, alone)
        equal(alone, in_turns)
    return found[0][:-1]


def _copy(value):
    return [_copy(one) for one in value] if isinstance(value, list) else copy.copy(value)


def equal(mine, alone):
    assert type(mine) is type(alone), (mine, alone)
    if isinstance(mine, torch.Tensor):
        torch.testing.assert_close(mine, alone, rtol=0, atol=0, equal_nan=True)
    elif isinstance(mine, dict):
        assert list(mine) == list(alone)
        for name in mine:
            equal(mine[name], alone[name])
    elif isinstance(mine, Cache):
        assert list(mine) == list(alone)
    elif isinstance(mine, (list, tuple)):
        assert len(mine) == len(alone)
        for one, other in zip(mine, alone):
            equal(one, other)
    elif isinstance(mine, BaseException):
        lines = [
            [frame.lineno for frame in traceback.extract_tb(e.__traceback__) if "together_" in frame.filename]
            for e in (mine, alone)
        ]
        assert lines[0][-1:] == lines[1][-1:]
        assert lines[0] or "carries no rows" in str(mine)  # that shows when the body has had its turn
    else:
        assert mine == alone
