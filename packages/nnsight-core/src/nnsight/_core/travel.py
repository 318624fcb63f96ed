"""Requests, results, errors and messages as bytes: what `wire` writes, for the model that they are about.

The one idea: what belongs to the model travels by path. An envoy is a path below a root, and a root that was edited or
renamed is made again of the model over there, its edits being blocks like any other.
"""

from __future__ import annotations

import platform
import weakref
from collections.abc import Mapping
from types import ModuleType
from typing import Any, TypeVar

import torch

from nnsight._version import __version__

from . import plugins
from .backend import Request
from .edit import Edit, Edits
from .errors import WireError
from .naming import Naming
from .received import ReceivedCache, write_cache
from .tree import Node
from .wire import Decoder, Encoder, arrays, failures, kinds, objects, origin, records
from .wire import tensors as _tensors  # noqa: F401  # lets tensors travel
from .wire.format import Buffer
from .wire.format import about as inspect_bytes
from .wire.format import check as check_bytes
from .wire.kinds import makes

__all__ = [
    "check_bytes",
    "decode_error",
    "decode_message",
    "decode_request",
    "decode_results",
    "encode_error",
    "encode_message",
    "encode_request",
    "encode_results",
    "inspect_bytes",
    "register",
]

arrays.register()
kinds.WRITERS[ReceivedCache] = write_cache
T = TypeVar("T")


def register(thing: T) -> T:
    """Say how something travels when a block runs elsewhere.

    Args:
        thing: an installed module, or its name: it travels by value, as modules of your own do. Or a class: objects of it,
            and of classes that inherit from it, come back in results as what they are. Use it as a decorator if you like.

    Example::

        import my_installed_tools

        nnsight.register(my_installed_tools)
    """
    if isinstance(thing, ModuleType):
        origin.register(thing.__name__)
    elif isinstance(thing, str):
        origin.register(thing)
    elif isinstance(thing, type):
        records.register(thing)
    else:
        raise TypeError(f"register() takes a module, its name, or a class, not a {type(thing).__name__}")
    return thing


# -- requests --------------------------------------------------------------------------------------------------------


def encode_request(request: Request) -> bytes:
    """Write a request: the block, the values of its names, what it was opened with, and the edits of its model.

    Raises:
        WireError: something in it cannot travel. The message says how one gets to it, and what to do instead.
    """
    root = request.node._root
    sender = _Sender(root)
    encoder = sender.encoder
    with encoder.at("the input"):
        inputs = encoder.value(tuple(request.inputs))
        kwargs = encoder.value(dict(request.kwargs))
        method = encoder.value(request.method)
    node, body = encoder.value(request.node), encoder.value(request.body)
    made = encoder.emit("request", node, inputs, kwargs, method, request.session, body)
    facts = {"path": request.node._path, "session": request.session, "family": type(root).__name__, **_versions()}
    return encoder.pack("request", [made], facts)


def decode_request(data: Buffer, model: Any) -> Request:
    """Read a request that is to run on a model; `request.replay()` runs it.

    This builds the functions and classes that came along, and so runs code of whoever sent it.

    Raises:
        WireError: the bytes are no request, or need what is not here.
    """
    decoder = Decoder(data, "request", trusted=True)
    decoder.kept.update(model=model._root, model_device=model._root.device, weight=lambda path: _tensor_at(model, path))
    decoder.files.show()
    try:
        request = decoder.read()
        if not isinstance(request, Request):
            raise WireError("these bytes hold something else than a request")
    except BaseException:
        decoder.files.forget()
        raise
    # An error of the block is told with the user's lines, so they stay as long as the request does.
    weakref.finalize(request, decoder.files.forget)
    return request


@makes("request")
def _make_request(decoder: Decoder, step: list[Any]) -> Request:
    _, node, inputs, kwargs, method, session, body = step
    request = Request(
        decoder.value(node), decoder.value(inputs), decoder.value(kwargs), decoder.value(method), session is True
    )
    request.body = decoder.value(body)
    request.names = request.body.names()
    return request


def _versions() -> dict[str, str]:
    return {"python": platform.python_version(), "torch": str(torch.__version__), "nnsight": __version__}


def model_pieces(model: Node) -> list[Buffer]:
    """Write a model by value, weights and all, without its edits; in pieces that follow each other."""
    bare: Any = model._root._derive()
    bare.__dict__["_edits"] = Edits()
    encoder = Encoder()
    with encoder.at("the model"):
        root = encoder.value(bare)
    return encoder.pieces("model", root, _versions())


def decode_model(data: Buffer) -> Any:
    """Read a model from memory that it may keep and change."""
    decoder = Decoder(data, "model", trusted=True)
    decoder.kept["mapped"] = True
    decoder.files.show()
    return decoder.read()


# -- results, errors, messages ---------------------------------------------------------------------------------------


