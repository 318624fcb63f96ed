"""A rigging: the taps of one tree of modules, put on as far as a run needs them and taken off when the last one ends.

Runs are short and many, and a model has many modules, so as few as possible are tapped: what lies at the top, and then,
level by level, the way to what a body asks for. A level is tapped before the module that holds it starts, so visits are
counted exactly all the same. That rests on modules being called from inside the module that holds them; the first run of
a tree, and of each method of it, is tapped completely and *learns* which are not, and those are tapped from the start
ever after.

Runs of one tree share what is on. Riggings that overlap (a part of a model traced while the whole of it is) look at one
another only while both are on.
"""

from __future__ import annotations

import threading
from collections.abc import Container, Iterable, Iterator, Mapping
from typing import Any

import torch

from .sites import Place
from .taps import Tap, tap_of

_lock = threading.RLock()
#: The riggings that are on.
_on: list[Rigging] = []


class Rigging:
    """The taps of one tree of modules, and which of them are on."""

    def __init__(self, root: torch.nn.Module, path: str, extras: dict[str, torch.nn.Module] | None = None) -> None:
        self.root = root
        self.path = path
        self.extras = extras or {}
        self.users = 0
        #: Those that are on, and among them those that lie over a forward which somebody put on the instance.
        self._tapped: dict[Tap, None] = {}
        self._covering: list[Tap] = []
        #: Those that are off for a while, because the only run knows that nobody will ask for them; see `narrow`.
        self._resting: list[Tap] = []
        #: What a run starts with, and the one that is on as it was put, with nothing opened or covered since.
        self._start = Start([])
        self._untouched: Start | None = None
        #: The places of modules that nobody calls one by one: whoever runs them says what passes there.
        self.closed: frozenset[Place] = frozenset()
        self.taps: list[Tap] = []
        self.collect()

    def collect(self) -> None:
        """Walk the tree again: modules may have been replaced since. While it is on, the change takes effect at once."""
        held = [*reachable(self.root, self.path)]
        extra = [found for name, module in self.extras.items() for found in reachable(module, f"{self.path}.{name}")]
        taps = {path: tap_of(module, path) for path, module in [*held, *extra] if _runs(module)}
        with _lock:
            self._widen()
            tapped = list(self._tapped)
            self._take_off()
            self.taps = list(taps.values())
            self.members: frozenset[Place] = frozenset(self.taps)
            #: The paths of those that the tree itself holds.
            self.held: dict[Place, str] = {taps[path]: path for path, _ in held if path in taps}
            self._shape = _shape(self.root)
            #: Which module holds which, containers without a forward left out.
            self.above: dict[Place, Tap] = {}
            self.below: dict[Place, list[Tap]] = {}
            for path, tap in taps.items():
                holder = _holder(path, taps)
                if holder is not None:
                    self.above[tap] = holder
                    if tap not in self.closed:
                        self.below.setdefault(holder, []).append(tap)
            #: The methods of the root whose first run is over; None is its forward.
            self.learned: set[str | None] = set()
            self._all = Start([tap for tap in self.taps if tap not in self.closed])
            #: What is called from elsewhere than inside the module that holds it; a family calls its own from anywhere.
            self.hoisted: set[Place] = {taps[path] for path, _ in extra if path in taps}
            #: What was running when such a module was called.
            self.callers: set[Place] = set()
            self._forwards = _class_forwards(self.taps)
            self.settle_base()
            if self.users:
                self._put(tap for tap in tapped if tap in self.members)

    def settle_base(self) -> None:
        """Say what is tapped in every run: the top, what it holds, and what is called from elsewhere.

        Beside the last, what its callers hold: a body that stands at a module called from elsewhere may ask next for any
        that the caller has not come to yet, and only a count from the start can tell that it has not.
        """
        top = [tap for tap in self.taps if tap not in self.above]
        opened = {tap for holder in (*top, *self.callers) for tap in self.below.get(holder, ())}
        wanted = dict.fromkeys([*top, *(tap for tap in self.taps if tap in opened or tap in self.hoisted)])
        base = [tap for tap in wanted if tap not in self.closed]
        self.base: frozenset[Place] = self.closed.union(base)
        self._start = Start(base)

    def close(self, modules: Iterable[torch.nn.Module]) -> list[Tap]:
        """Leave these modules alone from now on, and return their places."""
        members = set(modules)
        closed = [tap for tap in self.taps if tap.module in members]
        self.closed = self.closed.union(closed)
        self.collect()
        return closed

    def has(self, place: Place) -> bool:
        """Say whether a place lies in this tree, walking it again if a module may have joined it."""
        owner = place.owner
        if owner in self.members:
            return True
        # A module that is new in the tree is seen when it is first asked for: looking at every run would cost more.
        if not isinstance(owner, Tap) or not _runs(owner.module):
            return False
        if any(module is owner.module for module in self.root.modules()):
            self.collect()
        return owner in self.members

    def follow(self) -> None:
        """Walk the tree again if a module was put into it or taken out of it since."""
        modules, held = self._shape
        if [list(module._modules.values()) for module in modules] != held:
            self.collect()

    def put(self, method: str | None) -> frozenset[Place]:
        """Tap for one more run, of a method of the root, and return the places whose visits are counted from its start."""
        with _lock:
            self._follow_classes()
            self._widen()
            known = method in self.learned
            start = self._start if known else self._all
            if _on or not start.put():
                self._put(start.taps)
            else:
                self._tapped = start.tapped.copy()
                self._untouched = start
            self.users += 1
            if self.users == 1:
                _on.append(self)
            return self.base if known else self.members

    def open(self, holder: Place) -> list[Tap]:
        """Tap what a module holds, and return it."""
        held = self.below.get(holder, [])
        with _lock:
            self._widen()
            self._put(held)
        return held

    def narrow(self, places: Container[Place]) -> None:
        """Let all taps but those of these places rest, until `widen`, as far as that concerns nobody else.

        Visits of the others are not counted meanwhile, so this is for who knows that no body can ask for them.
        """
        with _lock:
            if self.users != 1 or self._covering or self._resting:
                return
            needed = {tap for other in _on if other is not self for tap in other._tapped}
            for tap in self._tapped:
                if tap not in places and tap not in needed and tap.own.get("forward") is tap.wrapper:
                    del tap.own["forward"]
                    self._resting.append(tap)

    def widen(self) -> None:
        """Put the taps on again that rest."""
        with _lock:
            self._widen()

    def _widen(self) -> None:
        resting, self._resting = self._resting, []
        for tap in resting:
            if tap.own.setdefault("forward", tap.wrapper) is not tap.wrapper:
                # Somebody has put a forward of their own there since.
                self._untouched = None
                tap.cover()
                self._covering.append(tap)

    def learn(self, method: str | None) -> None:
        """Take it from the run that is ending, which was tapped completely, who is called from elsewhere."""
        with _lock:
            self.learned.add(method)
            self.settle_base()

    def hoist(self, place: Place, callers: Iterable[Place]) -> None:
        """Tap a place from the start of every run from now on: it is called from elsewhere than inside its holder."""
        with _lock:
            self.note_hoisted(place, callers)
            self.settle_base()

    def note_hoisted(self, place: Place, callers: Iterable[Place]) -> None:
        """Take it that a place is called by these modules. Its holder and what is around that may call it too."""
        self.hoisted.add(place)
        self.callers.update(callers)
        holder = self.above.get(place)
        while holder is not None and holder not in self.callers:
            self.callers.add(holder)
            holder = self.above.get(holder)

    def take_off(self) -> None:
        """Take the taps off if this was the last run that needs them."""
        with _lock:
            self._widen()
            self.users -= 1
            if self.users == 0:
                _on.remove(self)
                start = self._untouched
                if start is None or _on or not start.take_off():
                    self._take_off()
                else:
                    self._tapped = {}
                    self._untouched = None

    def _follow_classes(self) -> None:
        for cls, forward in self._forwards.items():
            if cls.forward is not forward:  # somebody has patched the class since
                self._forwards = _class_forwards(self.taps)
                for tap in self.taps:
                    tap.aim_now()
                return

    def _put(self, taps: Iterable[Tap]) -> None:
        tapped = self._tapped
        self._untouched = None
        try:
            for tap in taps:
                if tap in tapped:
                    continue
                own = tap.own
                if "forward" not in own:
                    own["forward"] = tap.wrapper
                else:
                    if own["forward"] is not tap.wrapper:
                        tap.cover()
                    if tap.is_covering():
                        self._covering.append(tap)
                tapped[tap] = None
        except BaseException:
            if not self.users:
                self._take_off()
            raise

    def _take_off(self) -> None:
        self._untouched = None
        tapped, self._tapped = self._tapped, {}
        covering, self._covering = self._covering, []
        needed: set[Tap] = set()
        for other in _on:
            if other is not self:
                needed.update(other._tapped)
        for tap in tapped:
            if needed and tap in needed:
                continue
            own = tap.own
            found = own.pop("forward", None)
            if found is not None and (found is not tap.wrapper or (covering and tap in covering)):
                own["forward"] = found
                if tap.is_covering():
                    tap.uncover()


