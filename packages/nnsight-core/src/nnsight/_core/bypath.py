"""What belongs to a model, on its way: by path.

The one idea: a model is at both ends. An envoy is a path below a root; a root that was edited or renamed is made again of
the model over there, its edits being blocks like any other. Modules, operations, weights, views of weights and what a
family names (`travels_by_reference`) are looked up over there as well. Of the values that know no model, `wire` takes care.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch

from . import plugins
from .edit import Edit, Edits
from .errors import WireError
from .naming import Naming
from .sources import OperationEnvoy, Source
from .tree import Node
from .wire import Decoder, Encoder, kinds, objects
from .wire import tensors as _tensors  # noqa: F401  # lets tensors travel
from .wire.format import Buffer
from .wire.kinds import makes

T = TypeVar("T")


class Sender:
    """Writes what belongs to a model by path.

    Args:
        root: the model.
        steps: what else is at both ends: the step for a thing, by its id.
    """

    def __init__(self, root: Node, steps: Mapping[int, list[Any]] | None = None) -> None:
        self.root = root
        self.steps = steps or {}
        self.encoder = Encoder([self.refer])
        self.encoder.kept["weight_of"] = self.weight_of
        self.encoder.kept["model_device"] = None
        self.roots: dict[int, int] = {}
        self._modules: dict[int, str] | None = None
        self._tensors: dict[int, str] | None = None
        self._storages: dict[int, str] | None = None
        self._references: dict[int, str] | None = None

    def refer(self, thing: Any) -> list[Any] | None:
        """Return the step for what the other end has, or None."""
        if id(thing) in self.steps:
            return self.steps[id(thing)]
        if isinstance(thing, Node):
            return ["envoy", self._root(thing._root), thing._relative()]
        if isinstance(thing, (Source, OperationEnvoy)):
            source = thing if isinstance(thing, Source) else thing._source
            node = source._node
            way = source._opening.path[len(node._path) + 1 :].split(".")
            return ["operation", self.encoder.value(node), way if thing is source else [*way, thing.name]]
        if isinstance(thing, torch.nn.Module):
            path = self._module_paths().get(id(thing))
            return None if path is None else ["module of", path]
        if isinstance(thing, torch.Tensor):
            self.encoder.kept["model_device"] = self.encoder.kept["model_device"] or self.root.device
            path = self._tensor_paths().get(id(thing)) if self._may_be_held(thing) else None
            return None if path is None else ["weight", path]
        if kinds.WRITERS.get(type(thing)) is not None or isinstance(thing, type):
            return None
        name = self._reference_names().get(id(thing))
        return None if name is None else ["reference", name]

    def _root(self, root: Node) -> int:
        number = self.roots.get(id(root))
        if number is not None:
            return number
        encoder = self.encoder
        if root._module is not self.root._module:
            raise encoder.refusal(
                "it belongs to another model than the one that runs",
                "run a block on that model, and send what it gives",
            )
        rename, classes = named(root)
        number = encoder.emit("root", encoder.value(dict(rename) or None), encoder.value(classes))
        self.roots[id(root)] = number
        for edit in root.__dict__["_edits"]:
            encoder.when_free(lambda edit=edit: self._edit(number, edit))  # type: ignore[misc]
        return number

    def _edit(self, root: int, edit: Edit) -> None:
        encoder = self.encoder
        with encoder.at(f"the edit {edit.name!r}"):
            encoder.emit("edit", root, encoder.value(edit.body), edit.edited._relative(), edit.name)

    def _module_paths(self) -> dict[int, str]:
        if self._modules is None:
            self._walk()
        return self._modules or {}

    def _tensor_paths(self) -> dict[int, str]:
        if self._tensors is None:
            self._walk()
        return self._tensors or {}

    def _may_be_held(self, tensor: torch.Tensor) -> bool:
        return tensor.is_meta or not self.root._is_hollow

    def _walk(self) -> None:
        # By hand, as this is most of the time that a short request takes.
        modules, tensors, storages = {}, {}, {}
        waiting = [("", self.root._module), *self.root.__dict__["_extras"].items()]
        while waiting:
            path, module = waiting.pop()
            if id(module) in modules:
                continue
            modules[id(module)] = path
            above = f"{path}." if path else ""
            for held in (module._parameters, module._buffers):
                for name, tensor in held.items():
                    if tensor is not None:
                        tensors[id(tensor)] = above + name
                        if type(tensor) in _PLAIN and tensor.layout is torch.strided:
                            storages[tensor.untyped_storage()._cdata] = above + name
            waiting += [(above + name, child) for name, child in module._modules.items() if child is not None]
        self._modules, self._tensors, self._storages = modules, tensors, storages

    def weight_of(self, tensor: torch.Tensor) -> str | None:
        """Return the path of the parameter or buffer whose numbers a tensor shows, if it shows any."""
        if not self._may_be_held(tensor):
            return None
        self._tensor_paths()
        assert self._storages is not None
        return self._storages.get(tensor.untyped_storage()._cdata)

    def _reference_names(self) -> dict[int, str]:
        if self._references is None:
            self._references = {}
            for name in plugins.offered("travels_by_reference"):
                thing = plugins.lookup("travels_by_reference", name)(self.root)
                if thing is not None:
                    self._references[id(thing)] = name
        return self._references


_PLAIN = (torch.Tensor, torch.nn.Parameter)


def _refuse_in_results(what: str, instead: str) -> kinds.Write:
    def write(encoder: Encoder, thing: Any) -> int:
        if encoder.results:
            raise encoder.refusal(what, instead)
        return objects.write_object(encoder, thing)

    return write


_module_itself = _refuse_in_results(
    "a module is no result", "save the numbers that you want of it, for instance its `state_dict()`"
)


def _write_module(encoder: Encoder, module: torch.nn.Module) -> int:
    # A cache keeps all that modules take, and one may take another: nobody chose that.
    stand_in = encoder.kept.get("stand_in")
    return _module_itself(encoder, module) if stand_in is None else encoder.emit("stayed", *stand_in(module))


kinds.FAMILIES[torch.nn.Module] = _write_module
kinds.FAMILIES[Node] = _refuse_in_results("an envoy stands for a module over there", "save its `.output`")


# -- over there ------------------------------------------------------------------------------------------------------


@makes("root")
def _make_root(decoder: Decoder, step: list[Any]) -> Node:
    model: Any = decoder.kept["model"]
    rename, classes = decoder.value(step[1]) or {}, decoder.value(step[2])
    if (rename, classes) == named(model):
        # The model itself, whose envoys are there already; edits that come along are not for it, nor for other roots.
        return model._derive() if len(decoder.made) in _edited(decoder) else model  # type: ignore[no-any-return]
    made = model._derive()
    made.__dict__["_names"] = Naming(rename, model._naming()._given[1])
    made.__dict__["_classes"] = classes
    return made  # type: ignore[no-any-return]


def _edited(decoder: Decoder) -> set[int]:
    """Return the numbers of the roots that edits come along for."""
    known = decoder.kept.get("edited")
    if known is None:
        steps = (step for step in decoder.document["nodes"] if isinstance(step, list) and step[:1] == ["edit"])
        known = decoder.kept["edited"] = {step[1] for step in steps if len(step) > 1 and type(step[1]) is int}
    return known


@makes("edit")
def _make_edit(decoder: Decoder, step: list[Any]) -> None:
    _, root, body, path, name = step
    edited: Any = decoder.value([root])
    if edited is decoder.kept["model"]:
        raise WireError("an edit is not for a root that came along")
    edits: Edits = edited.__dict__["_edits"]
    edits.append(Edit(decoder.value(body), edited._walk(path) if path else edited, name))


def named(root: Node) -> tuple[Mapping[Any, Any], Any]:
    """Return what names a model's parts were given, and what classes: envoys are found by path where these are the same."""
    return root._naming()._given[0], root.__dict__["_classes"]


