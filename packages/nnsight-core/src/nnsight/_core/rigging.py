"""A rigging: the taps of one tree of modules, put on when a run begins and taken off when the last one ends.

Runs are short and many, and a model has many modules, so putting one tap on is one dict write and taking it off another.
Runs of one tree share what is on. Riggings that overlap (a part of a model traced while the whole of it is) look at one
another only while both are on.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import torch

from .sites import Place
from .taps import Tap, tap_of

_lock = threading.Lock()
#: The riggings that are on.
_on: list[Rigging] = []


class Rigging:
    """The taps of one tree of modules, collected once and put on for every run."""

    def __init__(self, root: torch.nn.Module, path: str, extras: dict[str, torch.nn.Module] | None = None) -> None:
        self.root = root
        self.path = path
        self.extras = extras or {}
        self.users = 0
        self.taps: list[Tap] = []
        self._covering: list[Tap] = []
        self.collect()

    def collect(self) -> None:
        """Walk the tree again: modules may have been replaced since. While it is on, the change takes effect at once."""
        named = [*reachable(self.root, self.path)]
        for name, extra in self.extras.items():
            named += reachable(extra, f"{self.path}.{name}")
        taps = [tap_of(module, path) for path, module in named if _runs(module)]
        with _lock:
            if self.users:
                self._take_off()
            self.taps = taps
            self.members: frozenset[Place] = frozenset(taps)
            self._puts = [(tap.own, tap.wrapper, tap) for tap in taps]
            self._forwards = _class_forwards(taps)
            if self.users:
                self._put()

    def has(self, place: Place) -> bool:
        """Say whether a place lies in this tree, walking it again if a module may have joined it."""
        owner = place.owner
        if owner in self.members:
            return True
        # A module that is new in the tree is seen when it is first asked for: looking at every run would cost more.
        if isinstance(owner, Tap) and any(module is owner.module for module in self.root.modules()):
            self.collect()
        return owner in self.members

    def put(self) -> None:
        """Put every tap on, for one more run; none if one cannot be."""
        with _lock:
            self.users += 1
            if self.users == 1:
                try:
                    self._put()
                except BaseException:
                    self.users = 0
                    self._take_off()
                    raise
                _on.append(self)

    def take_off(self) -> None:
        """Take the taps off if this was the last run that needs them."""
        with _lock:
            self.users -= 1
            if self.users == 0:
                _on.remove(self)
                self._take_off()

    def _put(self) -> None:
        for cls, forward in self._forwards.items():
            if cls.forward is not forward:  # somebody has patched the class since
                self._forwards = _class_forwards(self.taps)
                for tap in self.taps:
                    tap.aim_now()
                break
        for own, wrapper, tap in self._puts:
            if "forward" not in own:
                own["forward"] = wrapper
            else:
                if own["forward"] is not wrapper:
                    tap.cover()
                if tap.is_covering():
                    self._covering.append(tap)

    def _take_off(self) -> None:
        covering, self._covering = self._covering, []
        needed: set[Place] = set()
        for other in _on:
            if other is not self:
                needed |= other.members
        for own, wrapper, tap in self._puts:
            if needed and tap in needed:
                continue
            found = own.pop("forward", None)
            if found is not None and (found is not wrapper or (covering and tap in covering)):
                own["forward"] = found
                if tap.is_covering():
                    tap.uncover()


def _class_forwards(taps: list[Tap]) -> dict[type[torch.nn.Module], Any]:
    modules = [tap.module for tap in taps if not isinstance(tap.module, torch.jit.ScriptModule)]
    return {type(module): type(module).forward for module in modules}


def _runs(module: torch.nn.Module) -> bool:
    # Containers such as ModuleList have no forward.
    if isinstance(module, torch.jit.ScriptModule):
        return True
    return "forward" in module.__dict__ or type(module).forward is not torch.nn.Module.forward


def reachable(root: torch.nn.Module, path: str) -> Iterator[tuple[str, torch.nn.Module]]:
    """Give the path and module of everything in a tree that a run can stop at, shared modules once."""
    scripted: list[str] = []
    for name, module in root.named_modules():
        if any(name.startswith(f"{above}.") or not above for above in scripted):
            continue  # what TorchScript runs inside itself never comes by
        if isinstance(module, torch.jit.ScriptModule):
            scripted.append(name)
        yield ".".join(part for part in (path, name) if part), module

