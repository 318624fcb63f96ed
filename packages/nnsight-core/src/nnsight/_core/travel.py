"""Requests, results, errors and messages as bytes: what `wire` writes, with what `bypath.py` knows of the model.

The one idea: a function for each direction of each kind of message, and nothing to configure. These are what the authors of
backends use.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping
from types import ModuleType
from typing import Any, TypeVar

import torch

from nnsight._version import __version__

from .backend import Request
from .bypath import Sender, read_for
from .edit import Edits
from .errors import WireError
from .received import ReceivedCache, write_cache
from .tree import Node
from .wire import Decoder, Encoder, arrays, failures, kinds, origin, records
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
    sender = Sender(root)
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
    return read_for(model, data, "request", _as_request)


def _as_request(value: Any) -> Request:
    if not isinstance(value, Request):
        raise WireError("these bytes hold something else than a request")
    return value


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
    if type(found) is not dict or not all(type(name) is str for name in found):
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


def encode_message(kind: str, value: Any, called: str = "") -> bytes:
    """Write something that the other end tells while it runs: "log", "status" or "value".

    Raises:
        WireError: something in it cannot travel; `called` says what the user calls it.
    """
    encoder = Encoder(results=True)
    root = encoder.value(value, called)
    return encoder.pack("message", root, {"message": kind})


def decode_message(data: Buffer, *, trusted: bool = False) -> tuple[str, Any]:
    """Read a message: its kind, and what it says; see `decode_results`."""
    decoder = Decoder(data, "message", trusted=trusted)
    kind = decoder.about.get("message")
    if not isinstance(kind, str):
        raise WireError("a message does not say of what kind it is")
    return kind, decoder.read()