class Start:
    """The taps that a run starts with, put on and taken off on the shortest way where nothing is in the way."""

    __slots__ = ("_pairs", "tapped", "taps")

    def __init__(self, taps: list[Tap]) -> None:
        self.taps = taps
        self.tapped: dict[Tap, None] = dict.fromkeys(taps)
        self._pairs = [(tap.own, tap.wrapper) for tap in taps]

    def put(self) -> bool:
        """Put the wrappers on. Return False at the first instance that has a forward; the rest are left to others."""
        for own, wrapper in self._pairs:
            if own.setdefault("forward", wrapper) is not wrapper:
                return False
        return True

    def take_off(self) -> bool:
        """Take the wrappers off. Return False at the first that is covered or gone; the rest are left to others."""
        for own, wrapper in self._pairs:
            found = own.pop("forward", None)
            if found is not wrapper:
                if found is not None:
                    own["forward"] = found
                return False
        return True


class Learning(dict[Place, int]):
    """Counts of a first run, which notes the modules that are called from elsewhere than inside their holder."""

    def __init__(self, rigging: Rigging, left: dict[Place, int]) -> None:
        super().__init__()
        self._rigging = rigging
        self._left = left

    def __setitem__(self, place: Place, count: int) -> None:
        holder = self._rigging.above.get(place)
        if holder is not None and self.get(holder, 0) <= self._left.get(holder, 0):
            self._rigging.note_hoisted(place, running(self, self._left))
        super().__setitem__(place, count)


def running(entered: Mapping[Place, int], left: Mapping[Place, int]) -> list[Place]:
    """Return the places that were entered and not left yet."""
    return [place for place, count in entered.items() if count > left.get(place, 0)]


def _shape(root: torch.nn.Module) -> tuple[list[torch.nn.Module], list[list[torch.nn.Module | None]]]:
    """Return the modules of a tree, and what each of them holds."""
    modules = [module for module in root.modules() if not isinstance(module, torch.jit.ScriptModule)]
    return modules, [list(module._modules.values()) for module in modules]


def _holder(path: str, taps: dict[str, Tap]) -> Tap | None:
    while "." in path:
        path = path.rpartition(".")[0]
        if path in taps:
            return taps[path]
    return None


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
