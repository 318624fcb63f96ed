"""Functions of the user's, by their text, as nnsight 0.8 builds them.

The one idea: over there a function is compiled at the left margin of an empty module, and what it closes over becomes its
globals. What would mean something else there is written out (`super()`, private names), or refused (`nonlocal`).
"""

from __future__ import annotations

import ast
from types import FunctionType
from typing import Any

from nnsight import SourceError
from nnsight.plugin import Text, WireError, copy_tree, names_of_function, text_of_function

from .stand_ins import FILL_FUNCTION, LOAD_FUNCTION, Paths


def reduce(function: FunctionType, paths: Paths) -> Any:
    """Say how a function is made over there; None if its text is not kept, as that of methods which a decorator wrote."""
    found = written(function, paths.version)
    if found is None:
        return None
    text, source, names = found
    arguments = (
        source,
        text.name,
        function.__defaults__,
        function.__kwdefaults__,
        None,
        text.filename,
        text.first,
    )
    return paths[LOAD_FUNCTION], arguments, names, None, None, paths[FILL_FUNCTION]


def written(function: FunctionType, version: str) -> tuple[Text, str, dict[str, Any]] | None:
    """Return a function's text, how it is written outside of where it stands, and the values of its names there.

    None if its text is not kept.
    """
    try:
        text = text_of_function(function)
    except SourceError:
        return None
    names = {_mangled(name, text.owner): value for name, value in names_of_function(function).items()}
    return text, _written_out(text, function, version), names


def _written_out(text: Text, function: FunctionType, version: str) -> str:
    node: Any = text.nodes[0]
    if any(isinstance(one, ast.Nonlocal) for one in ast.walk(node)) and _shares(node):
        raise WireError(
            f"`{function.__qualname__}` changes a variable of the function around it (`nonlocal`), and nnsight {version} "
            "sends no such variables; change an element of a list or an attribute instead"
        )
    if text.owner is None:
        return text.text
    made = _Outside(text.owner, node).visit(copy_tree(ast.Module([node], [])))
    return ast.unparse(ast.fix_missing_locations(made))


def _shares(node: Any) -> bool:
    """Whether a `nonlocal` reaches beyond the function: at its own level, or of a name that none inside binds."""
    own = {name for one in ast.walk(node) if isinstance(one, ast.Nonlocal) for name in one.names}
    bound = {one.id for one in ast.walk(node) if isinstance(one, ast.Name) and isinstance(one.ctx, ast.Store)}
    direct = {name for one in _statements(node) if isinstance(one, ast.Nonlocal) for name in one.names}
    return bool(direct or own - bound)


def _statements(node: Any) -> list[ast.AST]:
    """Return what belongs to a function itself, and not to one that it defines."""
    found, waiting = [], list(ast.iter_child_nodes(node))
    while waiting:
        one = waiting.pop()
        found.append(one)
        if not isinstance(one, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda, ast.ClassDef)):
            waiting += ast.iter_child_nodes(one)
    return found


class _Outside(ast.NodeTransformer):
    """Writes a method so that it means the same outside its class."""

    def __init__(self, owner: str, node: Any) -> None:
        self._owner = owner
        arguments = [*node.args.posonlyargs, *node.args.args]
        self._first = arguments[0].arg if arguments else None

    def visit_Call(self, node: ast.Call) -> ast.AST:
        self.generic_visit(node)
        if isinstance(node.func, ast.Name) and node.func.id == "super" and not (node.args or node.keywords):
            if self._first is not None:
                node.args = [ast.Name("__class__", ast.Load()), ast.Name(self._first, ast.Load())]
        return node

    def visit_Name(self, node: ast.Name) -> ast.AST:
        node.id = _mangled(node.id, self._owner)
        return node

    def visit_Attribute(self, node: ast.Attribute) -> ast.AST:
        self.generic_visit(node)
        node.attr = _mangled(node.attr, self._owner)
        return node

    def visit_arg(self, node: ast.arg) -> ast.AST:
        node.annotation = None
        node.arg = _mangled(node.arg, self._owner)
        return node


def _mangled(name: str, owner: str | None) -> str:
    """Spell a private name as Python does in a class."""
    stripped = (owner or "").lstrip("_")
    if not stripped or not name.startswith("__") or name.endswith("__") or "." in name:
        return name
    return f"_{stripped}{name}"
