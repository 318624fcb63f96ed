"""Tensor parallelism through transformers' own plans: how the values of such a model are shown whole, and split again.

A plan shards the weights, and what flows between a sharded projection and the one that undoes it is each rank's part only:
its heads, its slice of the hidden units. Which dimension of which value that is, no plan says for the modules in between.
So it is *measured*, once for a model: it runs on a few tokens, and so does its twin, the same modules built whole without
weights. Where the shapes of a value differ in one dimension, that is the one that the ranks share; where they are equal and
so are the numbers on all ranks, every rank has the whole; all else cannot be shown whole, and is refused.

When values are put together is the core's business (`nnsight.plugin.Sharding`). What is measured how is `probe.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import torch
import torch.distributed as dist
import transformers
import transformers.distributed
from torch.distributed.tensor import DTensor, distribute_tensor

from nnsight import RanksError
from nnsight.plugin import Lockstep, fingerprint, leaves, tree_map
from nnsight_hf.probe import Probe, Rule, named
from nnsight_hf.whole import WholeParameter

_models = 0


def restated(options: dict[str, Any]) -> dict[str, Any]:
    """Return options for loading with `tp_plan=` as transformers takes it: newer ones want it in a `DistributedConfig`."""
    given: Any = getattr(transformers.distributed, "DistributedConfig", None)
    if given is None or "tp_plan" not in {field.name for field in fields(given)} or "distributed_config" in options:
        return options
    plan = {name: options[name] for name in ("tp_plan", "tp_size") if name in options}
    rest = {name: value for name, value in options.items() if name not in plan}
    return {**rest, "distributed_config": given(**plan)}


def sharding_of(module: Any) -> TensorParallel | None:
    """Return how the values of a module lie on the ranks; None for one that is not spread over several.

    Raises:
        NotImplementedError: it is spread in another way than transformers' tensor or expert parallelism.
    """
    mesh = getattr(module, "_device_mesh", None)
    if mesh is None or mesh.size() == 1:
        return None
    # relies on: `_device_mesh`, `_tp_size` and `config.distributed_config` of a loaded model, transformers 5.23
    stated = getattr(getattr(module, "config", None), "distributed_config", None)
    if stated is None or not hasattr(stated, "ep_size"):
        raise NotImplementedError(
            f"This model was loaded in parallel by transformers {transformers.__version__}, whose way of doing so nnsight "
            "does not know. Install transformers 5.23 or later, or load without `tp_plan`."
        )
    others = {name: getattr(stated, name) for name in ("pp_size", "fsdp_size", "dp_replicate_size")}
    if any(size > 1 for size in others.values()):
        raise NotImplementedError(
            "nnsight shows the values of tensor and expert parallel models whole, and not those of pipelines or of models "
            f"that are sharded as data ({', '.join(f'{name}={size}' for name, size in others.items() if size > 1)}). Load "
            "with `tp_plan` or `DistributedConfig(tp_size=...)` alone."
        )
    global _models
    _models += 1
    return TensorParallel(module, mesh["tp"].get_group(), f"nnsight/model{_models}")


class TensorParallel:
    """How the values of one model lie on its ranks: see `nnsight.plugin.Sharding`.

    Args:
        module: the model, as transformers has loaded it.
        group: the ranks.
        name: the same on all of them, and another one for each model.
    """

    def __init__(self, module: Any, group: Any, name: str) -> None:
        self.module = module
        self.group = group
        self.rank, self.size = dist.get_rank(group), dist.get_world_size(group)
        # relies on: _get_default_store, torch 2.4 to 2.13 (the store that `init_process_group` made, by whatever name)
        store = dist.distributed_c10d._get_default_store()
        self.lockstep = Lockstep(store, self.rank, self.size, name)
        self._rules: dict[tuple[str, str, str], Rule] | None = None
        #: The operations that were measured, with their stage: only those that somebody asked for are.
        self._operations: set[tuple[str, str]] = set()

    def learn(self) -> dict[tuple[str, str, str], Rule]:
        """Measure how values lie, if that was not done yet."""
        if self._rules is None:
            self.lockstep.meet("runs the model for the first time")
            self._probe = Probe(self.module, self.group)
            self._rules = self._probe.modules()
        return self._rules

    def gather(self, path: str, stage: str, value: Any) -> Any:
        """Return the whole of a value of which `value` is this rank's part."""
        parts = leaves(value)
        if not parts:
            return value
        wholes = [
            self._gathered(path, stage, part, self._rule(path, stage, name, part))
            for (name, _), part in zip(named(value), parts, strict=True)
        ]
        return _exchanged(value, parts, wholes)

    def split(self, path: str, stage: str, value: Any, local: Any) -> Any:
        """Return this rank's part of a whole value."""
        wholes = leaves(value)
        rules = [self._rule(path, stage, name, None) for name, _ in named(value)]
        return _exchanged(value, wholes, [self._part(path, stage, *pair) for pair in zip(wholes, rules, strict=True)])

    def read(self, path: str, value: Any) -> Any:
        """Return the whole of a parameter, as a copy that refuses edits in place."""
        if not isinstance(value, DTensor):
            return value
        self.lockstep.meet(f"reads `{path}`")
        return WholeParameter.whole(value, path)

    def assign(self, path: str, old: Any, new: Any) -> Any:
        """Return this rank's part of a whole parameter that is assigned."""
        if not isinstance(old, DTensor) or isinstance(new, DTensor) or not isinstance(new, torch.nn.Parameter):
            return new
        if new.shape != old.shape:
            raise RanksError(
                f"`{path}` has shape {tuple(old.shape)}, of which this rank holds {tuple(old.to_local().shape)}; a parameter "
                f"of shape {tuple(new.shape)} was assigned to it. Assign the whole of it on every rank: each takes its part."
            )
        self.lockstep.meet(f"assigns `{path}`", "", [fingerprint(new)])
        whole = new.detach().to(old.device)
        part = distribute_tensor(whole, old.device_mesh, old.placements, src_data_rank=None)
        return torch.nn.Parameter(part, requires_grad=new.requires_grad)

    def check_seeds(self) -> None:
        """Refuse to draw tokens at random where the ranks would draw different ones: their runs would come apart."""
        states = [torch.get_rng_state()]
        if torch.cuda.is_available():
            states.append(torch.cuda.get_rng_state())
        self.lockstep.meet("samples", "", [fingerprint(state.double() + 1) for state in states])

    # -- one tensor --------------------------------------------------------------------------------------------------

    def _rule(self, path: str, stage: str, name: str, part: torch.Tensor | None) -> Rule | None:
        inside = "" if path == "result" else path.partition(".")[2]
        rules = self.learn()
        if ".source." in inside and (inside, stage) not in self._operations:
            self._operations.add((inside, stage))
            rules.update(self._probe.operation(inside, stage))
        rule = rules.get((inside, stage, name))
        if rule is not None and part is not None and not rule.fits(part, self.rank):
            return None
        return rule

    def _gathered(self, path: str, stage: str, part: torch.Tensor, rule: Rule | None) -> torch.Tensor:
        if rule is None or not rule.known:
            if rule is None and self._is_equal(part):
                return part
            raise RanksError(_unknown(path, stage, part, self._probe.why))
        if rule.dim is None:
            return part
        whole: torch.Tensor = Gather.apply(part, rule.dim, rule.sizes, self.group)
        return whole

    def _part(self, path: str, stage: str, whole: torch.Tensor, rule: Rule | None) -> torch.Tensor:
        if rule is None or rule.dim is None:
            return whole
        if whole.dim() != rule.ndim or whole.shape[rule.dim] != sum(rule.sizes):
            raise RanksError(
                f"`{path}.{stage}` takes a tensor of {rule.ndim} dimensions with {sum(rule.sizes)} entries in dimension "
                f"{rule.dim}, which the ranks share among them; one of shape {tuple(whole.shape)} was written to it. Write "
                "the whole value, on every rank."
            )
        part: torch.Tensor = Split.apply(whole, rule.dim, rule.sizes, self.group)
        return part

    def _is_equal(self, part: torch.Tensor) -> bool:
        """Say whether every rank has the same tensor."""
        shape, *numbers = fingerprint(part)
        mine = torch.tensor([float(hash(tuple(shape)) % 2**40), *numbers], dtype=torch.float64, device=part.device)
        others = [torch.empty_like(mine) for _ in range(self.size)]
        dist.all_gather(others, mine, group=self.group)
        return all(torch.allclose(mine, other, rtol=1e-4, atol=0, equal_nan=True) for other in others)


