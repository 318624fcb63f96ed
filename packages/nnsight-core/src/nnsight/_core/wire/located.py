"""Where in a text a function, a lambda or a class stands.

The one idea: code knows its name and its first line, and where several lambdas share a line, the one is meant that compiles
to the same code. A class knows less: its qualified name, and the lines of its methods.
"""

from __future__ import annotations

import ast
import linecache
import sys
import weakref
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import CellType, CodeType, FunctionType
from typing import Any

from ..blocks.lines import text_of
from ..errors import SourceError
from ..parsing import parse_source, reading
from .compiled import FUTURES, compile_function, first_line

Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda | ast.ClassDef


@dataclass(frozen=True)
class Located:
    """A definition, the functions and classes around it, and the text that it stands in."""

    node: Any
    owners: tuple[Any, ...]
    filename: str
    lines: Sequence[str]

    @property
    def first(self) -> int:
        """Its first line, that of a decorator if it has one."""
        return first_line(self.node)

    @property
    def last(self) -> int:
        """Its last line."""
        return int(self.node.end_lineno)

    @property
    def owner(self) -> str | None:
        """The name of the class around it, by which private names are spelt."""
        return next((one.name for one in reversed(self.owners) if isinstance(one, ast.ClassDef)), None)


class _Text:
    """All definitions of one text."""

    def __init__(self, lines: Sequence[str], filename: str) -> None:
        self.lines = lines
        self.functions: dict[tuple[str, int], list[Located]] = {}
        self.classes: dict[str, list[Located]] = {}
        for node, owners, name in _definitions(parse_source("".join(lines), filename), (), ""):
            found = Located(node, owners, filename, lines)
            if isinstance(node, ast.ClassDef):
                self.classes.setdefault(name, []).append(found)
            else:
                self.functions.setdefault((getattr(node, "name", "<lambda>"), first_line(node)), []).append(found)


#: Classes that came from elsewhere, and may go on from here: their texts, and the variables of functions around them.
received: weakref.WeakKeyDictionary[type, tuple[Located, Mapping[str, CellType]]] = weakref.WeakKeyDictionary()

_texts: dict[str, _Text] = {}
_KEPT = 4096
_found: dict[int, tuple[CodeType, Located]] = {}


def find_function(function: FunctionType) -> Located:
    """Find the text of a function.

    Raises:
        SourceError: nobody has kept it, or it is not what is running.
    """
    code = function.__code__
    known = _found.get(id(code))
    if known is None:
        if len(_found) > _KEPT:
            _found.clear()
        text = _text(text_of(code, function.__globals__), code.co_filename)
        candidates = text.functions.get((code.co_name, code.co_firstlineno), [])
        known = _found[id(code)] = (code, _chosen(candidates, code, function.__qualname__))
    return known[1]


def find_class(cls: type) -> Located:
    """Find the text of a class.

    Raises:
        SourceError: nobody has kept it.
    """
    if cls in received:
        return received[cls][0]
    lines = [one.__code__.co_firstlineno for one in methods_of(cls)]
    line = vars(cls).get("__firstlineno__")  # 3.13
    for filename, around in _files(cls):
        text = _text_or_none(filename, around)
        candidates = text.classes.get(cls.__qualname__, []) if text is not None else []
        fitting = [one for one in candidates if all(one.first <= at <= one.last for at in lines)]
        fitting = [one for one in fitting if line in (None, one.first, one.node.lineno)] or fitting
        if fitting:
            return fitting[-1]
    raise SourceError(f"the text of the class {cls.__qualname__} is kept nowhere")


def methods_of(cls: type) -> Iterator[FunctionType]:
    """Return the functions that were written in a class; not those that a decorator wrote for it."""
    for value in vars(cls).values():
        for one in (value, *(getattr(value, name, None) for name in ("__func__", "fget", "func"))):
            while hasattr(one, "__wrapped__"):
                one = one.__wrapped__
            if isinstance(one, FunctionType) and one.__module__ == cls.__module__:
                if one.__qualname__ == f"{cls.__qualname__}.{one.__code__.co_name}":
                    if one.__code__.co_filename != "<string>":
                        yield one


def _files(cls: type) -> Iterator[tuple[str, Mapping[str, Any]]]:
    module = sys.modules.get(cls.__module__)
    around = vars(module) if module is not None else {}
    methods = list(methods_of(cls))
    for method in methods[:1]:
        yield method.__code__.co_filename, around
    if isinstance(around.get("__file__"), str):
        yield around["__file__"], around
    if not methods:
        # A notebook: each cell is a file of its own, the latest counts.
        yield from ((name, {}) for name in reversed(list(linecache.cache)) if "<" in name or "ipykernel" in name)


def _text_or_none(filename: str, around: Mapping[str, Any]) -> _Text | None:
    linecache.checkcache(filename)
    lines = linecache.getlines(filename, dict(around))
    try:
        return _text(lines, filename) if lines else None
    except SourceError:
        return None


def _text(lines: Sequence[str], filename: str) -> _Text:
    known = _texts.get(filename)
    if known is None or not (known.lines is lines or known.lines == lines):
        try:
            if len(_texts) > _KEPT:
                _texts.clear()
            with reading:
                known = _texts[filename] = _Text(lines, filename)
        except SyntaxError as error:
            raise SourceError(f"the text of {filename!r} is not what is running: {error}") from None
    return known


def _chosen(candidates: list[Located], code: CodeType, qualname: str) -> Located:
    compiled = [(one, _compiled(one, code, getattr(code, "co_qualname", qualname))) for one in candidates]
    for one, made in compiled:
        if made == code:
            return one
    # Tools rewrite what runs (pytest its asserts): then names must do.
    fitting = [one for one, made in compiled if made is not None and set(made.co_names) <= set(code.co_names)]
    if len(fitting) == 1:
        return fitting[0]
    why = "is not what is running: the file changed since it was imported" if not fitting else "could be of several"
    raise SourceError(f"the text of {code.co_name!r} at {code.co_filename}:{code.co_firstlineno} {why}")


def _compiled(one: Located, code: CodeType, qualname: str) -> CodeType | None:
    frees = [name for name in code.co_freevars if name != "__class__"]
    try:
        with reading:
            made = compile_function(one.node, frees, one.owner, qualname, one.filename, code.co_flags & FUTURES)
    except (SyntaxError, LookupError):
        return None
    return made.replace(co_flags=code.co_flags)  # whether it stands in a function is part of them


def _definitions(node: ast.AST, owners: tuple[Any, ...], prefix: str) -> Iterator[tuple[Any, tuple[Any, ...], str]]:
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)):
            yield from _definitions(child, owners, prefix)
            continue
        name = prefix + getattr(child, "name", "<lambda>")
        yield child, owners, name
        inside = f"{name}." if isinstance(child, ast.ClassDef) else f"{name}.<locals>."
        yield from _definitions(child, (*owners, child), inside)
