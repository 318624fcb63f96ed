"""Exceptions on their way back.

The one idea: an exception is its type by name, its arguments and attributes, and the traceback as text. It is made again
without its constructor, and only of a type that is known here already; nothing is imported for it.
"""

from __future__ import annotations

import builtins
import sys
import traceback
import weakref
from types import ModuleType
from typing import Any

from ..blocks.skip import Skipped
from ..errors import RemoteError, WireError
from .bounds import is_short
from .decoder import Decoder
from .encoder import Encoder
from .kinds import makes

#: Exceptions of the user's that travelled by their text, which need not be found by name.
_sent: weakref.WeakValueDictionary[str, type] = weakref.WeakValueDictionary()
_INHERITED = ("__notes__", "__traceback__", "__cause__", "__context__")


def note_sent(cls: type) -> None:
    """Remember a class that travels, so that an exception of it which comes back is one of it."""
    if issubclass(cls, BaseException):
        _sent[f"{cls.__module__}:{cls.__qualname__}"] = cls


def write_error(encoder: Encoder, error: BaseException) -> int:
    """Write an exception, with what it was caused by, and its traceback as text."""
    encoder.results = True
    _part_from_skipping(error)
    text = "".join(traceback.format_exception(type(error), error, error.__traceback__))
    cause = error.__cause__
    return encoder.emit(
        "error",
        [f"{cls.__module__}:{cls.__qualname__}" for cls in type(error).__mro__ if issubclass(cls, BaseException)],
        _said(error),
        [_lenient(encoder, one) for one in error.args],
        [part for name, value in _attributes(error) for part in (name, _lenient(encoder, value))],
        list(map(str, getattr(error, "__notes__", ()))),
        text,
        None if cause is None or cause is error else write_error(encoder, cause),
    )


def _part_from_skipping(error: BaseException) -> None:
    """Let nothing be told of how a `with` was left: its body runs while it is, if it runs in the same process."""
    at: BaseException | None = error
    met: set[int] = set()
    while at is not None and id(at) not in met:
        met.add(id(at))
        if isinstance(at.__context__, Skipped):
            at.__context__ = None
        at = at.__cause__ or at.__context__


def _said(error: BaseException) -> str:
    try:
        return str(error)
    except Exception as problem:  # the user's own __str__ may fail
        return f"<no text: {type(problem).__name__}>"


def _attributes(error: BaseException) -> list[tuple[str, Any]]:
    return [(name, value) for name, value in vars(error).items() if name not in _INHERITED and isinstance(name, str)]


def _lenient(encoder: Encoder, value: Any) -> Any:
    """Write a value if it is plain data, or what it looks like."""
    trial = Encoder(results=True)  # what it would write cannot be taken back
    try:
        trial.value(value)
    except WireError:
        return _looks(value)
    return encoder.value(value) if all(step[0] in _DATA for step in trial.nodes) else _looks(value)


def _looks(value: Any) -> str:
    try:
        return repr(value)[:1000]
    except Exception:  # of the user's own __repr__
        return object.__repr__(value)


@makes("error", safe=True)
def _make_error(decoder: Decoder, step: list[Any]) -> BaseException:
    _, types, said, args, attributes, notes, text, cause = step
    given, told = decoder.values(args), decoder.pairs(attributes)
    # Whoever prints an error prints these.
    short = is_short([*given, *(value for _, value in told)], _LONGEST)
    error = _made(_known(types), given) if short else None
    if error is None:
        error = RemoteError(_told(str(types[0]), str(said)))
    else:
        for name, value in told:
            if isinstance(name, str) and not (name.startswith("__") and name.endswith("__")):
                vars(error)[name] = value
    remarks = [str(note) for note in notes]
    remarks.append("The traceback at the other end:\n\n" + str(text).rstrip())
    vars(error)["__notes__"] = remarks
    if cause is not None:
        known = decoder.value([cause])
        error.__cause__ = known if isinstance(known, BaseException) else None
    elif sys.version_info < (3, 11):
        error.__cause__ = RemoteError(remarks[-1])  # notes are not shown before
    return error


_LONGEST = 200_000


def _told(name: str, said: str) -> str:
    module, _, name = name.partition(":")
    cls = getattr(builtins, name, None) if module == "builtins" else None
    if not isinstance(cls, type) or not issubclass(cls, BaseException) or issubclass(cls, Exception):
        return f"{module}.{name}: {said}"
    return (
        f"{name}{f'({said})' * bool(said)} was raised by the block where it ran, and ended it there. It does not end this "
        "program from afar: what is to do that stands after the block. `tracer.stop()` ends a run early."
    )


def _made(cls: type[BaseException] | None, args: list[Any]) -> BaseException | None:
    """Make an exception as Python would, past what its own class does."""
    if cls is None:
        return None
    base: Any = next(one for one in cls.__mro__ if one.__module__ == "builtins")
    try:
        error: BaseException = base.__new__(cls, *args)
        base.__init__(error, *args)
    except (TypeError, ValueError):
        return None  # its arguments are others than Python's own class takes
    return error


def _known(names: list[Any]) -> type[BaseException] | None:
    """Return the class of the first name, if it is one of Python's, torch's or ours, or imported here already."""
    module, _, path = str(names[0]).partition(":")
    cls: Any = _sent.get(str(names[0]))
    if cls is None:
        cls = builtins if module == "builtins" else sys.modules.get(module)
        for part in path.split("."):
            cls = cls.__dict__.get(part) if isinstance(cls, (ModuleType, type)) else None
    if not isinstance(cls, type) or not issubclass(cls, BaseException):
        return None
    # Not one that would end the program, or look like an interrupt from the keyboard.
    return cls if issubclass(cls, Exception) else None


#: Kinds of steps that the arguments and attributes of an exception may be made of.
_DATA = frozenset("int float complex bytes list tuple dict set frozenset native type single".split())
