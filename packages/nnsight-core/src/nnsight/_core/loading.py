"""Models whose weights come when they are needed: the tree is there at once, the numbers at the first run.

`Loadable` is what a family implements: build the modules without weights, and load them. `LazyModel` does the rest, once
and for all references to a model: a run loads it, envoys that the user holds stay valid, and a load that fails changes
nothing and can be tried again.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch

from .classes import EnvoyClasses
from .model import NNsight

L = TypeVar("L", bound="LazyModel")


@runtime_checkable
class Loadable(Protocol):
    """Where a model comes from."""

    def build(self) -> torch.nn.Module:
        """Make the modules without their weights, on the meta device: this takes no memory and reads no weights."""

    def load(self) -> torch.nn.Module:
        """Make the modules with their weights, named as `build` names them."""


class LazyModel(NNsight):
    """A model that loads its weights at its first run.

    Until then its tree can be explored and scanned.

    Args:
        source: a module that is loaded already, or what loads it.
        dispatch: load now.
        rename, envoys: see `NNsight`.
    """

    def __init__(
        self,
        source: torch.nn.Module | Loadable,
        *,
        dispatch: bool = False,
        rename: Mapping[str | type, str | Sequence[str]] | None = None,
        envoys: EnvoyClasses = None,
    ) -> None:
        loaded = dispatch or isinstance(source, torch.nn.Module)
        module = source if isinstance(source, torch.nn.Module) else source.load() if dispatch else source.build()
        super().__init__(module, rename=rename, envoys=envoys)
        self.__dict__["_weights"] = Weights(None if loaded else source)  # type: ignore[arg-type]  # a module is loaded
        self.__dict__["_weights"].references.add(self)

    @property
    def dispatched(self) -> bool:
        """Whether the weights are there."""
        return self.__dict__["_weights"].source is None

    def dispatch(self: L) -> L:
        """Load the weights, if they are not there yet. Envoys that you hold stay valid."""
        self.__dict__["_weights"].load()
        return self

    def _ready(self) -> None:
        self.dispatch()

    def to(self: L, *args: Any, **kwargs: Any) -> L:
        """Load the weights if need be, and move or cast the model."""
        self.dispatch()
        return super().to(*args, **kwargs)

    def _rebuilt(self) -> None:
        """Mirror the module anew, in every reference to it: parts of it were exchanged where they are."""
        self._exchange(self._module)

    def _exchange(self, module: torch.nn.Module) -> None:
        """Mirror a module, the same or another, in every reference to this model."""
        self.__dict__["_weights"].exchange(module)

    def _derive(self) -> Any:
        other = super()._derive()
        self.__dict__["_weights"].references.add(other)
        return other

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.__dict__["_weights"].references.add(self)


class Weights:
    """The weights of a model, which all references to it share: loaded once, and for all of them.

    Attributes:
        source: what loads them; None once they are there.
        references: the models that have them.
    """

    def __init__(self, source: Loadable | None) -> None:
        self.source = source
        self.references: weakref.WeakSet[LazyModel] = weakref.WeakSet()
        self._lock = threading.RLock()  # two threads may run a model for the first time

    def load(self) -> None:
        """Load them, if they are not there."""
        if self.source is None:
            return
        with self._lock:
            if self.source is not None:
                module = self.source.load()
                self.exchange(module)
                self.source = None

    def exchange(self, module: torch.nn.Module) -> None:
        """Let all references mirror a module."""
        for model in list(self.references):
            model._rebind(module)

    def __getstate__(self) -> dict[str, Any]:
        return {"source": self.source}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["source"])  # type: ignore[misc]  # as new, with nothing that refers to it
