"""What a family calls while its model runs: values from outside the modules, and the end of the steps."""

from __future__ import annotations

from typing import TypeVar

from .envoy import Envoy
from .served import eproperty
from .taps import running
from .turns import getcurrent

V = TypeVar("V")


def provide(envoy: Envoy, name: str, value: V) -> V:
    """Offer a value to the bodies of the run that this code is part of, and return what they made of it.

    Args:
        envoy: the envoy whose class has an `eproperty(provided=True)` called `name`.
        name: the name of that property.
        value: the value; returned as it is where there is no run.
    """
    run = running.get(getcurrent())
    if run is None:
        return value
    prop = getattr(type(envoy), name, None)
    if not isinstance(prop, eproperty) or not prop.provided:
        raise AttributeError(f"{type(envoy).__name__} has no eproperty(provided=True) called {name!r}")
    offered: V = run.provide(prop.place(envoy), value)
    return offered


def end_steps() -> None:
    """Say that no further step will begin in the run that this code is part of: loops over steps end here."""
    run = running.get(getcurrent())
    if run is not None:
        run.end_steps()
