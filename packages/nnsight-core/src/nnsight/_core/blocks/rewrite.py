"""A body's statements, changed so that they mean outside their function what they meant inside it.

The one idea: the body is compiled as the text of a module, whose names live in a mapping, so only what a module would
understand differently is changed: names that are private to a class, `super()`, `global` and `nonlocal`, annotations,
a first string; and `x.data`, which who runs the body may give a meaning (`data.py`). Every change keeps its place in the
text, so tracebacks, debuggers and captures inside the body find their lines.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

from ..errors import SourceError
from ..parsing import copy_tree
from .bindings import Scope, bindings

Node = TypeVar("Node", bound=ast.AST)
_DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


def rewrite(
    body: Sequence[ast.stmt], owners: Sequence[ast.AST], declared_global: Iterable[str], filename: str
) -> tuple[list[ast.stmt], Scope]:
    """Copy and change the statements of a body that stands inside `owners`; give them, and their names."""
    copied = [copy_tree(statement) for statement in body]
    for owner in reversed(owners):
        if isinstance(owner, ast.ClassDef):
            copied = _visit_all(_Mangle(owner.name), copied)
            copied = _visit_all(_Super(_first_argument(owners)), copied)
            break
    scope = bindings(copied, declared_global)
    renamed = _visit_all(_Rebind(scope, filename), copied)
    if isinstance(renamed[0], ast.Expr) and isinstance(renamed[0].value, ast.Constant):
        renamed[0] = _at(ast.Pass(), renamed[0])  # or it would bind __doc__
    return renamed, scope


def _visit_all(change: ast.NodeTransformer, body: Sequence[ast.stmt]) -> list[ast.stmt]:
    changed: list[ast.stmt] = []
    for statement in body:
        result = change.visit(statement)
        changed += result if isinstance(result, list) else [result]
    return changed


def _at(node: Node, place: ast.AST) -> Node:
    return ast.fix_missing_locations(ast.copy_location(node, place))


def _first_argument(owners: Sequence[ast.AST]) -> str | None:
    inner = owners[-1]
    if not isinstance(inner, (ast.FunctionDef, ast.AsyncFunctionDef)):
        return None
    named = [*inner.args.posonlyargs, *inner.args.args]
    return named[0].arg if named else None


class _Mangle(ast.NodeTransformer):
    """Write the names that are private to the class around the body as the class writes them."""

    def __init__(self, owner: str) -> None:
        self.prefix = "_" + owner.lstrip("_") if owner.strip("_") else ""

    def _private(self, name: str) -> str:
        return self.prefix + name if name.startswith("__") and not name.endswith("__") and "." not in name else name

    def generic_visit(self, node: ast.AST) -> ast.AST:
        for field in ("id", "attr", "arg", "name", "asname", "rest"):
            name = getattr(node, field, None)
            if isinstance(name, str) and not isinstance(node, ast.keyword):
                setattr(node, field, self._private(name))
        if isinstance(node, (ast.Global, ast.Nonlocal)):
            node.names = [self._private(name) for name in node.names]
        return super().generic_visit(node)

    def visit_alias(self, node: ast.alias) -> ast.alias:
        bound = node.asname or node.name
        if self._private(bound) != bound:
            node.asname = self._private(bound)
        return node

    def visit_ClassDef(self, node: ast.ClassDef) -> list[ast.stmt]:
        for field in (node.decorator_list, node.bases, node.keywords):
            field[:] = [self.visit(part) for part in field]
        private = self._private(node.name)
        if private == node.name:
            return [node]
        # The class keeps its name, which its own private names are made of.
        store = ast.Assign([ast.Name(private, ast.Store())], ast.Name(node.name, ast.Load()))
        return [node, _at(store, node), _at(ast.Delete([ast.Name(node.name, ast.Del())]), node)]


class _Super(ast.NodeTransformer):
    """Give `super()` the two arguments that only a function written directly in a class can do without."""

    def __init__(self, first: str | None) -> None:
        self.first = first

    def visit_Call(self, node: ast.Call) -> ast.AST:
        bare = isinstance(node.func, ast.Name) and node.func.id == "super" and not node.args and not node.keywords
        if bare and self.first is not None:
            node.args = [_at(ast.Name(name, ast.Load()), node) for name in ("__class__", self.first)]
        return self.generic_visit(node)

    def _function(self, node: Any) -> ast.AST:
        # Decorators and defaults belong to the surroundings, but nobody writes super() there.
        around, self.first = self.first, next((arg.arg for arg in (*node.args.posonlyargs, *node.args.args)), None)
        self.generic_visit(node)
        self.first = around
        return node  # type: ignore[no-any-return]

    visit_FunctionDef = visit_AsyncFunctionDef = visit_Lambda = _function

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.ClassDef:
        return node  # its functions have a __class__ of their own


class _Rebind(ast.NodeTransformer):
    """Send what is bound across scopes, by `global`, `nonlocal` or `:=`, to the mappings where these names live."""

    def __init__(self, scope: Scope, filename: str) -> None:
        self.scope = scope
        self.filename = filename
        self.scopes: dict[int, Scope] = {}
        waiting = [scope]
        while waiting:
            one = waiting.pop()
            self.scopes[id(one.node)] = one
            waiting += one.inner

    def _mapping(self, name: str, scope: Scope | None = None) -> str | None:
        """Name the mapping in which a name of this scope lives, if it is not where the interpreter would look."""
        scope = scope or self.scope
        binder = scope.binder(name)
        if binder == "global":
            return ".globals"
        # In the body itself, and where it is only read, Names are asked anyway.
        return ".names" if binder == "body" and scope.kind != "body" and self._nonlocal(name, scope) else None

    @staticmethod
    def _nonlocal(name: str, scope: Scope) -> bool:
        around: Scope | None = scope
        while around is not None:
            if name in around.declared_nonlocal:
                return True
            around = around.parent
        return False

    def _entry(self, mapping: str, name: str, context: ast.expr_context, place: ast.AST) -> ast.Subscript:
        return _at(ast.Subscript(ast.Name(mapping, ast.Load()), ast.Constant(name), context), place)

    def generic_visit(self, node: ast.AST) -> ast.AST:
        scope = self.scopes.get(id(node))
        if scope is None or scope is self.scope:
            return super().generic_visit(node)
        return self._scoped(node, scope)

    def _scoped(self, node: Any, scope: Scope) -> ast.AST:
        """Visit a node that opens a scope: its inside in that scope, the rest where the node stands."""
        outside = {"decorator_list", "args", "returns", "bases", "keywords", "name"}
        comprehension = scope.kind == "comprehension"
        if comprehension:  # the first iterable is evaluated outside
            node.generators[0].iter = self.visit(node.generators[0].iter)
            first, node.generators[0].iter = node.generators[0].iter, ast.Constant(None)
        else:
            for field in outside & set(node._fields):
                self._field(node, field)
        around, self.scope = self.scope, scope
        for field in node._fields:
            if comprehension or field not in outside:
                self._field(node, field)
        self.scope = around
        if comprehension:
            node.generators[0].iter = first
        return node  # type: ignore[no-any-return]

    def _field(self, node: Any, field: str) -> None:
        value = getattr(node, field, None)
        if isinstance(value, list) and value and isinstance(value[0], ast.stmt):
            setattr(node, field, _visit_all(self, value))
        elif isinstance(value, list):
            setattr(node, field, [self.visit(part) if isinstance(part, ast.AST) else part for part in value])
        elif isinstance(value, ast.AST):
            setattr(node, field, self.visit(value))

    def visit_Name(self, node: ast.Name) -> ast.AST:
        mapping = self._mapping(node.id)
        return node if mapping is None else self._entry(mapping, node.id, node.ctx, node)

    def visit_Attribute(self, node: ast.Attribute) -> ast.AST:
        self.generic_visit(node)
        if node.attr != "data":
            return node
        if isinstance(node.ctx, ast.Load):
            return _at(ast.Call(ast.Name(".data", ast.Load()), [node.value], []), node)
        node.value = _at(ast.Call(ast.Name(".data =", ast.Load()), [node.value], []), node)
        return node

    def visit_NamedExpr(self, node: ast.NamedExpr) -> ast.AST:
        binds = self.scope.walrus()
        mapping = self._mapping(node.target.id, binds)
        if mapping is None and self.scope.kind == "comprehension" and binds.kind == "body":
            mapping = ".names"
        value = self.visit(node.value)
        if mapping is None:
            node.value = value
            return node
        bind = ast.Name(f"{mapping} :=", ast.Load())
        return _at(ast.Call(bind, [ast.Constant(node.target.id), value], []), node)

    def visit_Global(self, node: ast.Global) -> ast.stmt:
        return _at(ast.Pass(), node)

    def visit_Nonlocal(self, node: ast.Nonlocal) -> ast.stmt:
        node.names = [name for name in node.names if self.scope.kind != "body" and self._mapping(name) is None]
        return node if node.names else _at(ast.Pass(), node)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST:
        # Functions do not evaluate these; a module would, and would keep them in __annotations__.
        if self.scope.kind == "class" or (self.scope.kind == "function" and node.value is None):
            return self.generic_visit(node)
        if node.value is None:
            return _at(ast.Pass(), node)
        return _at(ast.Assign([self.visit(node.target)], self.visit(node.value)), node)

    def _defining(self, node: Any) -> ast.AST | list[ast.AST]:
        names = (
            [node.name]
            if isinstance(node, _DEFINITIONS)
            else [a.asname or a.name.partition(".")[0] for a in node.names]
        )
        after: list[ast.AST] = []
        for name in names:
            mapping = self._mapping(name)
            if mapping is not None:
                value = ast.Name(name, ast.Load())
                after.append(_at(ast.Assign([self._entry(mapping, name, ast.Store(), node)], value), node))
                after.append(_at(ast.Delete([ast.Name(name, ast.Del())]), node))
        visited = self.generic_visit(node)
        return [visited, *after] if after else visited

    visit_FunctionDef = visit_AsyncFunctionDef = visit_ClassDef = visit_Import = visit_ImportFrom = _defining

    def _capturing(self, node: Any) -> ast.AST:
        name = node.rest if isinstance(node, ast.MatchMapping) else getattr(node.name, "id", node.name)
        if name is not None and self._mapping(name) is not None:
            line = getattr(node, "lineno", 0)
            raise SourceError(
                f"{self.filename}, line {line}: {name!r} is declared global or nonlocal and bound here by `except`, "
                "`match` or `type`, which a block that runs later cannot do. Bind another name, and write "
                f"`{name} = ...`"
            )
        return self.generic_visit(node)

    visit_ExceptHandler = visit_MatchAs = visit_MatchStar = visit_MatchMapping = visit_TypeAlias = _capturing