@makes("envoy")
def _make_envoy(decoder: Decoder, step: list[Any]) -> Any:
    return envoy_at(decoder.value([step[1]]), step[2])


def envoy_at(root: Any, path: str) -> Any:
    """Return the envoy at a path below a root.

    Raises:
        WireError: the model has none there.
    """
    try:
        return root._walk(path) if path else root
    except AttributeError as error:
        raise WireError(f"the model here has no `{path}`: {error}") from error


@makes("operation")
def _make_operation(decoder: Decoder, step: list[Any]) -> Any:
    found = decoder.value(step[1]).nns_source  # each way begins with `source`, which may be a submodule too
    for name in step[2][1:]:
        found = getattr(found, name)
    return found


@makes("module of")
def _make_module_of(decoder: Decoder, step: list[Any]) -> torch.nn.Module:
    model: Any = decoder.kept["model"]
    module: torch.nn.Module = model._walk(step[1])._module if step[1] else model._module
    return module


@makes("weight")
def _make_weight(decoder: Decoder, step: list[Any]) -> torch.Tensor:
    return tensor_at(decoder.kept["model"], step[1])


def read_for(model: Any, data: Buffer, kind: str, accept: Callable[[Any], T]) -> T:
    """Read what is to run on a model, with the functions and classes that came along.

    Args:
        model: the model.
        data: the bytes.
        kind: what they are to be.
        accept: returns what is kept of what was read; raises WireError if that is something else.

    Raises:
        WireError: the bytes are of another kind, or need what is not here.
    """
    root = model._root
    decoder = Decoder(data, kind, trusted=True)
    # Asked for by tensors, and a short message has none.
    device = functools.cache(lambda: root.device)
    decoder.kept.update(model=root, model_device=device, weight=lambda path: tensor_at(root, path))
    decoder.files.show()
    try:
        kept = accept(decoder.read())
    except BaseException:
        decoder.files.forget()
        raise
    # Errors are told with the user's lines, so these stay as long as what was read does.
    weakref.finalize(kept, decoder.files.forget)
    return kept


def tensor_at(model: Any, path: str) -> torch.Tensor:
    """Return the parameter or buffer at a path of a model.

    Raises:
        WireError: the model has none there.
    """
    root = model._root
    root._ready()
    above, _, name = path.rpartition(".")
    found = getattr(root._module.get_submodule(above), name, None)
    if not isinstance(found, torch.Tensor):
        raise WireError(f"the model here has no `{path}`")
    sharding = root.__dict__["_sharding"]
    if sharding is not None:
        found = sharding.read(f"{root._path}.{path}", found)
    return found


@makes("reference")
def _make_reference(decoder: Decoder, step: list[Any]) -> Any:
    found = plugins.lookup("travels_by_reference", step[1])(decoder.kept["model"])
    if found is None:
        raise WireError(f"the model here has no {step[1]}, which the block uses")
    return found
