"""What plain hooks see in a model, without nnsight: the other side of every comparison that `checks.py` makes."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from nnsight.plugin import leaves
from nnsight_hf.probe import named

#: Where a value passes: the path of a module, and "inputs" or "output".
Site = tuple[str, str]

#: The floating-point tensors of what passes there once, by what they are called in it.
Values = dict[str, torch.Tensor]


@contextlib.contextmanager
def hooks(handles: Sequence[Any]) -> Iterator[None]:
    """Remove hooks at the end."""
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def parts(value: Any) -> Values:
    """Return the floating-point tensors of a value by name."""
    return {name: tensor for name, tensor in named(value) if tensor.is_floating_point()}


def copied(value: Any) -> Values:
    """Return the floating-point tensors of a value, as they are now."""
    return {name: tensor.detach().clone() for name, tensor in parts(value).items()}


def seen(module: torch.nn.Module, call: Callable[[], Any]) -> dict[Site, list[Values]]:
    """Return what passes at all modules in a call, visit by visit, in the order in which the first visits come."""
    found: dict[Site, list[Values]] = {}

    def watch(path: str, part: torch.nn.Module) -> list[Any]:
        def before(module: Any, args: Any, kwargs: Any) -> None:
            found.setdefault((path, "inputs"), []).append(copied((args, kwargs)))

        def after(module: Any, args: Any, output: Any) -> None:
            found.setdefault((path, "output"), []).append(copied(output))

        return [part.register_forward_pre_hook(before, with_kwargs=True), part.register_forward_hook(after)]

    handles = [handle for path, part in module.named_modules() for handle in watch(path, part)]
    with hooks(handles), torch.no_grad():
        call()
    return found


def alone(module: torch.nn.Module, prompt: Sequence[int]) -> dict[Site, list[Values]]:
    """Return what passes at all modules when the model reads one prompt."""
    ids = torch.tensor([prompt])
    return seen(module, lambda: module(input_ids=ids, attention_mask=torch.ones_like(ids)))


def logits(module: Any, prompt: Sequence[int]) -> torch.Tensor:
    """Return the logits of one prompt."""
    ids = torch.tensor([prompt])
    with torch.no_grad():
        found: torch.Tensor = module(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
    return found


def continued(module: Any, prompt: Sequence[int], new: int) -> torch.Tensor:
    """Return the tokens with which transformers continues one prompt, greedily."""
    ids = torch.tensor([prompt])
    with torch.no_grad():
        tokens: torch.Tensor = module.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=new, do_sample=False, pad_token_id=0
        )
    return tokens


def blocks(module: torch.nn.Module, prompt: Sequence[int]) -> list[str]:
    """Return the paths of the blocks: the members of the longest list of modules that a call visits, the outermost."""
    ran = alone(module, prompt)
    lists = [
        [f"{path}.{name}" for name, _ in part.named_children()]
        for path, part in module.named_modules()
        if isinstance(part, torch.nn.ModuleList)
    ]

    def visits(path: str) -> list[Values]:
        return ran.get((path, "output"), [])

    whole = [paths for paths in lists if paths and all(visits(path) and visits(path)[0] for path in paths)]
    if not whole:
        raise LookupError("no list of blocks that a forward visits")
    # Experts and heads lie inside of a block. In a model that goes through some of its blocks again and again, those that
    # it goes through least: what is changed in the others hardly shows at the end.
    return min(whole, key=lambda paths: (len(visits(paths[0])), paths[0].count("."), -len(paths)))


def first(value: Any) -> torch.Tensor:
    """Return the first tensor of a value: the hidden states of what a block gives."""
    return leaves(value)[0]