def encode_results(values: Mapping[str, Any]) -> bytes:
    """Write what a block saved, by name.

    Raises:
        WireError: something in it cannot travel.
    """
    encoder = Encoder(results=True)
    said = [part for name, value in values.items() for part in (name, encoder.value(value, f"`{name}`"))]
    return encoder.pack("results", [encoder.emit("dict", said)], _versions())


def decode_results(data: Buffer, *, trusted: bool = False) -> dict[str, Any]:
    """Read what a block saved, by name. Tensors come to lie on the CPU.

    Args:
        data: the bytes.
        trusted: also build functions and classes, and objects of any class that is here; this can run code.

    Raises:
        WireError: the bytes are no results, or hold code and are not trusted.
    """
    found = Decoder(data, "results", trusted=trusted).read()
    if not isinstance(found, dict):
        raise WireError("these bytes hold no results by name")
    return found


def encode_error(error: BaseException) -> bytes:
    """Write an exception, its traceback as text along with it."""
    encoder = Encoder(results=True)
    return encoder.pack("error", [failures.write_error(encoder, error)], _versions())


def decode_error(data: Buffer) -> BaseException:
    """Read an exception: of its own type if that is known here, a `RemoteError` otherwise; the traceback is its note."""
    found = Decoder(data, "error").read()
    if not isinstance(found, BaseException):
        raise WireError("these bytes hold no error")
    return found


def encode_message(kind: str, value: Any) -> bytes:
    """Write something that the other end tells while it runs: "log", "status" or "value"."""
    encoder = Encoder(results=True)
    root = encoder.value(value)
    return encoder.pack("message", root, {"message": kind})


def decode_message(data: Buffer) -> tuple[str, Any]:
    """Read a message: its kind, and what it says."""
    decoder = Decoder(data, "message")
    return str(decoder.about.get("message")), decoder.read()


# -- what is at both ends --------------------------------------------------------------------------------------------


class _Sender:
    """Writes what belongs to a model by path."""

    def __init__(self, root: Node) -> None:
        self.root = root
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
        if isinstance(thing, Node):
            return ["envoy", self._root(thing._root), thing._relative()]
        if isinstance(thing, torch.nn.Module):
            path = self._module_paths().get(id(thing))
            return None if path is None else ["module of", path]
        if isinstance(thing, torch.Tensor):
            self.encoder.kept["model_device"] = self.encoder.kept["model_device"] or self.root.device
            path = self._tensor_paths().get(id(thing))
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
        rename = root._naming()._given[0]
        number = encoder.emit("root", encoder.value(dict(rename) or None), encoder.value(root.__dict__["_classes"]))
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


kinds.FAMILIES[torch.nn.Module] = _refuse_in_results(
    "a module is no result", "save the numbers that you want of it, for instance its `state_dict()`"
)
kinds.FAMILIES[Node] = _refuse_in_results("an envoy stands for a module over there", "save its `.output`")


@makes("root")
def _make_root(decoder: Decoder, step: list[Any]) -> Node:
    model: Any = decoder.kept["model"]
    rename, classes = decoder.value(step[1]) or {}, decoder.value(step[2])
    if rename == model._naming()._given[0] and classes == model.__dict__["_classes"]:
        made = model._derive() if model.__dict__["_edits"] else model
        return made  # type: ignore[no-any-return]
    made = model._derive()
    made.__dict__["_names"] = Naming(rename, model._naming()._given[1])
    made.__dict__["_classes"] = classes
    return made  # type: ignore[no-any-return]


@makes("edit")
def _make_edit(decoder: Decoder, step: list[Any]) -> None:
    _, root, body, path, name = step
    edited: Any = decoder.value([root])
    edits: Edits = edited.__dict__["_edits"]
    edits.append(Edit(decoder.value(body), edited._walk(path) if path else edited, name))


@makes("envoy")
def _make_envoy(decoder: Decoder, step: list[Any]) -> Any:
    root: Any = decoder.value([step[1]])
    try:
        return root._walk(step[2]) if step[2] else root
    except AttributeError as error:
        raise WireError(f"the model here has no `{step[2]}`: {error}") from error


@makes("module of")
def _make_module_of(decoder: Decoder, step: list[Any]) -> torch.nn.Module:
    model: Any = decoder.kept["model"]
    module: torch.nn.Module = model._walk(step[1])._module if step[1] else model._module
    return module


@makes("weight")
def _make_weight(decoder: Decoder, step: list[Any]) -> torch.Tensor:
    return _tensor_at(decoder.kept["model"], step[1])


def _tensor_at(model: Any, path: str) -> torch.Tensor:
    root = model._root
    root._ready()
    above, _, name = path.rpartition(".")
    found = getattr(root._module.get_submodule(above), name, None)
    if not isinstance(found, torch.Tensor):
        raise WireError(f"the model here has no `{path}`")
    return found


@makes("reference")
def _make_reference(decoder: Decoder, step: list[Any]) -> Any:
    found = plugins.lookup("travels_by_reference", step[1])(decoder.kept["model"])
    if found is None:
        raise WireError(f"the model here has no {step[1]}, which the block uses")
    return found
