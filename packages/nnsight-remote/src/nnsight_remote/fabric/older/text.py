"""The text of a block as the function that nnsight 0.7 makes of it.

The one idea: 0.7 indents the lines of a block, and cuts the indentation off again wherever a block stands inside. So a string
that spans lines is written on one, or it would be another string there; what has nothing to be changed keeps its lines.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Sequence
from textwrap import indent
from typing import Any

from nnsight.plugin import Text, WireError, parse_source, text_of_block

from ..text import Spread, begins_with_try, is_unreadable, rewritten, statements_of

_STRINGS: tuple[type, ...] = (ast.JoinedStr, *filter(None, [getattr(ast, "TemplateStr", None)]))


class Wrapped:
    """A block as a function.

    Attributes:
        source: its text.
        before: how many lines of the file stand before what would be its first line.
        filename: the file of the block.
    """

    def __init__(self, name: str, head: str, begin: Sequence[str], block: str, end: Sequence[str], text: Text) -> None:
        lines = [f"def {name}({head}):\n", *begin, block, *end]
        self.name = name
        self.source = "".join(lines)
        self.before = text.first - 1 - (1 + len(begin))
        self.filename = text.filename


def block_of(body: Any, depth: int) -> tuple[Text, str]:
    """Return the text of a block, and how it is written at some depth."""
    text = text_of_block(body)
    statements = statements_of(text)
    inside = depth > 1
    if not is_unreadable(statements) and not _spans(statements) and not (inside and begins_with_try(statements)):
        source = text.text if text.text.endswith("\n") else text.text + "\n"
    else:
        source = rewritten(statements, _OneLine()) + "\n"
        if inside and begins_with_try(statements):
            source = f"None\n{source}"
        if _spans(parse_source(source).body):
            raise WireError(
                f"a string in the block at {text.filename}:{text.first} spans several lines, and nnsight 0.7 changes those; "
                "write it on one line (`\\n`), or outside the block"
            )
    return text, indent(source, "    " * depth)


def rebound(body: Any, names: Iterable[str]) -> list[str]:
    """Return which of the names that a block finds outside it binds as well: they are variables of it from its begin."""
    nodes = [node for one in statements_of(text_of_block(body)) for node in ast.walk(one)]
    stored = {node.id for node in nodes if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load)}
    stored -= {name for node in nodes if isinstance(node, (ast.Global, ast.Nonlocal)) for name in node.names}
    return sorted(stored & set(names))


def _spans(statements: Sequence[ast.stmt]) -> bool:
    """Whether a string goes over several lines."""
    nodes: list[Any] = [node for one in statements for node in ast.walk(one)]
    return any(node.lineno != node.end_lineno for node in nodes if _is_string(node))


def _is_string(node: ast.AST) -> bool:
    return isinstance(node, _STRINGS) or isinstance(node, ast.Constant) and isinstance(node.value, (str, bytes))


class _OneLine(Spread):
    """Leaves out the strings that only describe: written anew they would span lines."""

    def visit_Expr(self, node: ast.Expr) -> ast.AST:
        self.generic_visit(node)
        if isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            return ast.Expr(ast.Constant(None))
        return node
