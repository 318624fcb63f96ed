"""How the values of a model lie on the workers that share it, as the core asks for it.

Which tensors are shared out, and how, was measured (`measured.py`). One of which that is not known (inside a forward, or in a
module that did not run then) is looked at when it is asked for: with the same numbers on all ranks it is whole, and otherwise
it is refused.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist

from nnsight import RanksError
from nnsight.plugin import fingerprint, leaves, tree_map

from .layers import SUM
from .measured import WHOLE, Key, Rule, alike
from .parameters import Parameters, copied, is_everywhere, shared, unpacked
from .shares import Share


class TensorParallel(Parameters):
    """See `nnsight.plugin.Sharding` and `nnsight.plugin.Peers`.

    Args:
        module, root: see `Parameters`.
        group: vLLM's tensor-parallel group.
        passing: the paths of values that no module has, which are whole.
    """

    def __init__(self, module: torch.nn.Module, root: str, group: Any, passing: Iterable[str]) -> None:
        super().__init__(module, root)
        self.rank, self.size = group.rank_in_group, group.world_size
        self.group, self._told_in = group.device_group, group.cpu_group
        self._all_reduce = group.all_reduce
        self._passing = frozenset(passing)
        self.rules: dict[Key, Rule] = {}
        #: Where nothing is to be done.
        self._everywhere: set[tuple[str, str]] = set()

    def learn(self, rules: dict[Key, Rule]) -> None:
        """Take in how values lie."""
        self.rules = rules
        places: dict[tuple[str, str], bool] = {}
        for (path, stage, _), rule in rules.items():
            places[path, stage] = places.get((path, stage), True) and rule == WHOLE
        self._everywhere = {place for place, whole in places.items() if whole}

    # -- what ranks tell one another ---------------------------------------------------------------------------------

    def compare(self, message: str) -> list[str] | None:
        """Tell the others a message; return what all told, by rank, or None if that is the same."""
        digest = hashlib.blake2b(message.encode(), digest_size=8).digest()
        mine = torch.frombuffer(bytearray(digest), dtype=torch.int64)
        theirs = [torch.empty_like(mine) for _ in range(self.size)]
        dist.all_gather(theirs, mine, group=self._told_in)
        if all(one.item() == theirs[0].item() for one in theirs):
            return None
        told: list[Any] = [None] * self.size
        dist.all_gather_object(told, message, group=self._told_in)
        return told

    # -- values ------------------------------------------------------------------------------------------------------

    def gather(self, path: str, stage: str, value: Any) -> Any:
        """Return the whole of a value of which `value` is this rank's part."""
        parts = leaves(value)
        if not parts or path in self._passing or (path, stage) in self._everywhere:
            return value
        rules = [self._rule(path, stage, number, part) for number, part in enumerate(parts)]
        return _exchanged(value, parts, [self._gathered(part, rule) for part, rule in zip(parts, rules)])

    def split(self, path: str, stage: str, value: Any, local: Any) -> Any:
        """Return this rank's part of a whole value."""
        wholes = leaves(value)
        if (path, stage) in self._everywhere or path in self._passing:
            return value
        rules = [self.rules.get((path, stage, number)) for number in range(len(wholes))]
        if local is None and None in rules:
            raise RanksError(_unknown(path, stage, "what you give it"))
        return _exchanged(value, wholes, [self._part(path, *pair) for pair in zip(wholes, rules)])

    def _rule(self, path: str, stage: str, number: int, part: torch.Tensor) -> Rule:
        rule = self.rules.get((path, stage, number))
        if isinstance(rule, Share) and not rule.fits(part, self.rank):
            rule = None
        if rule is None:
            if not self._is_equal(part):
                raise RanksError(_unknown(path, stage, f"a tensor of shape {tuple(part.shape)}"))
            return WHOLE
        return rule

    def _gathered(self, part: torch.Tensor, rule: Rule) -> torch.Tensor:
        if isinstance(rule, Share):
            return rule.gather(part, self.group)
        return self._all_reduce(part.clone()) if rule == SUM else part

    def _part(self, path: str, whole: torch.Tensor, rule: Rule | None) -> torch.Tensor:
        if isinstance(rule, Share):
            if whole.dim() < -rule.dim or whole.shape[rule.dim] != rule.size:
                raise RanksError(
                    f"`{path}` has {rule.size} entries in dimension {rule.dim} of what it takes or gives, shared out among "
                    f"the ranks, and got a tensor of shape {tuple(whole.shape)}. Give it the whole value."
                )
            return rule.split(whole, self.rank)
        return torch.zeros_like(whole) if rule == SUM and self.rank else whole

    def _is_equal(self, part: torch.Tensor) -> bool:
        """Say whether every rank has the same tensor, and that means something: a constant may be part of a larger one."""
        shape, *numbers = fingerprint(part)
        tells = not part.is_floating_point() or bool((part != part.reshape(-1)[:1]).any())
        told = self.compare(json.dumps([shape, numbers, tells]))
        if told is None:
            return tells
        theirs = [json.loads(text) for text in told]
        return all(other[2] and alike((other[0], *other[1]), (shape, *numbers)) for other in theirs)

    # -- parameters --------------------------------------------------------------------------------------------------

    def _whole(self, path: str, module: Any, name: str, value: torch.Tensor) -> torch.Tensor:
        part = unpacked(path, module, name, value)
        if getattr(module, "tp_size", self.size) == 1 or is_everywhere(module, name, value):
            return copied(part)
        mine = shared(module, name, part, value)
        if mine is not None:
            dim, ranges = mine
            told: list[Any] = [None] * self.size
            dist.all_gather_object(told, ranges, group=self._told_in)
            return copied(Share(dim - part.dim(), tuple(told)).gather(part.detach(), self.group))
        if not self._is_equal(part):
            raise RanksError(
                f"`{path}` is spread over several workers: each has something of its own there (a tensor of shape "
                f"{tuple(part.shape)}), and how the whole is made of that is not known. The checkpoint has it whole."
            )
        return copied(part)


def _exchanged(value: Any, old: list[torch.Tensor], new: list[torch.Tensor]) -> Any:
    if all(before is after for before, after in zip(old, new)):
        return value
    at = iter(new)
    return tree_map(lambda _: next(at), value)


def _unknown(path: str, stage: str, what: str) -> str:
    around, _, operation = path.partition(".source.")
    said = "an operation inside" if operation else "a value of"
    other = f"of `{around}`" if operation else f"of a module around it, such as `{around.rpartition('.')[0]}`,"
    return (
        f"`{path}.{stage}` is {said} a part of the model that is spread over several workers: each has something of its own "
        f"there ({what}), and how the whole is made of that is not known. Ask for the input or output {other} or of one "
        "inside."
    )
