"""The tree of envoys of a model, as nnsight 0.7 would send its own.

The one idea: an envoy's children there are the envoys among its attributes, in their order, so that other names of theirs are
kept apart, as 0.7 keeps them.
"""

from __future__ import annotations

from typing import Any

import torch

from nnsight.plugin import Envoy, WireError, aliases_of

from ..stand_ins import Known, Thing
from ..tree import Trees
from . import stand_ins
from .padding import NAME, method_of

#: What an envoy over there has itself, so that no submodule of such a name can be reached.
_TAKEN = frozenset(
    ("all", "clear_edits", "cpu", "cuda", "device", "devices", "edit", "export_edits", "get", "import_edits", "input",
     "inputs", "interleave", "interleaving", "iter", "modules", "named_modules", "next", "output", "path", "scan", "session",
     "skip", "source", "to", "trace")
)  # fmt: skip


class OlderTrees(Trees):
    """The trees of one payload."""

    _kept = "_default_mediators"

    def _plant(self, root: Any) -> None:
        things = self._roots[id(root)][1]
        model = self._envoy(root._module, root.path, stand_ins.MODEL, things)
        model.state.update(self._facts, _model=model.state["_module"], dispatched=True, args=(), kwargs={})
        generator = getattr(root, "generator", None)
        if isinstance(generator, Envoy):
            child = self._envoy(generator._module, generator.path, stand_ins.ENVOY, things)
            path = f"{generator.path}.streamer"  # what a generation hands its tokens to
            child.state["streamer"] = things[path] = self._paths.thing(stand_ins.ENVOY)
            things[path].state.update(self._own(path))
            model.state["generator"] = child
        runs = method_of(root, model)
        if runs is not None:
            model.state[NAME] = runs
        for node in [root, *root.modules()]:
            thing = things.get(node.path)
            known = {name: path for name, path in aliases_of(node).items() if f"{node.path}.{path}" in things}
            if thing is not None and known:
                thing.state["_alias"] = self._paths.thing(
                    stand_ins.ALIASES, rename={}, alias_to_name=known, name_to_aliases={}, extras={}
                )

    def _envoy(self, module: torch.nn.Module, path: str, cls: str, things: dict[str, Thing]) -> Thing:
        made = things[path] = self._paths.thing(cls)
        made.state.update(self._own(path))
        for name, child in module._modules.items():
            if child is None:
                continue
            if name in _TAKEN:
                raise WireError(
                    f"`{path}` has a submodule called `{name}`, which nnsight 0.7 hides behind what it serves itself, so "
                    "this model does not run on a server of that time"
                )
            first = self.paths[id(child)]
            # One that is held twice is known by its first place.
            made.state[name] = things.get(first) or self._envoy(child, f"{path}.{name}", stand_ins.ENVOY, things)
        return made

    def _own(self, path: str) -> dict[str, Any]:
        known = self._modules.setdefault(path, Known(f"Module:{path}"))
        return {
            "path": path,
            "_module": known,
            "interleaver": self._interleaver,
            "_default_mediators": [],
            "_envoys": None,
            "_alias": None,
            "_source": None,
        }
