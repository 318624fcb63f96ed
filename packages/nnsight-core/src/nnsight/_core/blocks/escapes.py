"""What a captured body cannot do: leave the function or the loop that it stands in, or pause it.

The one idea: such a statement speaks to a frame that has gone on by the time the body runs, so it is refused when the
body is captured, with what to write instead. A block that runs where it stands may do all of these.
"""

from __future__ import annotations

import ast
from collections.abc import Sequence

from ..errors import SourceError

_LOOPS = (ast.For, ast.AsyncFor, ast.While)
_SCOPES = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)
_RUNS_LATER = "this block is read first and run later, beside the model, so "
_RETURN = "assign the value to a name in the block and return it after the block"
_LOOP = "leave out what should not run with `if`, or put the whole loop inside the block"
_YIELD = "collect the values in a list in the block and yield them after it"
_AWAIT = "await before the block, and use the result in it"


def refuse_escapes(body: Sequence[ast.stmt], filename: str) -> None:
    """Raise SourceError at the first statement that would leave or pause the function around a body."""
    for statement in body:
        _check(statement, filename, False)


def _check(node: ast.AST, filename: str, in_loop: bool) -> None:
    word, instead = _escape(node, in_loop)
    if word:
        line = getattr(node, "lineno", 0) or getattr(getattr(node, "target", None), "lineno", 0)
        raise SourceError(f"{filename}, line {line}: {_RUNS_LATER}`{word}` cannot work in it: {instead}")
    if isinstance(node, _SCOPES):
        return
    for name, value in ast.iter_fields(node):
        looping = in_loop or (isinstance(node, _LOOPS) and name == "body")
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST):
                _check(child, filename, looping)


def _escape(node: ast.AST, in_loop: bool) -> tuple[str, str]:
    if isinstance(node, ast.Return):
        return "return", _RETURN
    if isinstance(node, (ast.Break, ast.Continue)) and not in_loop:
        return ("break" if isinstance(node, ast.Break) else "continue"), _LOOP
    if isinstance(node, (ast.Yield, ast.YieldFrom)):
        return "yield", _YIELD
    if isinstance(node, (ast.Await, ast.AsyncFor, ast.AsyncWith)) or (
        isinstance(node, ast.comprehension) and node.is_async
    ):
        return ("await" if isinstance(node, ast.Await) else "async"), _AWAIT
    return "", ""
