"""`NNsight`: the root of a tree of envoys, which wraps a module and holds what belongs to the whole of it.

Families subclass it; what they override is `Batchable` (how inputs become a call) and a few methods below (how the model
is made ready, what a method of theirs calls, which module's visits are steps).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from .active import members
from .batching import Batchable
from .classes import EnvoyClasses, without_collisions
from .edit import Edits
from .envoy import Envoy
from .naming import Naming
from .sharding import Sharding
from .trace import Tracer
from .tree import Node


class NNsight(Envoy, Batchable):
    """Wrap a `torch.nn.Module`, so that traces can read and change what happens inside.

    The module stays as it is and can be used as before; several wrappers of one module do not disturb each other.

    Args:
        module: the module.
        rename: other names for submodules: `{"mlp": "feedforward"}` anywhere, `{"transformer.h": "layers"}` along a path,
            `{".transformer": ["model", "backbone"]}` at the root only, `{SomeClass: "name"}` by type, `*` for one part.
        envoys: the class of the envoys, or a mapping from module types or path suffixes to classes.

    Example::

        model = NNsight(torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Linear(8, 2)))
        with model.trace(torch.rand(3, 4)):
            hidden = model[0].output
    """

    #: The path of the root, with which all paths begin.
    _root_path = "model"

    def __init__(
        self,
        module: torch.nn.Module,
        *,
        rename: Mapping[str | type, str | Sequence[str]] | None = None,
        envoys: EnvoyClasses = None,
    ) -> None:
        if not isinstance(module, torch.nn.Module):
            raise TypeError(
                f"NNsight wraps a torch.nn.Module, not {type(module).__name__}"
                + (": it was given a wrapped model, whose module is `._module`." if isinstance(module, Node) else ".")
            )
        super().__init__(module, self._root_path)
        own = self.__dict__
        own["_names"] = Naming(rename, reserved=_reserved())
        own["_classes"] = envoys
        own["_default_class"] = Envoy
        own["_edits"] = Edits()
        own["_sharding"] = self._shard(module)
        own["_names"].check(module)
        self._mirror(module)

    def _shard(self, module: torch.nn.Module) -> Sharding | None:
        """Say how the module's values lie on several processes; families that can be spread override it."""
        return None

    def _mirror(self, module: torch.nn.Module) -> None:
        """Be a root whose class lets the module's submodules keep their names."""
        cls = type(self)
        fitting = without_collisions(cls.__dict__.get("_without", cls), module)
        if fitting is not cls:
            object.__setattr__(self, "__class__", fitting)

    def _attach(self, name: str, module: torch.nn.Module, stepless: bool = False) -> None:
        """Let a module that the model does not hold be part of its tree, for values that a family passes through it.

        Args:
            name: its name below the root.
            module: the module; the family calls it during a run.
            stepless: it is called once, after the last step.
        """
        own = self.__dict__
        own["_extras"][name] = module
        own["_rigging"] = None
        node = self._child(name, module)
        node._place().stepless = stepless

    def _rebind(self, module: torch.nn.Module) -> None:
        super()._rebind(module)
        self.__dict__["_sharding"] = self._shard(module)
        self._mirror(module)

    def _derive(self) -> Any:
        """Return a new reference to the same module, with the same edits and a list of its own for more."""
        other = type(self).__new__(type(self))
        other.__dict__.update(self.__dict__)
        own = other.__dict__
        own["_root"] = other
        own["_children"] = {}
        own["_extras"] = dict(own["_extras"])
        own["_edits"] = Edits(self.__dict__["_edits"])
        return other

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.__dict__["_sharding"] = self._shard(self._module)

    def __copy__(self) -> Any:
        return self._derive()

    def _family(self) -> Batchable:
        return self

    def _tracer(
        self, node: Any, inputs: tuple[Any, ...], kwargs: dict[str, Any], method: str | Callable[..., Any] | None
    ) -> Tracer:
        """Return the context of a trace that came from elsewhere; families with a tracer of their own override it."""
        return Tracer(node, node._family(), inputs, kwargs, method)

    def _ready(self) -> None:
        """Make the model ready for a real run; families that load lazily load here."""

    def _settle(self) -> None:
        """Find out now what the first runs would find out; families whose runs keep what they learn override it.

        A server calls it once: what runs there are copies of a process, and what a copy learns is gone with it.
        """

    def _known_as(self) -> str:
        """Say what a server calls this model; families that load by name override it. Empty where nothing says it."""
        return ""

    def _on_fakes(self) -> AbstractContextManager[Any]:
        """Prepare the model for a scan, and undo it at its end; families whose forward needs numbers override it."""
        return nullcontext()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the model: inside a trace by hand, with values of the trace; outside one with its edits, if it has any."""
        if members():
            return super().__call__(*args, **kwargs)
        self._ready()
        if self.__dict__["_edits"]:
            return Envoy._run_now(self, None, args, kwargs)
        return super().__call__(*args, **kwargs)


def _reserved() -> frozenset[str]:
    return frozenset(name for name in dir(Envoy) if not name.startswith("_"))
