"""What code was compiled from, where whoever compiled it says so.

The one idea: a definition that came over a wire was compiled alone, without the file around it. So no file is its source,
not even the one that it was written in: there, what the module imports is called with other instructions. Its own lines
are known, and the names of what it stood in, for as long as its code lives.
"""

from __future__ import annotations

import ast
import keyword
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from types import CodeType
from typing import TypeAlias

from ..parsing import parse_source

Scope: TypeAlias = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


@dataclass(frozen=True)
class Given:
    """The text of one definition, in which code stands, and the scopes around that definition."""

    lines: tuple[str, ...]
    first: int
    """The number of the first line."""
    scopes: tuple[Scope, ...]


# By identity, not equality: equal codes may come from different files.
_given: dict[int, tuple[weakref.ref[CodeType], Given]] = {}


def give(code: CodeType, lines: Sequence[str], first: int, scopes: tuple[Scope, ...]) -> None:
    """Say which text code, and the code inside it, was compiled from.

    Args:
        code: the code.
        lines: statements that can be read by themselves, the definition among them, with line ends.
        first: the number of the first line.
        scopes: what the definition stands in, the outermost first; see `scopes_of`.
    """
    _keep(code, Given(tuple(lines), first, scopes))


def given(code: CodeType) -> Given | None:
    """Return what was said of code; None if nothing was."""
    known = _given.get(id(code))
    return known[1] if known is not None else None


def scopes_of(qualname: str, name: str) -> tuple[Scope, ...] | None:
    """Return empty scopes like those that a qualified name speaks of; None if it is not that of a definition `name`."""
    *around, last = qualname.split(".")
    names = [one for one in around if one != _LOCALS]
    if last != name or not all(one.isidentifier() and not keyword.iskeyword(one) for one in names):
        return None
    inside = [*around[1:], ""]
    return tuple(
        function_called(one) if after == _LOCALS else class_called(one)
        for one, after in zip(around, inside)
        if one != _LOCALS
    )


def class_called(name: str) -> Scope:
    """Return an empty class."""
    return _statement(f"class {name}: pass")


def function_called(name: str) -> Scope:
    """Return an empty function."""
    return _statement(f"def {name}(): pass")


_LOCALS = "<locals>"


def _statement(text: str) -> Scope:
    (statement,) = parse_source(text).body
    assert isinstance(statement, Scope)
    return statement


def _keep(code: CodeType, what: Given) -> None:
    key = id(code)
    _given[key] = (weakref.ref(code, lambda _: _given.pop(key, None)), what)
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            _keep(inner, what)
