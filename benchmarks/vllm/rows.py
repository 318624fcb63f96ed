"""What is timed: blocks as a user writes them, each for all requests."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from plain import Setting

import nnsight


class Row(NamedTuple):
    """One thing that is timed.

    Attributes:
        name: what it is.
        work: does it.
        right: says whether what it gave is right.
        target: what must be reached: at least this of plain vLLM's speed, or if `at_most`, at most this times as long.
        peer: what nnsight 0.8.1 reaches, as far as it can do it: measured once, on another machine.
        against: the method of the setting that times it beside something else.
        hook: does as much by a hook of PyTorch's, written for this one model and for nothing else.
    """

    name: str
    work: Callable[[Setting], Any]
    right: Callable[[Setting, Any], bool]
    target: float
    peer: float | None = None
    against: str = "beside_vllm"
    at_most: bool = False
    hook: Callable[[Setting], Any] | None = None

    def check(self, setting: Setting) -> None:
        """Run it once, and raise if what it gives is wrong."""
        if not self.right(setting, self.work(setting)):
            raise AssertionError(f"{self.name}: what came out is wrong")


def untraced(setting: Setting) -> Any:
    """All requests, on an engine that could be looked into."""
    return setting.vllm(setting.served)


def steered(setting: Setting) -> Any:
    """A vector added to what a layer gives, at every step."""
    model, vector = setting.model, setting.vector
    with model.trace() as tracer:
        for prompt in setting.prompts:
            with tracer.invoke(prompt, **setting.sampling):
                for _ in tracer.iter[:]:
                    model.model.layers[1].output[0][:] += vector
    return []


def saving(setting: Setting) -> Any:
    """What a layer gives, kept at every step."""
    model, found = setting.model, []
    with model.trace() as tracer:
        for prompt in setting.prompts:
            with tracer.invoke(prompt, **setting.sampling):
                kept = nnsight.save([])
                for _ in tracer.iter[:]:
                    kept.append(model.model.layers[1].output[0])
    found.append(kept)
    return found


def reading(setting: Setting) -> Any:
    """The logits of the first step."""
    model = setting.model
    with model.trace() as tracer:
        for prompt in setting.prompts:
            with tracer.invoke(prompt, **setting.sampling):
                logits = model.logits.output.save()
    return logits


def one_of_all(setting: Setting) -> Any:
    """What a layer gives to one request at every step; all others are plain."""
    model = setting.model
    for prompt in setting.prompts[1:]:
        setting.add(setting.served, prompt)
    with model.trace(setting.prompts[0], **setting.sampling) as tracer:
        kept = nnsight.save([])
        for _ in tracer.iter[:]:
            kept.append(model.model.layers[1].output[0])
    return [kept]


def all_layers(setting: Setting) -> Any:
    """What every layer gives for one long prompt: the residual stream, as transformers has it."""
    model = setting.model
    with model.trace(setting.long, max_tokens=1, detokenize=False):
        kept = nnsight.save([])
        for layer in model.model.layers:
            change, residual = layer.output
            kept.append(change + residual)
    return kept


def steered_by_hook(setting: Setting) -> Any:
    """The same by a hook: what the layer gives to all is edited in place."""
    vector = setting.vector

    def add(module: torch.nn.Module, args: Any, output: Any) -> None:
        output[0].add_(vector)

    return setting.hooked(add)


def saving_by_hook(setting: Setting) -> Any:
    """The same by a hook, which keeps the rows of all requests as one tensor for each step."""
    kept = []

    def keep(module: torch.nn.Module, args: Any, output: Any) -> None:
        kept.append(output[0].clone())

    setting.hooked(keep)
    return kept


def one_of_all_by_hook(setting: Setting) -> Any:
    """The same by a hook that knows which row it wants: the first."""
    kept = []

    def keep(module: torch.nn.Module, args: Any, output: Any) -> None:
        kept.append(output[0][:1].clone())

    setting.hooked(keep)
    return kept


def _tokens_are_vllms(setting: Setting, tokens: Any) -> bool:
    return bool(tokens == setting.vllm())


def _steps_are_kept(setting: Setting, found: Any) -> bool:
    size = setting.vector.numel()
    return all([tuple(one.shape) for one in kept] == [(16, size), *[(1, size)] * 63] for kept in found)


def _logits_are_right(setting: Setting, logits: Any) -> bool:
    with torch.no_grad():
        wanted = setting.transformers(torch.tensor([setting.prompts[-1]])).logits[:, -1]
    return bool(torch.allclose(logits, wanted, atol=1e-4))


def _layers_are_right(setting: Setting, kept: Any) -> bool:
    # The last of transformers' has gone through the norm.
    wanted = setting.hidden_states()[1:-1]
    return all(torch.allclose(one, other[0], atol=1e-4) for one, other in zip(kept, wanted, strict=False))


ROWS = [
    Row("nothing traced", untraced, _tokens_are_vllms, 0.99, 0.95),
    Row(
        "every request steered at every step",
        steered,
        lambda setting, found: found == [],
        0.95,
        0.60,
        hook=steered_by_hook,
    ),
    Row("every request saves one layer at every step", saving, _steps_are_kept, 0.92, 0.40, hook=saving_by_hook),
    Row("every request reads logits once", reading, _logits_are_right, 0.97, 0.76),
    Row("one traced request among 31 plain ones", one_of_all, _steps_are_kept, 0.98, hook=one_of_all_by_hook),
    Row(
        "all layers of 512 tokens / transformers", all_layers, _layers_are_right, 1.5, None, "beside_transformers", True
    ),
]
