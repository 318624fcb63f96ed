"""What objects of nnsight 0.8 become here, as they are read.

The one idea: a pickle makes an object empty, lets others refer to it, and fills it at last. At that moment an envoy of
theirs becomes one of ours, and their tracer one of ours, so nothing has to be replaced afterwards, wherever it is held.
"""

from __future__ import annotations

from collections.abc import Callable
from types import MethodType
from typing import TYPE_CHECKING, Any

import torch

from nnsight.plugin import Envoy, Tracer, WireError, become, store_edit

if TYPE_CHECKING:
    from .reader import Reader

#: What their tracer calls for a plain forward.
FORWARD = ("_call", "__call__")


class Theirs:
    """Whatever is only looked at: the place of a block, the worker that was to run an edit."""


class Absent:
    """Something that belongs to their model and that ours does not have."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise WireError(f"`{name}` was asked of the model's {self._name.lower()}, which this server does not have")


class EnvoyOfTheirs:
    """An envoy that is not filled yet; a class of this is made for each request, which knows its reader."""

    reader: Reader

    def __setstate__(self, state: dict[str, Any]) -> None:
        reader, path = self.reader, state["path"]
        if state.get("_envoys") is not None:
            raise WireError(
                "the model was wrapped with classes of envoys of its own (`envoys=`), which are not sent to this server"
            )
        base = reader.base(state.get("_rename"))
        above, _, below = str(path).partition(".")
        if above != reader.model.path:
            raise WireError(f"`{path}` is no part of the model here")
        edits = state.get("_edits") or ()
        if edits and below:
            raise WireError(f"`{path}` has edits of its own; only those of the whole model are replayed on this server")
        if below and reader.is_absent(path):
            return
        become(self, reader.envoy(base, below) if below else base)
        own = self.__dict__
        for alias in state.get("_aliases") or ():
            if isinstance(state.get(alias), (Envoy, EnvoyOfTheirs)) and not hasattr(self, alias):
                own[alias] = state[alias]
        for edit in edits:
            # Without a loop over steps, one is replayed in the first step only, over there.
            block = reader.block(edit.reduced, f"<edit {len(own['_edits']) + 1}>", "<edit>")
            store_edit(self, block, every_step=False)


class TraceOfTheirs(Tracer):
    """Their tracer: ours, with what it was opened with."""

    info: Theirs

    def __setstate__(self, state: dict[str, Any]) -> None:
        envoy = state["envoy"]
        if not isinstance(envoy, Envoy):
            raise WireError("the block traces something that is no part of the model here")
        super().__init__(envoy, envoy._family(), tuple(state["args"]), dict(state["kwargs"]), _method(state["fn"]))
        self.info = state["info"]
        self.envoy = envoy

    def cache(  # type: ignore[override]  # it is called as over there
        self,
        modules: Any = None,
        device: Any = "cpu",
        dtype: torch.dtype | None = None,
        detach: bool = True,
        include_output: bool = True,
        include_inputs: bool = False,
        non_blocking: bool = False,
    ) -> Any:
        """Keep what modules give and take from here on, on the CPU if nothing is said."""
        return super().cache(
            modules,
            device=device,
            dtype=dtype,
            detach=detach,
            include_output=include_output,
            include_inputs=include_inputs,
        )


def method_of_theirs(name: str) -> Callable[..., Any]:
    """Return what stands for a method of their envoys: the method of ours that is called so."""

    def method(envoy: Any, *args: Any, **kwargs: Any) -> Any:
        return getattr(envoy, name)(*args, **kwargs)

    method.__name__ = name
    return method


def getattr_of(thing: Any, name: str, *default: Any) -> Any:
    """Find a method of theirs, or, of everything else, what is there."""
    if isinstance(thing, Envoy) and name in FORWARD:
        return MethodType(method_of_theirs(name), thing)
    return getattr(thing, name, *default)


def _method(fn: Any) -> Any:
    """Return what a trace of ours is to call for what theirs called."""
    # The text of a method may have come along; it is the name that counts.
    name = fn.__name__ if isinstance(fn, MethodType) and isinstance(fn.__self__, Envoy) else fn
    if name == "pipe":
        raise WireError(
            "`model.pipe` does not run on this server; generate (`model.generate`), and decode what comes back"
        )
    return None if name in FORWARD else name
