"""Which names of a block need a value when it begins.

The one idea: a name that is bound before it is read needs none, though another value of it may be around: that of the
run before, say, which would travel for nothing. Where it is not certain which comes first, the value travels.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Sequence

from ..blocks.bindings import bindings

_BINDING = (
    ast.Assign,
    ast.AnnAssign,
    ast.AugAssign,
    ast.Import,
    ast.ImportFrom,
    ast.FunctionDef,
    ast.AsyncFunctionDef,
    ast.ClassDef,
    ast.Expr,
)


def needed(statements: Sequence[ast.stmt], bound: Iterable[str] = ()) -> set[str]:
    """Return the names that statements read before they bind them; `bound` are bound when they begin."""
    return _needed(statements, set(bound))


def _needed(statements: Sequence[ast.stmt], bound: set[str]) -> set[str]:
    """Do so, and add to `bound` what is certain to be bound at the end."""
    found: set[str] = set()
    for one in statements:
        found |= _of(one, bound)
    return found


def _of(one: ast.stmt, bound: set[str]) -> set[str]:
    if isinstance(one, ast.With):
        found: set[str] = set()
        for item in one.items:
            found |= _reads(ast.Expr(item.context_expr)) - bound
            if item.optional_vars is not None:
                # What is left of a target is read: `x[i]` reads both.
                found |= _reads(ast.Expr(item.optional_vars)) - bound
                bound |= _binds(ast.Expr(item.optional_vars))
        return found | _needed(one.body, bound)
    if isinstance(one, ast.If):
        found = _reads(ast.Expr(one.test)) - bound
        bound |= _binds(ast.Expr(one.test))
        either, other = set(bound), set(bound)
        found |= _needed(one.body, either) | _needed(one.orelse, other)
        bound |= either & other
        return found
    if isinstance(one, ast.For):
        found = (_reads(ast.Expr(one.iter)) | _reads(ast.Expr(one.target))) - bound
        # There may be no round, so nothing is certain afterwards.
        return found | _needed(one.body, bound | _binds(ast.Expr(one.target))) | _needed(one.orelse, set(bound))
    found = _reads(one) - bound
    if isinstance(one, _BINDING):
        bound |= _binds(one)
    return found


def _reads(one: ast.stmt) -> set[str]:
    return bindings([one]).wanted()


def _binds(one: ast.stmt) -> set[str]:
    return bindings([one]).stored()
