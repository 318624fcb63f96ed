"""Objects of any class: the class, and the state that copying them would use.

The one idea: `__reduce_ex__` says how an object is taken apart, and what it says is written step by step; the serialised
form of pickle is no part of it.
"""

from __future__ import annotations

import contextvars
import copyreg
import io
import socket
import threading
import types
import weakref
from typing import Any

from . import origin, pictures, records
from .decoder import Decoder
from .encoder import Encoder
from .kinds import makes, writes
from .spaces import reference

#: What is known of things that have no copy: what they are, and what to do instead.
_ADVICE: tuple[tuple[tuple[type, ...], str, str], ...] = (
    ((io.IOBase,), "an open file", "open it in the block, or send what is in it"),
    (
        (type(threading.Lock()), type(threading.RLock()), threading.Condition, threading.Event, threading.Semaphore),
        "a lock",
        "make one in the block",
    ),
    ((types.GeneratorType, types.AsyncGeneratorType), "a generator", "send `list(...)` of it"),
    ((types.CoroutineType,), "a coroutine", "await it before the block, and send the result"),
    ((socket.socket,), "a socket", "send what you read from it"),
    ((types.FrameType, types.TracebackType), "a part of the running program", "send what you need of it"),
    ((types.CodeType,), "compiled code", "send the function"),
    (
        (weakref.ref,),
        "a weak reference",
        "send the thing itself",
    ),
    ((contextvars.ContextVar, contextvars.Context), "a context variable", "send its value"),
    ((threading.Thread,), "a thread", "start one in the block"),
)


@writes(object, family=True)
def write_object(encoder: Encoder, thing: Any) -> int:
    """Write an object of any class."""
    for types_, what, instead in _ADVICE:
        if isinstance(thing, types_):
            raise encoder.refusal(f"{what} belongs to this process", instead)
    if isinstance(thing, BaseException) and type(thing).__reduce__ is BaseException.__reduce__:
        # What it says, a call of its class with its arguments, fits few classes that have a constructor.
        made: Any = copyreg.__newobj__  # type: ignore[attr-defined]
        return _write_parts(encoder, thing, made, (type(thing), *thing.args), dict(vars(thing)) or None)
    if pictures.is_picture(thing):
        return pictures.write(encoder, thing)
    single = None if encoder.results else origin.singleton(thing)
    if single is not None:
        return reference(encoder, *single)
    if encoder.results and records.is_record(thing):
        return records.write(encoder, thing)
    try:
        registered = copyreg.dispatch_table.get(type(thing))
        parts = thing.__reduce_ex__(4) if registered is None else registered(thing)
    except Exception as error:  # whatever the object says against being copied
        raise encoder.refusal(
            f"a {type(thing).__module__}.{type(thing).__qualname__} cannot be copied ({error})",
            "make it in the block, or send the numbers and texts that it is made of",
        ) from error
    if isinstance(parts, str):
        found = origin.find(thing, parts)
        if found is None:
            raise encoder.refusal(f"`{parts}` lies in no installed module", "make it in the block")
        return reference(encoder, *found)
    return _write_parts(encoder, thing, *parts)


def _write_parts(
    encoder: Encoder,
    thing: Any,
    make: Any,
    args: Any,
    state: Any = None,
    items: Any = None,
    pairs: Any = None,
    setter: Any = None,
) -> int:
    if make is copyreg.__newobj__:  # type: ignore[attr-defined]
        shell = ["new", encoder.value(args[0], "its class"), _all(encoder, args[1:])]
    else:
        shell = ["call", encoder.value(make, "what makes it"), _all(encoder, args)]
    # Iterators: they can be gone through once, and writing may be tried twice.
    listed, mapped = list(items or ()), [part for pair in pairs or () for part in pair]

    def parts() -> list[Any]:
        said = _state(encoder, state)
        content = [said, _all(encoder, listed), _all(encoder, mapped)]
        return [*content, encoder.value(setter)] if setter is not None else content

    return encoder.mutable(thing, shell, parts)


def _state(encoder: Encoder, state: Any) -> Any:
    """Write a state, attribute by attribute where it is that of most objects."""
    if type(state) is dict and all(type(name) is str for name in state):
        return {"attributes": attributes(encoder, state)}
    return encoder.value(state, "its state")


def attributes(encoder: Encoder, state: dict[str, Any]) -> list[Any]:
    """Write attributes: names and values, one after the other."""
    return [part for name, value in list(state.items()) for part in (name, encoder.value(value, f".{name}"))]


def _all(encoder: Encoder, parts: Any) -> list[Any]:
    return [encoder.value(part, f"[{number}]") for number, part in enumerate(parts)]


@writes(types.MappingProxyType, weakref.WeakKeyDictionary, weakref.WeakValueDictionary)
def _write_mapping(encoder: Encoder, mapping: Any) -> int:
    return encoder.emit("call", encoder.value(type(mapping)), [encoder.value(dict(mapping))], [None, [], []])


@makes("new")
def _make_new(decoder: Decoder, step: list[Any]) -> Any:
    cls = decoder.value(step[1])
    made = cls.__new__(cls, *decoder.values(step[2]))
    return decoder.fillable(made, step, 3, lambda said: _fill(decoder, made, said))


@makes("call")
def _make_call(decoder: Decoder, step: list[Any]) -> Any:
    made = decoder.value(step[1])(*decoder.values(step[2]))
    return decoder.fillable(made, step, 3, lambda said: _fill(decoder, made, said))


def _fill(decoder: Decoder, made: Any, content: Any) -> None:
    said, listed, mapped, *setter = content
    state = dict(decoder.pairs(said["attributes"])) if isinstance(said, dict) else decoder.value(said)
    for item in decoder.values(listed):
        made.append(item)
    for key, value in decoder.pairs(mapped):
        made[key] = value
    if setter:
        decoder.value(setter[0])(made, state)
    elif state is None:
        return
    elif hasattr(type(made), "__setstate__"):
        made.__setstate__(state)
    else:
        set_state(made, state)


def set_state(made: Any, state: Any) -> None:
    """Give an object its attributes: a dict, or a pair of that and of what is in its slots."""
    attributes, slots = state if isinstance(state, tuple) and len(state) == 2 else (state, None)
    if attributes:
        vars(made).update(attributes)
    for name, value in (slots or {}).items():
        object.__setattr__(made, name, value)
