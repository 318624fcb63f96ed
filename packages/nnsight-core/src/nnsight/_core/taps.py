"""What is put on a module so that it stops at its sites, and taken off again when the run ends.

A module that is already running takes PyTorch's fast path, where a hook that is added late is never called. So what
stops a module gets there before the module starts: a thin wrapper as its instance-level `forward`, one dict write,
prebuilt. The wrapper counts visits and looks whether anybody waits there; all else is in `interleaver.py`. Which modules
are tapped, and when wrappers come off again, is `rigging.py`: between runs a model is exactly what it was. An
instance-level `forward` that was there first is called by ours and put back.
"""

from __future__ import annotations

import copy
import functools
import threading
import weakref
from collections.abc import Callable
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

    __slots__ = ("call", "held", "module", "opening", "own", "provided", "saved", "wrapper")

    def __init__(self, module: torch.nn.Module, path: str) -> None:
        super().__init__(path)
        self.module = module
        self.own: dict[str, Any] = module.__dict__
        #: Places of values that a family provides for this module, by name.
        self.provided: dict[str, Place] = {}
        #: The forward that was put on the instance before ours, while ours lies over it.
        self.saved: Any = _absent
        #: Attributes of the module that are exchanged for the time of a run, and what they held before.
        self.held: dict[str, Any] = {}
        #: Set by `sources.py`: what is opened of the forward, so that its operations are sites.
        self.opening: Opening | None = None
        #: What the wrapper calls.
        self.call: Any = plain_forward(module)
        self.wrapper = Wrapper(_pass, self)
        # Libraries ask a forward for its parameters while it runs (`inspect.signature(model.forward)`).
        self.wrapper.__wrapped__ = self.call

    def forward(self) -> Callable[..., Any]:
        """Return the forward that runs without us."""
        forward = self.own.get("forward", _absent)
        if forward is self.wrapper:
            forward = self.saved
        found: Callable[..., Any] = plain_forward(self.module) if forward is _absent else forward
        return found

    def aim(self) -> None:
        """Set what the wrapper calls: the forward that would run without us, opened if its operations are asked for."""
        forward = self.forward()
        self.call = forward if self.opening is None else self.opening.aim(self, forward)

    def aim_now(self) -> None:
        """Set what the wrapper calls anew, now that the forward was opened; one on the instance is aimed at in a run."""
        if self.saved is not _absent or "forward" not in self.own or self.own["forward"] is self.wrapper:
            self.aim()

    def is_covering(self) -> bool:
        """Say whether there is anything to put back when the wrapper is taken off."""
        return self.saved is not _absent or bool(self.held)

    def cover(self) -> None:
        """Put the wrapper over a forward that somebody put on the instance."""
        self.saved = self.own["forward"]
        try:
            self.aim()
        except BaseException:
            self.saved = _absent
            raise
        self.wrapper.__wrapped__ = self.saved
        self.own["forward"] = self.wrapper

    def uncover(self) -> None:
        """Put back what `cover` found."""
        own = self.own
        own.update(self.held)
        self.held.clear()
        # Somebody may have put a forward of their own over ours during the run: then it stays theirs.
        if own.get("forward") is self.wrapper:
            own["forward"] = self.saved
        self.saved = _absent
        # What was put on the instance may be gone by the next run; where it is not, `cover` aims at it.
        plain = plain_forward(self.module)
        self.call = plain if self.opening is None else self.opening.through_or_plain(plain)
        self.wrapper.__wrapped__ = plain


def plain_forward(module: torch.nn.Module) -> Any:
    """Return the forward that a module has from its class."""
    if isinstance(module, torch.jit.ScriptModule):
        return module.forward  # a descriptor of TorchScript's own, which the class cannot be asked for
    return MethodType(type(module).forward, module)


class Wrapper(functools.partial[Any]):
    """The wrapper of one tap, as the instance-level `forward` of its module.

    A module that is copied or pickled while a run is on takes its own forward along, and nothing of ours.
    """

    __wrapped__: Callable[..., Any]

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        (tap,) = self.args
        if tap.saved is not _absent:
            return copy.deepcopy(tap.saved, memo)
        return plain_forward(memo.get(id(tap.module), tap.module))

    def __reduce__(self) -> Any:
        (tap,) = self.args
        if tap.saved is not _absent:
            return (_itself, (tap.saved,))
        return (plain_forward, (tap.module,))


def _itself(value: Any) -> Any:
    return value


def _pass(tap: Tap, /, *args: Any, **kwargs: Any) -> Any:
    # The hot path of every traced module.
    run = running.get(getcurrent())
    if run is None:
        return tap.call(*args, **kwargs)
    if tap in run.at_input:
        return run.visit(tap, tap.call, args, kwargs)
    entered, left = run.entered, run.left
    visit = entered.get(tap, 0)
    entered[tap] = visit + 1
    value = tap.call(*args, **kwargs)
    if tap in run.at_output:
        value = run.leave(tap, value, visit)
    left[tap] = left.get(tap, 0) + 1
    return value


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
