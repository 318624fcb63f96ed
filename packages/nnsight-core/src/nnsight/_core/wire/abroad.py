"""What a plugin needs that writes or reads requests in somebody else's format.

The one idea: our wire and theirs ask the same questions of a block or a function (where is its text, which names does it
need, whose are those), and here they are answered in plain Python: texts and dictionaries. From the same a block is made.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from types import FunctionType
from typing import Any, NamedTuple

from ..blocks import Block, Body, Found
from ..blocks.lines import dedented
from ..blocks.names import BodyGlobals
from ..errors import WireError
from ..parsing import parse_source
from .bodies import bound_first, code_like, with_around
from .compiled import first_line
from .located import find_function
from .origin import find as installed_as
from .origin import is_own
from .uses import uses

__all__ = [
    "Text",
    "aliases_of",
    "block_of_text",
    "installed_as",
    "is_own",
    "names_of_block",
    "names_of_function",
    "text_of_block",
    "text_of_function",
]


class Text(NamedTuple):
    """The text of a block or a function, at the left margin.

    Attributes:
        text: the text; of a lambda, an expression.
        first: the number of its first line in its file.
        filename: that file.
        name: what the code is called in tracebacks.
        nodes: the statements of a block, or the definition itself; they belong to the core and are not to be changed.
        owner: the class that a function stands in, by which its private names are spelt.
    """

    text: str
    first: int
    filename: str
    name: str
    nodes: tuple[ast.AST, ...]
    owner: str | None = None


def text_of_block(body: Body) -> Text:
    """Return the text of a block, without the `with` that it stands under."""
    found = body.block.found
    statements: list[ast.stmt] = list(found.node.body)
    if found.items_after:
        statements = [ast.copy_location(ast.With(found.items_after, found.node.body), found.node)]
        return Text(body.source, found.node.lineno, body.filename, body.block.code.co_name, tuple(statements))
    return Text(body.source, first_line(statements[0]), body.filename, body.block.code.co_name, tuple(statements))


def names_of_block(body: Body) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the values that a block needs when it begins, by name: those of globals, and those of the function around it."""
    around = body.real.real if isinstance(body.real, BodyGlobals) else body.real
    bound = bound_first(body.block)
    inner = {name: value for name, value in sorted(body.outer.items()) if name not in bound}
    wanted = {name for name in body.reads | uses(body.block.code).names.keys() if not name.startswith(".")}
    outer = {name: around[name] for name in sorted(wanted - bound - inner.keys()) if name in around}
    return outer, inner


def block_of_text(text: str, *, filename: str, name: str, outer: dict[str, Any], inner: dict[str, Any]) -> Body:
    """Return a block that is made of its text.

    Args:
        text: the statements at the left margin; blank lines before them give them the numbers that they have in their file.
        filename: that file, as tracebacks are to show it.
        name: what the code around the block is called in tracebacks.
        outer: the globals of the block, by name; the block writes to them what it declares `global`.
        inner: the values of the function around it, by name.

    Raises:
        WireError: the text is no block.
    """
    try:
        statements = parse_source(text, filename).body
    except (SyntaxError, ValueError) as error:
        raise WireError(f"the text of a block is no Python that is understood here: {error}") from error
    if not statements:
        raise WireError("a block without statements")
    node = with_around(None, [], statements, max(1, first_line(statements[0]) - 1))
    found = Found(node, 0, (), text.splitlines(keepends=True), filename)
    return Body(Block(found, code_like(filename, name, name, 0), None), inner, outer)


def text_of_function(function: FunctionType) -> Text:
    """Return the text of a function, its decorators left out.

    Raises:
        SourceError: nobody has kept it, or it is not what is running.
    """
    where = find_function(function)
    node = where.node
    name = function.__code__.co_name
    if isinstance(node, ast.Lambda):
        return Text(ast.unparse(node), node.lineno, where.filename, name, (node,), where.owner)
    bare = _without_decorators(node)
    return Text(dedented(where.lines, [bare]), bare.lineno, where.filename, name, (bare,), where.owner)


def names_of_function(function: FunctionType) -> dict[str, Any]:
    """Return the values that a function finds outside itself, by name: variables that it closes over, and globals."""
    used = uses(function.__code__)
    found = {name: function.__globals__[name] for name in sorted(used.names) if name in function.__globals__}
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or ()):
        try:
            found[name] = cell.cell_contents
        except ValueError:
            found.pop(name, None)  # it is empty here too
    return found


def aliases_of(node: Any) -> Mapping[str, str]:
    """Return the other names that modules below an envoy have there, and the path below it that each stands for."""
    found: dict[str, str] = node._naming().aliases(node._root._module, node._relative(), node._module)
    return found


def _without_decorators(node: Any) -> Any:
    if not node.decorator_list:
        return node
    fields = {name: getattr(node, name) for name in node._fields}
    return ast.copy_location(type(node)(**{**fields, "decorator_list": []}), node)