class Gather(torch.autograd.Function):
    """Puts the parts of all ranks together. Every rank's gradient is that of the whole, so each keeps its part of it."""

    @staticmethod
    def forward(ctx: Any, part: torch.Tensor, dim: int, sizes: Sequence[int], group: Any) -> torch.Tensor:
        ctx.where = dim, sizes, group
        return _all(part, dim, sizes, group)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        return _mine(grad, *ctx.where), None, None, None


class Split(torch.autograd.Function):
    """Takes this rank's part of a whole. The gradient of the whole is made of what all ranks have for their parts."""

    @staticmethod
    def forward(ctx: Any, whole: torch.Tensor, dim: int, sizes: Sequence[int], group: Any) -> torch.Tensor:
        ctx.where = dim, sizes, group
        return _mine(whole, dim, sizes, group)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        return _all(grad, *ctx.where), None, None, None


def _all(part: torch.Tensor, dim: int, sizes: Sequence[int], group: Any) -> torch.Tensor:
    # Not every backend gathers parts of different sizes, nor booleans.
    sent = part.to(torch.uint8) if part.dtype is torch.bool else part
    sent = sent.movedim(dim, 0).contiguous()
    most = max(sizes)
    if len(sent) < most:
        sent = torch.cat([sent, sent.new_zeros(most - len(sent), *sent.shape[1:])])
    got = [torch.empty_like(sent) for _ in sizes]
    dist.all_gather(got, sent, group=group)
    whole = torch.cat([piece[:size] for piece, size in zip(got, sizes)]).movedim(0, dim)
    return whole.to(part.dtype).contiguous()


def _mine(whole: torch.Tensor, dim: int, sizes: Sequence[int], group: Any) -> torch.Tensor:
    rank = dist.get_rank(group)
    return whole.narrow(dim, sum(sizes[:rank]), sizes[rank]).contiguous()


def _exchanged(value: Any, old: list[torch.Tensor], new: list[torch.Tensor]) -> Any:
    if all(before is after for before, after in zip(old, new)):
        return value
    at = iter(new)
    return tree_map(lambda _: next(at), value)


def _unknown(path: str, stage: str, part: torch.Tensor, why: str) -> str:
    around, _, operation = path.partition(".source.")
    said = "an operation inside" if operation else "a value of"
    return (
        f"`{path}.{stage}` is {said} a part of the model that is spread over the ranks: each has something of its own there "
        f"(here a tensor of shape {tuple(part.shape)}), and how the whole is made of it is not known"
        + (f" (the model could not be run on token ids to measure it: {why})" if why else "")
        + ". Ask for the input or "
        f"output of a module around it, such as `{around if operation else around.rpartition('.')[0]}`, or of one inside."
    )
