"""What is called and is no function of Python's: methods, functions of C, and a few wrappers of the standard library."""

from __future__ import annotations

import functools
import types
import typing
from typing import Any

from . import origin
from .decoder import Decoder
from .encoder import Encoder
from .kinds import makes, writes
from .spaces import reference


@writes(types.MethodType)
def _write_method(encoder: Encoder, method: types.MethodType) -> int:
    owner, function = method.__self__, method.__func__
    name = function.__name__
    if getattr(getattr(type(owner), name, None), "__func__", getattr(type(owner), name, None)) is function or (
        isinstance(owner, type) and getattr(getattr(owner, name, None), "__func__", None) is function
    ):
        return encoder.emit("attribute", encoder.value(owner, "its object"), name)
    return encoder.emit("bound", encoder.value(function, f"`{name}`"), encoder.value(owner, "its object"))


@makes("bound")
def _make_bound(decoder: Decoder, step: list[Any]) -> types.MethodType:
    return types.MethodType(decoder.value(step[1]), decoder.value(step[2]))


@makes("attribute")
def _make_attribute(decoder: Decoder, step: list[Any]) -> Any:
    return getattr(decoder.value(step[1]), step[2])


@writes(
    types.BuiltinFunctionType,
    types.MethodWrapperType,
    types.MethodDescriptorType,
    types.WrapperDescriptorType,
    types.ClassMethodDescriptorType,
)
def _write_c_function(encoder: Encoder, function: Any) -> int:
    owner = getattr(function, "__objclass__", None) or getattr(function, "__self__", None)
    if owner is None or isinstance(owner, types.ModuleType):
        found = origin.find(function)
        if found is None:
            raise encoder.refusal(f"{function!r} is written in C and lies in no installed module", "call it yourself")
        return reference(encoder, *found)
    if isinstance(owner, type) and "." not in function.__name__:
        found = origin.find(function)  # torch keeps its functions in a class that nobody names
        if found is not None:
            return reference(encoder, *found)
    return encoder.emit("attribute", encoder.value(owner, "its object"), function.__name__)


@writes(functools._lru_cache_wrapper)
def _write_cached(encoder: Encoder, function: Any) -> int:
    found = origin.find(function)
    if found is not None:
        return reference(encoder, *found)
    options = function.cache_parameters()
    return encoder.emit("cached", encoder.value(function.__wrapped__), options["maxsize"], options["typed"])


@makes("cached")
def _make_cached(decoder: Decoder, step: list[Any]) -> Any:
    return functools.lru_cache(step[2], step[3])(decoder.value(step[1]))


@writes(typing.TypeVar)
def _write_typevar(encoder: Encoder, variable: typing.TypeVar) -> int:
    found = origin.find(variable, variable.__name__)
    if found is not None:
        return reference(encoder, *found)
    bounds = [encoder.value(one) for one in (variable.__constraints__, variable.__bound__)]
    return encoder.emit("typevar", variable.__name__, *bounds, variable.__covariant__, variable.__contravariant__)


@makes("typevar")
def _make_typevar(decoder: Decoder, step: list[Any]) -> Any:
    _, name, constraints, bound, covariant, contravariant = step
    make: Any = typing.TypeVar  # a checker wants it assigned to its own name
    options = {"bound": decoder.value(bound), "covariant": covariant, "contravariant": contravariant}
    return make(name, *decoder.value(constraints), **options)


@writes(staticmethod, classmethod)
def _write_wrapped(encoder: Encoder, wrapped: Any) -> int:
    return encoder.emit("wrapped", type(wrapped).__name__, [encoder.value(wrapped.__func__)])


@writes(property)
def _write_property(encoder: Encoder, wrapped: property) -> int:
    parts = [encoder.value(part) for part in (wrapped.fget, wrapped.fset, wrapped.fdel, wrapped.__doc__)]
    return encoder.emit("wrapped", "property", parts)


@makes("wrapped")
def _make_wrapped(decoder: Decoder, step: list[Any]) -> Any:
    makers: dict[str, Any] = {"staticmethod": staticmethod, "classmethod": classmethod, "property": property}
    return makers[step[1]](*decoder.values(step[2]))
