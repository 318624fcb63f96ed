"""The import paths of earlier nnsight releases (0.6 and 0.7) that libraries in the wild use, and what is there now.

The one idea: one table, from old module and name to "module:attribute", and import hooks that make a module out of
each entry when it is imported. Nothing is imported before; the names are our own objects, not copies. Left out on
purpose are paths whose names do the work of a server (`nnsight.schema.*`, `Batcher`, `wrap_exception`) or belong
to the proxies of 0.4 and before (`nnsight.envoy`, `nnsight.tracing.*`): they would import and then not work.
Paths that plugins bring (`nnsight.modeling.language`) are asked of `plugins.py` when nothing else has them.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

TABLE: dict[str, dict[str, str]] = {
    # Packages: they hold the modules below, and those that plugins add.
    "nnsight.intervention": {},
    "nnsight.intervention.tracing": {},
    "nnsight.modeling": {"NNsight": "nnsight:NNsight"},
    # nnterp, circuit-tracer, dictionary-learning and nearly everybody who subclasses or annotates.
    "nnsight.intervention.envoy": {"Envoy": "nnsight:Envoy"},
    "nnsight.modeling.base": {"NNsight": "nnsight:NNsight"},
    # nnterp annotates with Object: what a block reads is the tensor itself. Globals.cache.clear() is in the guide.
    "nnsight.intervention.tracing.globals": {
        "Object": "torch:Tensor",
        "Globals": "nnsight._core.legacy:Globals",
        "save": "nnsight:save",
    },
    # circuit-tracer annotates with Barrier; others annotate or check for the tracer and the cache.
    "nnsight.intervention.tracing.tracer": {
        "Tracer": "nnsight._core.trace:Tracer",
        "InterleavingTracer": "nnsight._core.trace:Tracer",
        "Barrier": "nnsight._core.barrier:Barrier",
        "Cache": "nnsight._core.cache:Cache",
    },
    "nnsight.intervention.tracing.base": {"Tracer": "nnsight._core.trace:Tracer"},
    # Authors of envoys: eproperty was defined here in 0.7.
    "nnsight.intervention.interleaver": {
        "Interleaver": "nnsight._core.interleaver:Interleaver",
        "Mediator": "nnsight._core.mediator:Mediator",
        "OutOfOrderError": "nnsight._core.errors:OutOfOrderError",
        "eproperty": "nnsight._core.served:eproperty",
    },
    # Some annotate with these.
    "nnsight.intervention.source": {
        "OperationEnvoy": "nnsight._core.sources:OperationEnvoy",
        "SourceEnvoy": "nnsight._core.sources:Source",
    },
    # Authors of model families subclass it.
    "nnsight.intervention.batching": {"Batchable": "nnsight._core.batching:Batchable"},
    "nnsight.intervention.backends": {"Backend": "nnsight._core.backend:Backend"},
    "nnsight.intervention.backends.base": {"Backend": "nnsight._core.backend:Backend"},
    # Libraries of sparse autoencoders and circuits: a path to a submodule, and a module that passes its input on.
    "nnsight.util": {
        "fetch_attr": "nnsight._core.legacy:fetch_attr",
        "WrapperModule": "nnsight._core.legacy:WrapperModule",
    },
}
_PACKAGES = {"nnsight.modeling"} | {path.rpartition(".")[0] for path in TABLE} - {"nnsight"}


def install() -> None:
    """Make the old paths importable; once is enough, and again does nothing."""
    if not any(isinstance(finder, _OldPaths) for finder in sys.meta_path):
        sys.meta_path.insert(0, _OldPaths())
        sys.meta_path.append(_PluginPaths())


def resolve(target: str) -> Any:
    """Load what "module:attribute", or "module" alone, stands for."""
    module, _, attributes = target.partition(":")
    thing: Any = importlib.import_module(module)
    for attribute in attributes.split(".") if attributes else ():
        thing = getattr(thing, attribute)
    return thing


class _OldPaths(MetaPathFinder):
    """Comes first: finds what is in the table, and what lies inside a module that stands in for an old path."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if not name.startswith("nnsight."):
            return None
        if name in TABLE:
            return ModuleSpec(name, _OldModule(), origin="nnsight._core.aliases", is_package=name in _PACKAGES)
        parent, _, child = name.rpartition(".")
        real = sys.modules[parent].__name__ if parent in sys.modules else parent
        if real == parent or importlib.util.find_spec(f"{real}.{child}") is None:
            return None
        # Python would find the file through the package's path, and run it a second time under the old name.
        return ModuleSpec(name, _StandIn(lambda: importlib.import_module(f"{real}.{child}")))


class _PluginPaths(MetaPathFinder):
    """Comes last: asks the plugins for a path under `nnsight` that nothing else has."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if not name.startswith("nnsight.") or name.rpartition(".")[2].startswith("_"):
            return None
        from . import plugins

        if plugins.knows("import_aliases", name):
            if name not in plugins.offered("import_aliases"):
                plugins.lookup("import_aliases", name)  # says which package is missing
            # A target with an attribute is a name of the package and no module.
            if ":" not in plugins.offered("import_aliases")[name]:
                return ModuleSpec(name, _StandIn(lambda: plugins.lookup("import_aliases", name)))
        # `from nnsight import NAME` comes here too, once the package has said that it has no such attribute.
        reason = plugins.suspicion(name)
        if reason:
            raise reason
        return None


class _OldModule(Loader):
    """Makes a module of a table's entry, whose names are loaded when they are first used."""

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        path = module.__name__
        names = TABLE[path]

        def load(name: str) -> Any:
            if name in names:
                value = resolve(names[name])
            elif _has_submodule(path, name):
                value = importlib.import_module(f"{path}.{name}")
            else:
                raise AttributeError(f"module {path!r} has no attribute {name!r}", name=name, obj=module)
            setattr(module, name, value)
            return value

        module.__doc__ = f"An import path of earlier releases; see nnsight._core.aliases. Names: {', '.join(names)}."
        vars(module).update(__getattr__=load, __dir__=lambda: [*vars(module), *names], __all__=list(names))


def _has_submodule(path: str, name: str) -> bool:
    if f"{path}.{name}" in TABLE:
        return True
    if path not in _PACKAGES or name.startswith("_"):
        return False
    from . import plugins

    return plugins.knows("import_aliases", f"{path}.{name}")


class _StandIn(Loader):
    """Puts a module that has another name of its own in an old path's place: there is one module, with two paths."""

    def __init__(self, load: Callable[[], ModuleType]) -> None:
        self._load = load

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        # relies on: the import system takes from sys.modules what is there after this call, Python 3.4 to 3.14
        sys.modules[module.__name__] = self._load()
