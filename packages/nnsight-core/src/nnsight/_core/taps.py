"""What is put on a module so that it stops at its sites, and taken off again when the run ends.

A module that is already running takes PyTorch's fast path, where a hook that is added late is never called. So every
module of the tree gets a thin wrapper as its instance-level `forward` before the run: one dict write each, prebuilt.
The wrapper counts visits and looks whether anybody waits there; all else is in `interleaver.py`. Between runs a model
is exactly what it was. An instance-level `forward` that was there first is called by ours and put back.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator
from types import MethodType
from typing import TYPE_CHECKING, Any

import torch

from .sites import Place
from .turns import Greenlet, getcurrent

if TYPE_CHECKING:
    from .interleaver import Interleaver
    from .sources import Opening

#: Which run the code in a greenlet belongs to. A wrapper asks this, and not "is there a run": two may be alive.
running: dict[Greenlet, Interleaver] = {}

_lock = threading.Lock()
_absent: Any = object()


class Tap(Place):
    """The place of one module, shared by every wrapper of that module."""

    __slots__ = ("call", "held", "module", "opening", "own", "provided", "saved", "users", "wrapper")

    def __init__(self, module: torch.nn.Module, path: str) -> None:
        super().__init__(path)
        self.module = module
        self.own: dict[str, Any] = module.__dict__
        #: Places of values that a family provides for this module, by name.
        self.provided: dict[str, Place] = {}
        self.users = 0
        self.saved: Any = _absent
        self.call: Any = MethodType(type(module).forward, module)
        #: Set by `sources.py`: what is opened of the forward, so that its operations are sites.
        self.opening: Opening | None = None
        #: Attributes of the module that were exchanged for the time of a run, and what they held before.
        self.held: dict[str, Any] = {}
        self.wrapper = wrap(self)
        # Libraries ask a forward for its parameters while it runs (`inspect.signature(model.forward)`).
        self.wrapper.__wrapped__ = self.call  # type: ignore[attr-defined]

    def put(self) -> None:
        """Put the wrapper on; the caller holds the lock."""
        self.saved = self.own.get("forward", _absent)
        self.aim()
        self.wrapper.__wrapped__ = self.forward()  # type: ignore[attr-defined]
        self.own["forward"] = self.wrapper

    def forward(self) -> Callable[..., Any]:
        """Return the forward that runs without us."""
        forward = self.own.get("forward", _absent)
        if forward is self.wrapper:
            forward = self.saved
        return MethodType(type(self.module).forward, self.module) if forward is _absent else forward

    def aim(self) -> None:
        """Set what the wrapper calls: the forward that would run without us, opened if its operations are asked for."""
        forward = self.forward()
        self.call = forward if self.opening is None else self.opening.aim(self, forward)

    def aim_again(self) -> None:
        """Set what the wrapper calls anew, if a run is on: the forward was opened meanwhile."""
        with _lock:
            if self.users:
                self.aim()

    def take_off(self) -> None:
        """Take the wrapper off; the caller holds the lock."""
        own = self.own
        own.update(self.held)
        self.held.clear()
        # Somebody may have put a forward of their own over ours during the run: then it stays theirs.
        if own.get("forward") is self.wrapper:
            if self.saved is _absent:
                del own["forward"]
            else:
                own["forward"] = self.saved
        self.saved = _absent


def wrap(tap: Tap) -> Callable[..., Any]:
    """Build the wrapper of one tap. It is on the hot path of every traced module."""
    whose, current = running.get, getcurrent

    def forward(*args: Any, **kwargs: Any) -> Any:
        run = whose(current())
        if run is None:
            return tap.call(*args, **kwargs)
        if tap in run.busy:
            return run.visit(tap, tap.call, args, kwargs)
        entered, left = run.entered, run.left
        entered[tap] = entered.get(tap, 0) + 1
        value = tap.call(*args, **kwargs)
        if tap in run.busy:
            value = run.leave(tap, value)
        left[tap] = left.get(tap, 0) + 1
        return value

    return forward


_taps: weakref.WeakValueDictionary[int, Tap] = weakref.WeakValueDictionary()


def tap_of(module: torch.nn.Module, path: str) -> Tap:
    """Return the tap of `module`, made on first use; whoever needs it must hold it."""
    # Keyed by id and weak in the tap: a tap holds its module, so the id cannot be taken by another one meanwhile,
    # and a model that nobody wraps any more is freed.
    tap = _taps.get(id(module))
    if tap is None:
        with _lock:
            tap = _taps.get(id(module))
            if tap is None:
                tap = _taps[id(module)] = Tap(module, path)
    return tap


def runs(module: torch.nn.Module) -> bool:
    """Say whether the module has a forward at all (containers such as ModuleList have none)."""
    return "forward" in module.__dict__ or type(module).forward is not torch.nn.Module.forward


class Rigging:
    """The taps of one tree of modules, collected once and put on for every run."""

    __slots__ = ("extras", "members", "path", "root", "taps")

    def __init__(self, root: torch.nn.Module, path: str, extras: dict[str, torch.nn.Module] | None = None) -> None:
        self.root = root
        self.path = path
        self.extras = extras or {}
        self.collect()

    def collect(self) -> None:
        """Walk the tree again: modules may have been replaced since."""
        named = [*_named(self.root, self.path)]
        for name, extra in self.extras.items():
            named += _named(extra, f"{self.path}.{name}")
        self.taps = [tap_of(module, path) for path, module in named if runs(module)]
        self.members: frozenset[Place] = frozenset(self.taps)

    def has(self, place: Place) -> bool:
        """Say whether a place lies in this tree."""
        return place.owner in self.members or self._joined(place.owner)

    def _joined(self, owner: Place) -> bool:
        # A module that is new in the tree is seen when it is first asked for: looking at every run would cost more.
        if isinstance(owner, Tap) and any(module is owner.module for module in self.root.modules()):
            self.collect()
            return owner in self.members
        return False

    def put(self) -> list[Tap]:
        """Put every tap on and return them, to be taken off by `take_off`."""
        put(self.taps)
        return self.taps


def put(taps: list[Tap]) -> None:
    """Put taps on: all of them, or none if one cannot be."""
    with _lock:
        for count, tap in enumerate(taps):
            if tap.users:
                tap.users += 1
                continue
            own = tap.own
            # Almost always nobody has put a forward there or opened it, and then one dict write is all.
            if "forward" in own or tap.opening is not None or tap.call.__func__ is not type(tap.module).forward:
                try:
                    tap.put()
                except BaseException:
                    _take_off(taps[:count])
                    raise
            else:
                own["forward"] = tap.wrapper
            tap.users = 1


def take_off(taps: list[Tap]) -> None:
    """Take taps off that `put` has put on."""
    with _lock:
        _take_off(taps)


def _take_off(taps: list[Tap]) -> None:
    for tap in taps:
        tap.users -= 1
        if tap.users:
            continue
        own = tap.own
        if tap.saved is _absent and not tap.held and own.get("forward") is tap.wrapper:
            del own["forward"]
        else:
            tap.take_off()


def _named(root: torch.nn.Module, path: str) -> Iterator[tuple[str, torch.nn.Module]]:
    for name, module in root.named_modules():
        yield (f"{path}.{name}" if name else path), module
