"""Measure how the values of a parallel model lie: it and its twin run on the same few tokens, and shapes are compared.

The twin is the same model built whole, without weights, and so without work. What is compared is what passes in and out of
every module, and of the operations that somebody asks for; see `parallel.py` for what follows from it.
"""

from __future__ import annotations

import contextlib
import copy
import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed.tensor import DTensor, Replicate, Shard

from nnsight import MissedProviderError, NNsight, SourceError
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


class Probe:
    """Measures how values lie in a parallel model; every rank makes one, and asks it for the same in the same order.

    Args:
        module: the model.
        group: its ranks.
    """

    def __init__(self, module: Any, group: Any) -> None:
        self._module = module
        self._group = group
        self._packed = _packed(module)
        self._mode = FakeTensorMode(allow_non_fake_inputs=True)
        # relies on: PreTrainedModel.dummy_inputs, transformers 5.15 to 5.23
        self._inputs: dict[str, Any] = dict(module.dummy_inputs)
        self._options: dict[str, Any] = {"use_cache": False}
        if getattr(module.config, "_attn_implementation", None) == "eager":
            self._options["output_attentions"] = True
        #: Why the twin cannot be made or run, if it cannot; then nothing can be measured.
        self.why = ""
        #: It and the model as plain models, to look at their operations with.
        self._plain: list[NNsight] = []

    def modules(self) -> dict[Key, Rule]:
        """Return how each value lies that passes in and out of the modules."""
        try:
            with self._mode:
                made = twin(self._module)
                whole = _seen(made, self._call(fake=True))
        except Exception as error:  # of the model's own code: it may want inputs or arguments of another kind
            self.why = f"{type(error).__name__}: {error}"
            return {}
        self._plain = [NNsight(made), NNsight(self._module)]
        return _compared(whole, _seen(self._module, self._call()), self._packed, self._group)

    def operation(self, path: str, stage: str) -> dict[Key, Rule]:
        """Return how what passes an operation lies, `path` being that of the operation from the model on."""
        owner, *operations = path.split(".source.")
        if self.why or owner in self._packed:
            return {}
        where = owner, operations, stage
        try:
            with self._mode:
                whole = _operation(self._plain[0], where, self._call(fake=True))
        except (SourceError, AttributeError, MissedProviderError):
            # What transformers has wrapped around a layer to spread it is not in the twin.
            return {}
        parts = _operation(self._plain[1], where, self._call())
        keyed = [{(path, stage, name): tensor for name, tensor in named(value)} for value in (whole, parts)]
        return _compared(keyed[0], keyed[1], self._packed, self._group)

    def _call(self, fake: bool = False) -> dict[str, Any]:
        device = next(self._module.parameters()).device
        given = {
            name: self._mode.from_tensor(value) if fake else value.to(device) for name, value in self._inputs.items()
        }
        return {**given, **self._options}


def _operation(model: NNsight, where: tuple[str, list[str], str], call: dict[str, Any]) -> Any:
    """Run a model and return what passes one of its operations, the first time."""
    owner, operations, stage = where
    with _still(model._module):
        found: Any = model.get(owner)
        for name in operations:
            found = found.source[name]
        with model.trace(**call):
            value = found.output if stage == "output" else found.inputs
    return value


@contextlib.contextmanager
def _still(module: Any) -> Iterator[None]:
    """Let a model run without chance and without a graph."""
    was = module.training
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        module.train(was)


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


def _seen(module: Any, call: dict[str, Any]) -> dict[Key, torch.Tensor]:
    """Run a model and return each tensor that passes in or out of a module, the first time it does."""
    found: dict[Key, torch.Tensor] = {}

    def look(path: str, stage: str, value: Any) -> None:
        for name, tensor in named(value):
            found.setdefault((path, stage, name), tensor)

    with contextlib.ExitStack() as stack:
        stack.enter_context(_still(module))
        for path, part in module.named_modules():
            before = functools.partial(_before, look, path)
            stack.callback(part.register_forward_pre_hook(before, with_kwargs=True).remove)
            stack.callback(part.register_forward_hook(functools.partial(_after, look, path)).remove)
        module(**call)
    return found


def _before(look: Any, path: str, module: Any, args: Any, kwargs: Any) -> None:
    look(path, "input", (args, kwargs))


def _after(look: Any, path: str, module: Any, args: Any, output: Any) -> None:
    look(path, "output", output)


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
