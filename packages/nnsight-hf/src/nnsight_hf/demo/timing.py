"""What looking costs: the same work with PyTorch's own hooks and with nnsight, timed in turn.

On a model as small as this one the cost shows most: a forward takes little, and what is added does not depend on it.
`nox -s bench` in the repository measures more, and with more care.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from nnsight import LanguageModel

from . import figures, prompts, terminal
from .part import Part

ROUNDS = 100
Inputs = Mapping[str, torch.Tensor]


def read_with_nnsight(model: LanguageModel, inputs: Inputs) -> list[torch.Tensor]:
    """Read the output of every block."""
    with model.trace(**inputs):
        found = [block.output for block in model.transformer.h]
    return found


def read_with_hooks(module: torch.nn.Module, inputs: Inputs) -> list[torch.Tensor]:
    """Read the output of every block."""
    found: list[torch.Tensor] = []
    blocks: Any = module.get_submodule("transformer.h")
    handles = [block.register_forward_hook(lambda _block, _given, output: found.append(output)) for block in blocks]
    try:
        module(**inputs)
    finally:
        for handle in handles:
            handle.remove()
    return found


def scale_with_nnsight(model: LanguageModel, inputs: Inputs) -> torch.Tensor:
    """Replace the output of every block by half of it."""
    with model.trace(**inputs):
        for block in model.transformer.h:
            block.output = block.output * 0.5
        logits = model.lm_head.output
    return logits


def scale_with_hooks(module: torch.nn.Module, inputs: Inputs) -> torch.Tensor:
    """Replace the output of every block by half of it."""
    blocks: Any = module.get_submodule("transformer.h")
    handles = [block.register_forward_hook(lambda _block, _given, output: output * 0.5) for block in blocks]
    try:
        logits: torch.Tensor = module(**inputs).logits
    finally:
        for handle in handles:
            handle.remove()
    return logits


def medians(cases: Sequence[Callable[[], Any]], rounds: int) -> list[float]:
    """Time the cases in turn, and return the median of each, in milliseconds of the processor's time.

    That of this thread, which does all the work: what else runs on the machine is not counted.
    """
    samples: list[list[float]] = [[] for _ in cases]
    for number in range(rounds + 5):
        for case, times in zip(cases, samples):
            begin = time.thread_time()
            case()
            if number >= 5:  # the first ones warm up
                times.append(1000 * (time.thread_time() - begin))
    return [statistics.median(times) for times in samples]


def part(model: LanguageModel) -> Part:
    """Time reading and replacing the output of every block."""
    module = model._model
    inputs = dict(model.tokenizer(prompts.EIFFEL, return_tensors="pt"))
    with torch.no_grad():
        bare, *times = medians(
            [
                lambda: module(**inputs),
                lambda: read_with_hooks(module, inputs),
                lambda: read_with_nnsight(model, inputs),
                lambda: scale_with_hooks(module, inputs),
                lambda: scale_with_nnsight(model, inputs),
            ],
            ROUNDS,
        )
    blocks = len(model.transformer.h)
    works = [f"read {blocks} blocks", f"replace {blocks} blocks"]
    hooks, ours = times[::2], times[1::2]
    return Part(
        title="What it costs",
        question=(
            "The same work with PyTorch's hooks (registered, run, removed) and with nnsight: medians of the "
            f"processor's time over {ROUNDS} runs each, in turn, a moment ago on this machine."
        ),
        code=read_with_nnsight,
        table=terminal.table(
            ["work", "bare forward", "with hooks", "with nnsight", "nnsight / hooks"],
            [
                [work, f"{bare:.2f} ms", f"{theirs:.2f} ms", f"{mine:.2f} ms", f"{mine / theirs:.2f}"]
                for work, theirs, mine in zip(works, hooks, ours)
            ],
        ),
        figure=figures.paired_bars(
            works,
            {"hooks": hooks, "nnsight": ours},
            line=("bare forward", bare),
            title="Time of one forward pass of the toy model",
            up="milliseconds of the processor",
        ),
        finding=(
            f"nnsight takes {ours[0] / bare:.2f} and {ours[1] / bare:.2f} times the bare forward, hooks "
            f"{hooks[0] / bare:.2f} and {hooks[1] / bare:.2f} times."
        ),
    )
