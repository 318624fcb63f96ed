"""The text of a block, so that nnsight 0.8 can run it.

The one idea: it is sent as it was written, on its own lines; only where 0.8 cannot run what we can (a block inside that
begins with `try`, or stands on the line of its `with`), it is written anew.
"""

from __future__ import annotations

import ast
from collections.abc import Sequence

from nnsight.plugin import Text, copy_tree, text_of_block


def of_block(body: object) -> str:
    """Return the text of a captured block, its first line where it stands in its file."""
    text = text_of_block(body)  # type: ignore[arg-type]  # the body of a request
    return "\n" * (text.first - 1) + _runnable(text)


def _runnable(text: Text) -> str:
    statements = statements_of(text)
    if not is_unreadable(statements):
        return text.text if text.text.endswith("\n") else text.text + "\n"
    return rewritten(statements, Spread())


def statements_of(text: Text) -> list[ast.stmt]:
    """Return the statements of a block."""
    return [one for one in text.nodes if isinstance(one, ast.stmt)]


def is_unreadable(statements: Sequence[ast.stmt]) -> bool:
    """Whether there is a block inside that could not be captured over there."""
    inside = [node for one in statements for node in ast.walk(one) if isinstance(node, ast.With)]
    return any(_on_one_line(node) or begins_with_try(node.body) for node in inside)


def rewritten(statements: Sequence[ast.stmt], how: ast.NodeTransformer) -> str:
    """Write statements anew."""
    return ast.unparse(ast.fix_missing_locations(how.visit(copy_tree(ast.Module(list(statements), [])))))


def _on_one_line(node: ast.With) -> bool:
    return node.body[0].lineno == node.lineno


def begins_with_try(body: Sequence[ast.stmt]) -> bool:
    """Whether the first statement cannot be stopped at."""
    return isinstance(body[0], (ast.Try, getattr(ast, "TryStar", ast.Try)))


class Spread(ast.NodeTransformer):
    """Gives each `with` a body whose first statement can be stopped at; unparsing gives it lines of its own."""

    def visit_With(self, node: ast.With) -> ast.AST:
        self.generic_visit(node)
        if begins_with_try(node.body):
            node.body.insert(0, ast.Expr(ast.Constant(None)))
        return node
