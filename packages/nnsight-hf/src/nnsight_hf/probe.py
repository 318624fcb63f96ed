"""Measure how the values of a parallel model lie: it and its twin run on the same few tokens, and shapes are compared.

The twin is the same model built whole, without weights, and so without work. What is compared is what passes in and out of
every module; see `parallel.py` for what follows from it.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed.tensor import DTensor, Replicate, Shard

from nnsight.plugin import fingerprint

#: What tells a value apart: the module's path, `input` or `output`, and which part of the structure that passes there.
Key = tuple[str, str, str]


@dataclass(frozen=True)
class Rule:
    """How one value lies on the ranks.

    Attributes:
        ndim: how many dimensions it has.
        dim: the one that the ranks share; None if every rank has the whole.
        sizes: how much of it each rank has.
        known: False where the ranks have something that makes no whole.
    """

    ndim: int
    dim: int | None = None
    sizes: tuple[int, ...] = ()
    known: bool = True

    def fits(self, part: torch.Tensor, rank: int) -> bool:
        """Say whether a tensor is what was measured, but for its number of rows and positions."""
        return part.dim() == self.ndim and (self.dim is None or part.shape[self.dim] == self.sizes[rank])


def probe(module: Any, group: Any) -> dict[Key, Rule]:
    """Return how each value lies that passes in and out of the modules of a parallel model; every rank calls this."""
    # relies on: PreTrainedModel.dummy_inputs, transformers 4.56 to 5.23
    inputs: dict[str, Any] = dict(module.dummy_inputs)
    options: dict[str, Any] = {"use_cache": False}
    if getattr(module.config, "_attn_implementation", None) == "eager":
        options["output_attentions"] = True
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fakes = {name: mode.from_tensor(value) for name, value in inputs.items()}
        whole = _seen(twin(module), fakes, options)
    device = next(module.parameters()).device
    parts = _seen(module, {name: value.to(device) for name, value in inputs.items()}, options)
    return _compared(whole, parts, _packed(module), group)


def twin(module: Any) -> Any:
    """Return the same model, built whole and with weights that mean nothing."""
    config = copy.deepcopy(module.config)
    config.distributed_config = None
    if hasattr(config, "_experts_implementation"):
        # The others sort tokens by expert, which takes numbers and not only shapes.
        config._experts_implementation = "batched_mm"
    return type(module)(config)


def _packed(module: Any) -> set[str]:
    """Return the modules with weights that hold several matrices, of each of which a rank has a part: not one slice."""
    return {
        name.rpartition(".")[0]
        for name, parameter in module.named_parameters()
        if isinstance(parameter, DTensor) and not all(type(p) in (Shard, Replicate) for p in parameter.placements)
    }


def _seen(module: Any, inputs: dict[str, Any], options: dict[str, Any]) -> dict[Key, torch.Tensor]:
    """Run a model and return each tensor that passes in or out of a module, the first time it does."""
    found: dict[Key, torch.Tensor] = {}
    handles = []

    def look(path: str, stage: str, value: Any) -> None:
        for name, tensor in named(value):
            found.setdefault((path, stage, name), tensor)

    for path, part in module.named_modules():
        handles.append(
            part.register_forward_pre_hook(
                lambda _, args, kwargs, path=path: look(path, "input", (args, kwargs)), with_kwargs=True
            )
        )
        handles.append(part.register_forward_hook(lambda _, args, output, path=path: look(path, "output", output)))
    with contextlib.ExitStack() as stack:
        stack.callback(lambda: [handle.remove() for handle in handles])
        stack.callback(module.train, module.training)
        stack.enter_context(torch.no_grad())
        module.eval()
        module(**inputs, **options)
    return found


def _compared(
    whole: Mapping[Key, torch.Tensor], parts: Mapping[Key, torch.Tensor], packed: set[str], group: Any
) -> dict[Key, Rule]:
    mine = {key: fingerprint(tensor) for key, tensor in parts.items()}
    ranks: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(ranks, mine, group=group)
    rules: dict[Key, Rule] = {}
    for key in parts:
        prints = [rank.get(key) for rank in ranks]
        if key not in whole or None in prints:
            continue
        rules[key] = _rule(list(whole[key].shape), prints)
        if key[1] == "output" and rules[key].dim is not None and key[0] in packed:
            rules[key] = Rule(rules[key].ndim, known=False)
    return rules


def _rule(whole: list[int], prints: list[Any]) -> Rule:
    shapes = [shape for shape, *_ in prints]
    if any(len(shape) != len(whole) for shape in shapes):
        return Rule(len(whole), known=False)
    differ = [dim for dim in range(len(whole)) if any(shape[dim] != whole[dim] for shape in shapes)]
    if not differ:
        first = torch.tensor(prints[0][1:], dtype=torch.float64)
        others = [torch.tensor(other[1:], dtype=torch.float64) for other in prints]
        equal = all(torch.allclose(first, other, rtol=1e-4, atol=0, equal_nan=True) for other in others)
        return Rule(len(whole), known=equal)
    (dim, *more) = differ
    sizes = tuple(shape[dim] for shape in shapes)
    return Rule(len(whole), dim, sizes, known=not more and sum(sizes) == whole[dim])


def named(value: Any, name: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    """Give the tensors of a structure and what they are called in it, in the order of `nnsight.plugin.leaves`."""
    if isinstance(value, torch.Tensor):
        yield name, value
    elif isinstance(value, torch.Size):
        return
    elif isinstance(value, (tuple, list)):
        for at, part in enumerate(value):
            yield from named(part, f"{name}[{at}]")
    elif isinstance(value, Mapping):
        for key, part in value.items():
            yield from named(part, f"{name}.{key}")
    elif is_dataclass(value) and not isinstance(value, type) and not isinstance(value, torch.nn.Module):
        for field in fields(value):
            if hasattr(value, field.name):
                yield from named(getattr(value, field.name), f"{name}.{field.name}")
