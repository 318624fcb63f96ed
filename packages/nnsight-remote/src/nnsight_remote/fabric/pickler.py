"""`Pickler`: writes a payload that nnsight 0.8 reads.

The one idea: cloudpickle does what it does over there, and is told about four kinds of things: what stands for an object of
theirs, what the model has by name, what is the user's own and so travels by text, and what is ours and cannot travel.
"""

from __future__ import annotations

import io
import operator
import pkgutil
import sys
import threading
import types
from typing import Any

import cloudpickle
import torch

from nnsight.plugin import Envoy, WireError, is_own

from . import functions
from .stand_ins import Known, Method, Path, Paths, Thing
from .tree import Trees

_PROTOCOL = 4
FIRST = operator.itemgetter(0)
_OURS = frozenset(("nnsight", "nnsight_hf", "nnsight_vllm", "nnsight_diffusers", "nnsight_remote"))
# Which modules cloudpickle takes by value is a setting of the process.
_registering = threading.Lock()


class Pickler(cloudpickle.CloudPickler):
    """Writes one payload.

    Args:
        file: where to.
        trees: the envoys of the model.
        paths: the names over there.
        known: what the server has, by the identity of what stands for it here.
    """

    def __init__(self, file: io.BytesIO, trees: Trees, paths: Paths, known: dict[int, Known]) -> None:
        super().__init__(file, protocol=_PROTOCOL)
        self._trees = trees
        self._paths = paths
        self._known = known
        self._registered: list[types.ModuleType] = []

    def dump(self, thing: Any) -> None:
        """Write something; the user's own modules go by value meanwhile."""
        with _registering:
            try:
                super().dump(thing)
            finally:
                while self._registered:
                    cloudpickle.unregister_pickle_by_value(self._registered.pop())

    def persistent_id(self, thing: Any) -> str | None:
        """Return the name of what the server has."""
        if type(thing) is Known:
            return thing.name
        if isinstance(thing, torch.nn.Module):
            path = self._trees.paths.get(id(thing))
            return None if path is None else f"Module:{path}"
        known = self._known.get(id(thing))
        return None if known is None else known.name

    def reducer_override(self, thing: Any) -> Any:
        """Say how something is made over there."""
        way = _WAYS.get(type(thing))
        if way is not None:
            return getattr(self, way)(thing)
        if isinstance(thing, Envoy):
            # Two envoys here may be one there: what stands for both is written once.
            return FIRST, ((self._trees.thing(thing),),)
        if isinstance(thing, torch.Tensor):
            return self._tensor(thing)
        if isinstance(thing, type):
            return self._class(thing)
        if _package(type(thing)) in _OURS:
            raise WireError(
                f"it is a {type(thing).__name__} of ours, which nnsight {self._paths.version} does not have"
            )
        return super().reducer_override(thing)

    def _path(self, path: Path) -> Any:
        return pkgutil.resolve_name, (path.path,)

    def _thing(self, thing: Thing) -> Any:
        return object.__new__, (thing.path,), thing.state

    def _method(self, method: Method) -> Any:
        return getattr, (method.thing, method.name)

    def _tensor(self, tensor: torch.Tensor) -> Any:
        held = self._trees.tensors.get(id(tensor))
        if held is not None:
            return getattr, held
        if tensor.is_meta:
            raise WireError("the tensor has no numbers here; read it inside the block, where the weights are")
        if tensor.device.type != "cpu":
            return tensor.detach().cpu().requires_grad_(tensor.requires_grad).__reduce_ex__(_PROTOCOL)
        return NotImplemented

    def _function(self, function: types.FunctionType) -> Any:
        same = self._paths.same.get(f"{function.__module__}:{function.__qualname__}")
        if same is not None:
            return self._path(self._paths[same])
        if function.__module__ is not None and function.__module__.partition(".")[0] in _OURS:
            raise WireError(
                f"`{function.__qualname__}` is a function of ours, which nnsight {self._paths.version} does not have"
            )
        self._by_value(function.__module__)
        if not is_own(function.__module__):
            return super().reducer_override(function)
        return self._reduced(function) or super().reducer_override(function)

    def _reduced(self, function: types.FunctionType) -> Any:
        return functions.reduce(function, self._paths)

    def _class(self, cls: type) -> Any:
        same = self._paths.same.get(f"{cls.__module__}:{cls.__qualname__}")
        if same is not None:
            return self._path(self._paths[same])
        if _package(cls) in _OURS:
            raise WireError(
                f"`{cls.__qualname__}` is a class of ours, which nnsight {self._paths.version} does not have"
            )
        self._by_value(cls.__module__)
        return super().reducer_override(cls)

    def _module(self, module: types.ModuleType) -> Any:
        name = module.__name__
        if name.partition(".")[0] in _OURS and name != "nnsight":
            raise WireError(f"the module {name} is ours, and nnsight {self._paths.version} does not have it")
        self._by_value(name)
        return NotImplemented

    def _by_value(self, name: str | None) -> None:
        """Let what stands in a module of the user's travel, not only its name."""
        module = sys.modules.get(name or "__main__")
        if module is None or name in (None, "__main__") or not is_own(name):
            return
        if name not in cloudpickle.list_registry_pickle_by_value():
            cloudpickle.register_pickle_by_value(module)
            self._registered.append(module)


def _package(cls: type) -> str:
    return str(cls.__module__).partition(".")[0]


#: The method that writes each kind of thing.
_WAYS: dict[type, str] = {
    Path: "_path",
    Thing: "_thing",
    Method: "_method",
    types.FunctionType: "_function",
    types.ModuleType: "_module",
}
