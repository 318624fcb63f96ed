"""Traces that are drawn, one after the other on one engine, with plain requests that come while they run: each gives what it
gives where every block has its turns, and nothing of it is left behind."""

from __future__ import annotations

import importlib.util
import random
import sys
import textwrap
from functools import cache

import pytest
import torch

from nnsight._core.taps import running
from vllm import SamplingParams

GREEDY = {"temperature": 0, "ignore_eos": True}
#: What a block does once it has made a list `kept`, and saved it. `{at}` is the number of its invoke.
BLOCKS = {
    "reads a part": "for _ in tracer.iter[:]:\n    kept.append(model.model.layers[1].output[0])",
    "reads another": "for step in tracer.iter[:]:\n    kept.append(model.model.layers[2].output[1] * step)",
    "reads a tensor": "for _ in tracer.iter[:]:\n    kept.append(model.model.layers[0].mlp.output)",
    "reads all": "for _ in tracer.iter[:]:\n    kept.append(model.model.layers[3].output)",
    "reads two": "for _ in tracer.iter[:]:\n    kept.append(model.model.layers[0].output[0])\n"
    "    kept.append(model.model.layers[2].output[0])",
    "steers": "for _ in tracer.iter[:]:\n    model.model.layers[1].output[0][:] += vector",
    "reads logits": "for _ in tracer.iter[:]:\n    kept.append(model.logits.output)",
    "reads tokens": "for _ in tracer.iter[:]:\n    kept.append(model.samples.output)",
    "sets logits": "for _ in tracer.iter[:]:\n    model.logits.output[:, 7] += 50",
    "reads the first steps": "for _ in tracer.iter[:3]:\n    kept.append(model.model.layers[1].output[0])",
    "reads the later steps": "for _ in tracer.iter[2:]:\n    kept.append(model.model.layers[1].output[0])",
    "asks for the end": "for _ in tracer.iter[:2]:\n    kept.append(model.model.layers[1].output[0])\n"
    "end{at} = nnsight.save(tracer.result.outputs[0].token_ids)",
    "asks for what is gone": "for _ in tracer.iter[:]:\n    kept.append(model.model.layers[1].output[0])\n"
    "x{at} = nnsight.save(model.logits.output)",
    "asks once": "kept.append(model.model.layers[3].output[0])",
    "asks for logits once": "kept.append(model.logits.output)",
    "stops": "for step in tracer.iter[:]:\n    kept.append(model.model.layers[1].output[0])\n"
    "    if step == 3:\n        tracer.stop()",
    "fails": "for step in tracer.iter[:]:\n    kept.append(model.model.layers[1].output[0] * table[step])",
}


@pytest.fixture(scope="module")
def trace(tmp_path_factory):
    """Make a function with a trace of some of the blocks, each in an invoke of its own."""
    folder = tmp_path_factory.mktemp("drawn")

    @cache
    def make(names):
        inside = ""
        for at, name in enumerate(names):
            block = f"kept = nnsight.save([])\n{BLOCKS[name]}".replace("kept", f"kept{at}").replace("{at}", str(at))
            inside += f"with tracer.invoke(prompts[{at}], **options[{at}]):\n{textwrap.indent(block, '    ')}\n"
        path = folder / f"drawn_{make.cache_info().misses}.py"
        path.write_text(
            "import nnsight\n\n\ndef run(model, prompts, options, vector):\n    table = [1.0] * 3\n"
            f"    with model.trace() as tracer:\n{textwrap.indent(inside, ' ' * 8)}"
            f"    return [{', '.join(f'kept{at}' for at in range(len(names)))}]\n"
        )
        spec = importlib.util.spec_from_file_location(path.stem, path)
        made = sys.modules[path.stem] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(made)
        return made.run

    return make


def run(model, trace, seed):
    """Run a trace that is drawn, and return what it saved or raised, and the tokens of the plain requests beside it."""
    draw = random.Random(seed)

    def prompt():
        return [draw.randrange(4, 90) for _ in range(draw.randrange(1, 12))]

    names = tuple(draw.choice(list(BLOCKS)) for _ in range(draw.choice([1, 1, 1, 2, 3])))
    prompts = [prompt() for _ in names]
    options = [{**GREEDY, "max_tokens": draw.randrange(1, 12)} for _ in names]
    plain = [(draw.randrange(9), prompt(), draw.randrange(1, 14)) for _ in range(draw.choice([0, 0, 2, 4]))]
    engine, tokens, steps = model.dispatch()._engine.engine, {}, 0
    step = engine.step

    def with_others():
        nonlocal steps
        for number, (at, ids, count) in enumerate(plain):
            if at == steps:
                engine.add_request(
                    f"{seed}-{number}", {"prompt_token_ids": ids}, SamplingParams(max_tokens=count, **GREEDY)
                )
        steps += 1
        outputs = step()
        tokens.update({one.request_id: one.outputs[0].token_ids for one in outputs if one.finished})
        return outputs

    engine.step = with_others
    try:
        found = trace(names)(model, prompts, options, torch.linspace(-1, 1, 128))
    except Exception as error:
        found = type(error), str(error)
    finally:
        while steps < 9 or engine.has_unfinished_requests():
            engine.step()
        del engine.step
    return found, [list(tokens[f"{seed}-{number}"]) for number in range(len(plain))]


@pytest.mark.filterwarnings("ignore::nnsight.NNsightWarning")
@pytest.mark.parametrize("seed", range(80))
def test_it_gives_what_turns_give_and_leaves_nothing_behind(seed, llama, trace):
    model = llama.served
    stage = model.dispatch()._engine.engine.model_executor.driver_worker.worker.model_runner.nnsight
    found = []
    for together in (True, False):
        stage.forwards.serves_together = together
        try:
            found.append(run(model, trace, seed))
        finally:
            del stage.forwards.serves_together
        assert not stage.runs and not stage.forwards.runs and not stage.forwards.tapped and not running
        assert not any("forward" in vars(module) for module in stage.model._module.modules())
    (mine, beside), (theirs, also_beside) = found
    assert beside == also_beside
    if isinstance(theirs, tuple):
        assert mine == theirs
    else:
        torch.testing.assert_close(mine, theirs, atol=1e-4, rtol=1e-4)
