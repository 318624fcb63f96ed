"""How the values of a model lie on its ranks: found out once, when its engine has started.

One idea: **what flows is followed.** The model runs on two tokens, and every tensor that its modules take and give is kept.
Of some the layer says how they lie (`layers.py`). One that lies in the memory of such a tensor (the queries, a view of what a
merged projection gave) has those of its entries, and a layer that works entry by entry hands them on. Of all others, those
with the same numbers on every rank are whole. What is left is not known, and is refused when somebody asks for it.

Numbers are made to differ where values are shared out, so that weights that happen to be equal (dummy ones) mean nothing.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.distributed as dist

from nnsight.plugin import fingerprint, leaves

from . import layers
from .layers import SUM
from .shares import Ranges, Share, ranged, spelled

#: How many tokens the model runs on: two tell rows from anything else.
TOKENS = 2
#: Stands for a tensor of which every rank has the whole.
WHOLE = "whole"

#: A path, a stage, and which of the tensors there.
Key = tuple[str, str, int]
Rule = Share | str


class Origin(NamedTuple):
    """Where the entries of one row come from: the path of a layer, and which entries of the whole at it they are."""

    path: str
    entries: torch.Tensor


class Followed:
    """The tensors of one run of a model, on one rank.

    Args:
        rank: this process's number among those that share the model.
    """

    def __init__(self, rank: int) -> None:
        self.rank = rank
        self.keys: list[Key] = []
        self.tensors: list[torch.Tensor] = []
        self.prints: list[tuple[list[int], float, float]] = []
        #: By number in these lists.
        self.origins: dict[int, Origin] = {}
        self._kept: list[tuple[int, int]] = []
        self._inputs: dict[str, list[int]] = {}

    @contextmanager
    def listening(self, module: torch.nn.Module, root: str) -> Iterator[None]:
        """Keep what the modules of a model take and give."""
        handles: list[Any] = []
        for name, part in module.named_modules():
            path = f"{root}.{name}" if name else root
            handles.append(part.register_forward_pre_hook(self._taker(path), with_kwargs=True))
            handles.append(part.register_forward_hook(self._giver(path), with_kwargs=True))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _taker(self, path: str) -> Callable[..., None]:
        def take(module: torch.nn.Module, args: Any, kwargs: Any) -> None:
            numbers = self._inputs[path] = self._keep(path, "input", (args, kwargs))
            ranges = layers.taken(module)
            if ranges is not None and numbers:
                self.origins[numbers[0]] = self._origin(path + " input", ranges, self.tensors[numbers[0]])

        return take

    def _giver(self, path: str) -> Callable[..., None]:
        def give(module: torch.nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            said = layers.given(module)
            for tensor in leaves(output):
                if layers.remembers(module):
                    _fill(tensor, zlib.crc32(path.encode()) + self.rank)
                elif isinstance(said, tuple):
                    tensor.mul_(1 + self.rank / 4)
            taken, numbers = self._inputs.pop(path), self._keep(path, "output", output)
            if said is not None and numbers:
                self.origins[numbers[0]] = self._origin(path, said, self.tensors[numbers[0]])
            self._kept += [(taken[other], numbers[mine]) for mine, other in layers.kept(module, (args, kwargs), output)]

        return give

    def _keep(self, path: str, stage: str, value: Any) -> list[int]:
        numbers = []
        for number, tensor in enumerate(leaves(value)):
            numbers.append(len(self.keys))
            self.keys.append((path, stage, number))
            # Some models have all tokens in one row.
            in_one_row = tensor.dim() > 2 and tensor.shape[:2] == (1, TOKENS)
            self.tensors.append(tensor[0] if in_one_row else tensor)
            self.prints.append(fingerprint(tensor))
        return numbers

    def _origin(self, path: str, ranges: Ranges | str, tensor: torch.Tensor) -> Origin:
        if isinstance(ranges, str):
            return Origin(path + " " + ranges, torch.arange(_row(tensor).numel()))
        return Origin(path, spelled(ranges))

    def spread(self) -> None:
        """Hand on what is known, from tensor to tensor, as far as it goes."""
        by_memory: dict[tuple[Any, int], list[int]] = {}
        for number, tensor in enumerate(self.tensors):
            if tensor.dim() > 1 and len(tensor) == TOKENS:
                by_memory.setdefault((tensor.device, tensor.untyped_storage().data_ptr()), []).append(number)
        grown = True
        while grown:
            before = len(self.origins)
            for together in by_memory.values():
                self._share_memory(together)
            for source, target in self._kept:
                if source in self.origins and target not in self.origins:
                    self.origins[target] = self.origins[source]
                elif target in self.origins and source not in self.origins:
                    self.origins[source] = self.origins[target]
            grown = len(self.origins) > before

    def _share_memory(self, together: list[int]) -> None:
        unknown = [number for number in together if number not in self.origins]
        for known in [number for number in together if number in self.origins]:
            if not unknown:
                return
            path, entries = self.origins[known]
            places = _places(self.tensors[known])
            if places.numel() != entries.numel():
                continue
            at = torch.full((int(places.max()) + 1,), -1)
            at[places] = entries
            for number in list(unknown):
                mine = _places(self.tensors[number])
                if mine.numel() and int(mine.max()) < len(at) and bool((at[mine] >= 0).all()):
                    self.origins[number] = Origin(path, at[mine])
                    unknown.remove(number)


def measure(module: torch.nn.Module, root: str, run: Callable[[], Any], rank: int, group: Any) -> dict[Key, Rule]:
    """Find out how the values of a model lie on its ranks; every rank calls this.

    Args:
        module: the model.
        root: the path of the model's root.
        run: runs it on `TOKENS` tokens.
        rank: this process's number among those that share it.
        group: those processes.

    Returns:
        The tensors that are known, by where they pass.
    """
    followed = Followed(rank)
    with followed.listening(module, root):
        run()
    followed.spread()
    mine = [
        (key, list(tensor.shape), outline, _tells(tensor, outline), _told(followed.origins.get(number)))
        for number, (key, tensor, outline) in enumerate(zip(followed.keys, followed.tensors, followed.prints))
    ]
    told: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(told, mine, group=group)
    rules: dict[Key, Rule | None] = {}
    for row in zip(*told):
        key, rule = row[0][0], _rule(list(row))
        rules[key] = rule if rules.get(key, rule) == rule else None  # another visit may have something else there
    return {key: rule for key, rule in rules.items() if rule is not None}


def _told(origin: Origin | None) -> tuple[str, Ranges] | None:
    return None if origin is None else (origin.path, ranged(origin.entries))


def _rule(row: list[Any]) -> Rule | None:
    _, shapes, prints, telling, origins = zip(*row)
    if all(origins) and len({path for path, _ in origins}) == 1:
        if not origins[0][0].endswith(" " + SUM):
            share = _shared(shapes, [spelled(ranges) for _, ranges in origins])
            if share is not None:
                return WHOLE if _is_whole(share) else share
        elif len({tuple(shape) for shape in shapes}) == 1 and not all(alike(prints[0], one) for one in prints[1:]):
            return SUM
    return WHOLE if all(telling) and all(alike(prints[0], one) for one in prints[1:]) else None


def _shared(shapes: Sequence[list[int]], entries: list[torch.Tensor]) -> Share | None:
    """Find the dimension along which parts make a whole whose rows have all entries in their order."""
    if any(math.prod(shape[1:]) != len(part) for shape, part in zip(shapes, entries)):
        return None
    wanted = torch.cat(entries).unique()
    for dim in range(1, len(shapes[0])):
        slices: dict[int, torch.Tensor] = {}
        firsts = []
        for shape, part in zip(shapes, entries):
            rows = part.reshape(shape[1:]).movedim(dim - 1, 0)
            firsts.append([int(one.min()) for one in rows])
            for first, one in zip(firsts[-1], rows):
                if not torch.equal(slices.setdefault(first, one), one):
                    return None
        order = sorted(slices)
        if len({tuple(one.shape) for one in slices.values()}) > 1:
            continue
        whole = torch.stack([slices[first] for first in order]).movedim(0, dim - 1)
        if whole.numel() == wanted.numel() and torch.equal(whole.reshape(-1), wanted):
            number = {first: at for at, first in enumerate(order)}
            mine = tuple(ranged(torch.tensor([number[first] for first in part])) for part in firsts)
            return Share(dim - len(shapes[0]), mine)
    return None


def _is_whole(share: Share) -> bool:
    return all(ranges == ((0, share.size),) for ranges in share.entries)


def _tells(tensor: torch.Tensor, outline: tuple[list[int], float, float]) -> bool:
    """Say whether numbers tell anything: nothing, and what is no number, are the same everywhere."""
    return not tensor.is_floating_point() or (math.isfinite(outline[2]) and outline[2] > 0)


def alike(one: Any, other: Any) -> bool:
    """Say whether two fingerprints are of equal tensors, but for rounding."""
    return list(one[0]) == list(other[0]) and all(math.isclose(a, b, rel_tol=1e-5) for a, b in zip(one[1:], other[1:]))


def _row(tensor: torch.Tensor) -> torch.Tensor:
    return tensor[0] if tensor.dim() > 1 else tensor


def _places(tensor: torch.Tensor) -> torch.Tensor:
    """Return where in its memory the entries of a tensor's first row lie."""
    places = torch.tensor(tensor.storage_offset())
    for size, stride in zip(tensor.shape[1:], tensor.stride()[1:]):
        places = places[..., None] + torch.arange(size) * stride
    return places.reshape(-1)


def _fill(tensor: torch.Tensor, seed: int) -> None:
    # The engine's memory of earlier tokens is not there, and what such a layer leaves then may be anything.
    if tensor.is_floating_point():
        numbers = torch.rand(tensor.shape, generator=torch.Generator().manual_seed(seed))
        tensor.copy_(numbers.to(tensor.device, tensor.dtype))
