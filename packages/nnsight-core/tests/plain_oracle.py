"""What a trace should give, computed with plain hooks and nothing of nnsight; and the trees that it is asked about.

A tree is built from modules that work on each row by itself. An act is one thing that a body does at one site; a site
is a module, a stage and the number of the visit. `Oracle` runs a tree with hooks that do the acts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

SIZE = 3


def first(value: Any) -> torch.Tensor:
    return value[0] if isinstance(value, tuple) else value


class Chain(nn.Module):
    """Its parts, one after another."""

    def __init__(self, parts: Sequence[nn.Module]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for part in self.parts:
            x = first(part(x))
        return x


class Residual(nn.Module):
    """Its part, and what goes around it."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.part = part

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + first(self.part(x))


class Pair(nn.Module):
    """Gives a tuple."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.part = part

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return first(self.part(x)).tanh(), x * 2


class ByName(nn.Module):
    """Calls its part with a keyword argument only."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.part = part

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return first(self.part(x=x)) * 0.5


class Recurrent(nn.Module):
    """Its part, several times."""

    def __init__(self, part: nn.Module, times: int) -> None:
        super().__init__()
        self.part = part
        self.times = times

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for _ in range(self.times):
            x = first(self.part(x)).tanh()
        return x


class Leaf(nn.Module):
    """Computes something new."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(seed)
        self.weight = nn.Parameter(torch.randn(SIZE, SIZE, generator=draw, dtype=torch.float64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x.unsqueeze(-2) * self.weight).sum(-1)


def build(spec: Any, built: list[nn.Module] | None = None) -> nn.Module:
    """Make a tree: `spec` is the number of a leaf, or the kind of a module and what it is made of."""
    if built is None:
        built = []
    if isinstance(spec, int):
        module: nn.Module = Leaf(spec)
    elif spec[0] == "again":
        # A module that is in the tree already; only finished ones can be, so that none holds itself.
        return built[spec[1] % len(built)] if built else build(spec[1], built)
    elif spec[0] == "chain":
        module = Chain([build(part, built) for part in spec[1]])
    elif spec[0] == "recurrent":
        module = Recurrent(build(spec[1], built), spec[2])
    else:
        module = {"residual": Residual, "pair": Pair, "byname": ByName}[spec[0]](build(spec[1], built))
    built.append(module)
    return module


@dataclass(frozen=True)
class Site:
    """One stage of one visit of one module."""

    module: nn.Module
    path: str
    stage: str
    visit: int


@dataclass(frozen=True)
class Act:
    """What a body does at a site: read, edit (in place), replace, skip."""

    site: Site
    kind: str
    number: int


def edited(tensor: torch.Tensor, number: int) -> torch.Tensor:
    """Edit in place."""
    tensor.mul_(1 + number / 10)
    tensor[..., 0] += number
    return tensor


def replaced(value: Any, number: int) -> Any:
    """Give another value of the same form."""
    if isinstance(value, tuple):
        return tuple(replaced(each, number) for each in value)
    return value.flip(-1) - number


def instead(module: nn.Module, x: torch.Tensor, number: int) -> Any:
    """Give an output for a module that is skipped."""
    return (x.cos() * number, x - number) if isinstance(module, Pair) else x.cos() * number


def copied(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: copied(each) for name, each in value.items()}
    return tuple(copied(each) for each in value) if isinstance(value, tuple) else value.clone()


class Stopped(Exception):
    """Ends a run of the oracle."""


class Oracle:
    """Runs a tree with acts, by plain hooks.

    Attributes:
        log: copies of what was read, in order; the result last, if the run came to its end.
        sites: every site that was passed.
        kept: for each module, inputs and output of each visit, copied as they were when the run went on.
    """

    def __init__(self, root: nn.Module, acts: Sequence[Act] = (), stop_at: Site | None = None) -> None:
        self.acts = acts
        self.stop_at = stop_at
        self.log: list[Any] = []
        self.sites: list[Site] = []
        self.kept: dict[nn.Module, list[list[Any]]] = {}
        self.root = root
        self.paths: dict[nn.Module, str] = {}
        for path, module in root.named_modules():
            self.paths.setdefault(module, path)
        self.visits: Counter[nn.Module] = Counter()
        self.skipping: dict[nn.Module, Any] = {}

    def run(self, x: torch.Tensor) -> Oracle:
        with self._hooked():
            try:
                self.log.append(copied(self.root(x)))
            except Stopped:
                pass
        return self

    @contextmanager
    def _hooked(self) -> Iterator[None]:
        handles = []
        modules = [module for module in self.paths if not isinstance(module, nn.ModuleList)]
        for module in modules:
            handles.append(module.register_forward_pre_hook(self._before, with_kwargs=True))
            handles.append(module.register_forward_hook(self._after, with_kwargs=True))
            module.forward = self._unless_skipped(module, module.forward)
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
            for module in modules:
                del module.forward

    def _unless_skipped(self, module: nn.Module, forward: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            return self.skipping.pop(module) if module in self.skipping else forward(*args, **kwargs)

        return call

    def _here(self, module: nn.Module, stage: str, visit: int) -> tuple[Site, list[Act]]:
        site = Site(module, self.paths[module], stage, visit)
        self.sites.append(site)
        return site, [act for act in self.acts if act.site == site]

    def _before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        site, acts = self._here(module, "input", self.visits[module])
        self.visits[module] += 1
        x = args[0] if args else kwargs["x"]
        for act in acts:
            if act.kind == "read":
                self.log.append(copied(x))
            elif act.kind == "edit":
                edited(x, act.number)
            elif act.kind == "replace":
                x = replaced(x, act.number)
            elif act.kind == "skip":
                self.skipping[module] = instead(module, x, act.number)
        new = ((x,), {}) if args else ((), {"x": x})
        self.kept.setdefault(module, []).append([copied(new), None])
        if site == self.stop_at:
            raise Stopped
        return new

    def _after(self, module: nn.Module, args: Any, kwargs: Any, value: Any) -> Any:
        visit = self.visits[module] - 1
        site, acts = self._here(module, "output", visit)
        for act in acts:
            if act.kind == "read":
                self.log.append(copied(value))
            elif act.kind == "edit":
                edited(first(value), act.number)
            elif act.kind == "replace":
                value = replaced(value, act.number)
        self.kept[module][visit][1] = copied(value)
        if site == self.stop_at:
            raise Stopped
        return value
