"""Bodies that need no bytes on their way to an engine in this process, and those that do."""

from __future__ import annotations

import itertools
import textwrap
import traceback

import pytest
import torch
from batching_engine import equal, module_of
from toy_engine import Network, Served, ToyEngine

import nnsight
from nnsight.plugin import LocalBodies

_numbers = itertools.count()


class Here(ToyEngine):
    """Takes bodies as they are where they come so."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.came = []

    def serve(self, bodies, inputs):
        self.came.append("bytes")
        return super().serve(bodies, inputs)

    def serve_here(self, bodies, inputs):
        assert isinstance(bodies, LocalBodies)
        self.came.append("as they are")
        return self.serve_sent(bodies.on(self.model), inputs)


MODULE = """
import nnsight
import torch

NUMBER = 7
STATE = dict(made=0)

def helper(x):
    return x + NUMBER

def run(model, prompts):
    scale, text, none, data, layer = 0.3, "text", None, b"data", model.second
    vector, around = torch.arange(4.0), [1, 2]
    x = kept = nothing = None
    with model.trace() as tracer:
        for number, prompt in enumerate(prompts):
            with tracer.invoke(prompt):
{block}
    return x, kept
"""
AS_THEY_ARE = {
    "a site": "x = model.first.output.save()",
    "a loop": "kept = nnsight.save([])\nfor _ in tracer.iter[:]:\n    kept.append(model.first.output * scale)",
    "plain values": "x = nnsight.save([scale, text, none, data, number])",
    "an attribute of a module": "x = nnsight.save(str(torch.float16))",
    "a global": "x = nnsight.save(model.first.output * NUMBER)",
    "an envoy inside": "x = layer.output.save()",
    "a function inside": "def f(y):\n    return y * scale * NUMBER\nx = nnsight.save(f(model.first.output))",
    "what is in the module": "x = nnsight.save([len(text), __name__, __file__])",
    "what it binds first": "around = [3]\nx = nnsight.save(around)",
    "an edit": "model.first.output[:] = NUMBER\nx = nnsight.save(tracer.result)",
}
WRITTEN = {
    "a tensor": "x = nnsight.save(model.first.output + vector)",
    "a list": "x = nnsight.save([*around])",
    "a dict that is a global": "x = nnsight.save(dict(STATE))",
    "a function": "x = nnsight.save(helper(scale))",
    "an import": "import math\nx = nnsight.save(math.pi)",
    "names that it makes up": "x = nnsight.save(eval('scale'))",
}


def _module(folder, block, more=""):
    """Write a module with a trace of this block in each invoke, and import it; `more` stands in the trace after those."""
    inside = textwrap.indent(block, " " * 16) + "\n" + textwrap.indent(more, " " * 8)
    return module_of(folder, f"local_{next(_numbers)}", MODULE.format(block=inside))


def _both(made):
    torch.manual_seed(0)
    module, prompts = Network(), [torch.randn(2, 4), torch.randn(1, 4)]
    here, other = Here(module), ToyEngine(module)
    return here, made.run(Served(here), prompts), made.run(Served(other), prompts)


@pytest.mark.parametrize("name", [*AS_THEY_ARE, *WRITTEN])
def test_they_give_what_those_give_that_travel(name, tmp_path):
    here, mine, other = _both(_module(tmp_path, AS_THEY_ARE.get(name) or WRITTEN[name]))
    assert here.came == ["as they are" if name in AS_THEY_ARE else "bytes"]
    equal(mine, other)
    assert any(value is not None for value in mine)


@pytest.mark.parametrize(
    "block", ["global NUMBER\nNUMBER = 3\nx = nnsight.save(NUMBER)", "NUMBER = 3\nx = nnsight.save(NUMBER)"]
)
def test_a_global_that_they_bind_is_theirs_alone(block, tmp_path):
    made = _module(tmp_path, block)
    here, mine, other = _both(made)
    assert here.came == ["as they are"]
    equal(mine, other)
    assert made.NUMBER == 7


def test_what_a_global_is_is_seen_at_each_trace(tmp_path):
    made = _module(tmp_path, AS_THEY_ARE["a global"].replace("model.first.output * NUMBER", "NUMBER"))
    engine = Here(Network())
    found = []
    for made.NUMBER in (1, 2, torch.ones(1)):
        found.append(made.run(Served(engine), [torch.ones(1, 4)])[0])
    assert found[:2] == [1, 2] and engine.came == ["as they are"] * 2 + ["bytes"]


def test_errors_have_the_users_lines(tmp_path):
    made = _module(tmp_path, "x = model.first.output\ny = x.view(scale)")
    lines = []
    for engine in (Here(Network()), ToyEngine(Network())):
        with pytest.raises(TypeError) as caught:
            made.run(Served(engine), [torch.ones(1, 4)])
        lines.append([(f.lineno, f.line) for f in traceback.extract_tb(caught.tb) if f.filename == made.__file__])
    assert lines[0] == lines[1]
    assert lines[0][-1][1] == "y = x.view(scale)"


def test_edits_of_the_model_are_written(tmp_path):
    module = Network()
    here = Here(module)
    made = _module(tmp_path, "x = model.first.output.save()")
    model = Served(here)
    with model.edit(inplace=True):
        model.first.output[:] = 0
    x, _ = made.run(model, [torch.ones(1, 4)])
    assert here.came == ["bytes"] and not x.any()


def test_names_of_the_senders_model_are_known_there(tmp_path):
    module, here = Network(), Here(Network())
    here.module = module
    here.model = nnsight.NNsight(module)

    class Renamed(Served):
        def __init__(self, engine):
            nnsight.NNsight.__init__(self, engine.module, rename={"first": "one"})
            self.__dict__["engine"] = engine

    here.forwards = nnsight.plugin.Forwards(here.model)
    made = _module(tmp_path, "x = model.one.output.save()")
    x, _ = made.run(Renamed(here), [torch.ones(1, 4)])
    assert here.came == ["as they are"]  # and were written there after all
    torch.testing.assert_close(x, module.first(torch.ones(1, 4)))


def test_envoys_of_another_model_are_refused_as_ever():
    here, other = Here(Network()), nnsight.NNsight(Network())
    with pytest.raises(nnsight.NNsightError, match="belongs to another model"):
        with Served(here).trace(torch.ones(1, 4)):
            x = other.first.output.save()  # noqa: F841
    assert not here.came


def test_alike_bodies_are_served_together():
    torch.manual_seed(0)
    here = Here(Network(), steps=6)
    model, prompts = Served(here), [torch.randn(1, 4) for _ in range(3)]
    groups = []
    begin = here.forwards.admit
    here.forwards.admit = lambda run: groups.append(run.membership) or begin(run)
    with model.trace() as tracer:
        for prompt in prompts:
            with tracer.invoke(prompt):
                kept = nnsight.save([])
                for _ in tracer.iter[:]:
                    kept.append(model.first.output)
    assert here.came == ["as they are"]
    assert len({member.likeness for member in groups}) == 1 and len(groups) == 3


def test_blocks_of_one_module_share_what_they_bind_in_it(tmp_path):
    more = "with tracer.invoke(prompts[0]):\n    model.first.output\n    kept = nnsight.save(NUMBER)"
    made = _module(tmp_path, "global NUMBER\nNUMBER = 3\nx = model.first.output.save()", more)
    here, mine, other = _both(made)
    assert here.came == ["as they are"]
    equal(mine, other)
    assert mine[1] == 3 and made.NUMBER == 7
