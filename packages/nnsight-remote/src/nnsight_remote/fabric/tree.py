"""The tree of envoys of a model, as nnsight 0.8 would send its own.

The one idea: there the whole tree travels, each envoy with its module by name, so it is built here from the modules and
kept by path: whichever way a block came by an envoy, it is the same object over there.
"""

from __future__ import annotations

from typing import Any

import torch

from nnsight.plugin import Envoy, WireError, aliases_of

from . import stand_ins
from .stand_ins import Known, Paths, Thing

#: What is served at every envoy over there: a submodule of such a name has another attribute.
SERVED = frozenset(("input", "inputs", "output", "source", "device", "devices", "iter", "parent", "root"))


class Trees:
    """The trees of one payload: that of the model, and of each reference to it that was edited."""

    #: What the root of a tree keeps its edits under.
    _kept = "_edits"

    def __init__(self, model: Any, facts: dict[str, Any], paths: Paths) -> None:
        self._model = model.root
        self._facts = facts
        self._paths = paths
        self._interleaver = Known("Interleaver")
        self._roots: dict[int, tuple[Any, dict[str, Thing]]] = {}
        self._modules: dict[str, Known] = {}
        #: The modules of the model, by identity: the path of each.
        self.paths: dict[int, str] = {}
        #: Its parameters and buffers, by identity: the module that holds each, and its name there.
        self.tensors: dict[int, tuple[torch.nn.Module, str]] = {}
        self._note(self._model._module, self._model.path)
        extra = getattr(self._model, "generator", None)
        if isinstance(extra, Envoy):
            self._note(extra._module, extra.path)

    def thing(self, node: Any) -> Thing:
        """Return what stands for an envoy."""
        root = node.root
        if root._module is not self._model._module:
            raise WireError(
                "it belongs to another model than the one that runs; run a block on that model, and send what it gives"
            )
        if id(root) not in self._roots:
            self._roots[id(root)] = (root, {})
            self._plant(root)
        things = self._roots[id(root)][1]
        found = things.get(node.path) or things.get(self.paths.get(id(node._module), ""))
        if found is None:
            raise WireError(f"`{node.path}` is a part of the model that nnsight {self._paths.version} does not know")
        return found

    def edits(self, node: Any) -> list[Any]:
        """Return the list of edits that stands for those of an envoy's root, to be filled."""
        found: list[Any] = self._roots[id(node.root)][1][node.root.path].state[self._kept]
        return found

    @property
    def roots(self) -> list[Any]:
        """The roots that were referred to so far."""
        return [root for root, _ in self._roots.values()]

    def _note(self, module: torch.nn.Module, path: str) -> None:
        if id(module) in self.paths:
            return
        self.paths[id(module)] = path
        for held in (module._parameters, module._buffers):
            for name, tensor in held.items():
                if tensor is not None:
                    self.tensors.setdefault(id(tensor), (module, name))
        for name, child in module._modules.items():
            if child is not None:
                self._note(child, f"{path}.{name}")

    def _plant(self, root: Any) -> None:
        things = self._roots[id(root)][1]
        model = self._envoy(root._module, root.path, stand_ins.MODEL, things)
        model.state.update(self._facts, dispatched=True, args=(), kwargs={})
        generator = getattr(root, "generator", None)
        if isinstance(generator, Envoy):
            child = self._envoy(generator._module, generator.path, stand_ins.GENERATOR, things)
            model.state["_children"].append(child)
            model.state["generator"] = child
        for node in [root, *root.modules()]:
            for alias, path in aliases_of(node).items():
                above = things.get(node.path)
                meant = things.get(f"{node.path}.{path}")
                if above is not None and meant is not None and alias not in above.state:
                    above.state[alias] = meant
                    above.state["_aliases"][alias] = path

    def _envoy(self, module: torch.nn.Module, path: str, cls: str, things: dict[str, Thing]) -> Thing:
        made = things[path] = self._paths.thing(cls)
        known = self._modules.setdefault(path, Known(f"Module:{path}"))
        children: dict[str, Thing] = {}
        own: list[Thing] = []
        mounted: dict[str, Thing] = {}
        aliases: dict[str, str] = {}
        for name, child in module._modules.items():
            if child is None:
                continue
            first = self.paths[id(child)]
            attribute = f"E_{name}" if name in SERVED else name
            if first in things:  # it is held twice; its first place is the one that it is known by
                children[name] = mounted[attribute] = things[first]
                aliases[attribute] = first
                continue
            children[name] = mounted[attribute] = self._envoy(child, f"{path}.{name}", stand_ins.ENVOY, things)
            own.append(children[name])
            if attribute != name:
                aliases[attribute] = name
        made.state.update(
            _module=known,
            path=path,
            interleaver=self._interleaver,
            _edits=[],
            _rename=None,
            _aliases=aliases,
            _envoys=None,
            _children=own,
            _child_map=children,
            **mounted,
        )
        return made
