"""Which names each scope of a body binds, reads and declares.

The one idea: one walk over the body, with a `Scope` for each function, class and comprehension in it, by the language
reference's rules of naming and binding (section 4.2). Changing the tree accordingly is left to `rewrite.py`.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

_COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)


class Scope:
    """One scope: the body itself, or a function, a class or a comprehension in it."""

    def __init__(self, kind: str, node: ast.AST | None = None, parent: Scope | None = None) -> None:
        self.kind = kind  # body, function, class or comprehension
        self.node = node
        self.parent = parent
        self.inner: list[Scope] = []
        self.bound: set[str] = set()
        self.read: set[str] = set()
        self.declared_global: set[str] = set()
        self.declared_nonlocal: set[str] = set()
        if parent is not None:
            parent.inner.append(self)

    def owns(self, name: str) -> bool:
        """Tell whether `name` is a variable of this very scope."""
        return name in self.bound and name not in self.declared_global and name not in self.declared_nonlocal

    def binder(self, name: str) -> str:
        """Tell whose variable a name of this scope is: "own" of a scope inside the body, the "body"'s, or "global"."""
        scope: Scope | None = self
        while scope is not None:
            if name in scope.declared_global:
                return "global"
            if scope.kind == "body":
                break
            # The variables of a class are seen by nothing that stands inside it.
            if scope.owns(name) and (scope is self or scope.kind != "class"):
                return "own"
            scope = scope.parent
        return "body"

    def walrus(self) -> Scope:
        """Give the scope in which `name := value` binds, when it stands in this one."""
        scope = self
        while scope.kind == "comprehension" and scope.parent is not None:
            scope = scope.parent
        return scope

    def wanted(self) -> set[str]:
        """Give the names that this scope, or one inside it, may look for in its surroundings."""
        names = set(self.read) | self.declared_nonlocal
        for scope in self.inner:
            names |= scope.wanted() - ({"__class__"} if self.kind == "class" else set())
        if self.kind in ("function", "comprehension"):
            names = {name for name in names if not self.owns(name)}
        return names - self.declared_global

    def stored(self) -> set[str]:
        """Give the body's variables that this scope, or one inside it, binds."""
        names = {name for name in self.bound if self.binder(name) == "body"}
        return names.union(*(scope.stored() for scope in self.inner))


def bindings(body: Iterable[ast.AST], declared_global: Iterable[str] = ()) -> Scope:
    """Walk the statements of a body; `declared_global` are the names that its function declares so."""
    scope = Scope("body")
    scope.declared_global.update(declared_global)
    walk = _Walk(scope)
    for node in body:
        walk.visit(node)
    return scope


def declared_global(owners: Sequence[ast.AST]) -> set[str]:
    """Give the names that the innermost of the functions and classes around a body declares global."""
    if not owners:
        return set()
    return {name for node in _here(owners[-1]) if isinstance(node, ast.Global) for name in node.names}


def _here(owner: ast.AST) -> Iterator[ast.AST]:
    for node in ast.iter_child_nodes(owner):
        yield node
        if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.expr)):
            yield from _here(node)


class _Walk(ast.NodeVisitor):
    def __init__(self, scope: Scope) -> None:
        self.scope = scope

    def _all(self, nodes: Iterable[ast.AST | None]) -> None:
        for node in nodes:
            if node is not None:
                self.visit(node)

    def _inside(self, kind: str, node: ast.AST, nodes: Iterable[ast.AST], bound: Iterable[str] = ()) -> None:
        around, self.scope = self.scope, Scope(kind, node, self.scope)
        self.scope.bound.update(bound)
        self._all(nodes)
        self.scope = around

    def visit_Name(self, node: ast.Name) -> None:
        if not isinstance(node.ctx, ast.Load):
            self.scope.bound.add(node.id)
        if not isinstance(node.ctx, ast.Store):  # `del` too needs the name to be there
            self.scope.read.add(node.id)

    def visit_AugAssign(self, node: ast.AugAssign) -> None:
        if isinstance(node.target, ast.Name):
            self.scope.read.add(node.target.id)
        self.generic_visit(node)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        if node.value is None and isinstance(node.target, ast.Name):
            self.visit(node.annotation)
        else:
            self.generic_visit(node)

    def visit_NamedExpr(self, node: ast.NamedExpr) -> None:
        self.scope.walrus().bound.add(node.target.id)
        self.visit(node.value)

    def visit_FunctionDef(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        self.scope.bound.add(node.name)
        self._all(node.decorator_list)
        self._parametrized(node, lambda: self._function(node, node.args, [*_annotations(node)], node.body))

    visit_AsyncFunctionDef = visit_FunctionDef

    def visit_Lambda(self, node: ast.Lambda) -> None:
        self._function(node, node.args, [], [node.body])

    def _function(self, node: ast.AST, args: ast.arguments, around: Sequence[ast.AST], body: Sequence[ast.AST]) -> None:
        self._all([*args.defaults, *args.kw_defaults, *around])
        self._inside("function", node, body, (arg.arg for arg in _arguments(args)))

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        self.scope.bound.add(node.name)
        self._all(node.decorator_list)

        def inside() -> None:
            self._all([*node.bases, *node.keywords])
            self._inside("class", node, node.body)

        self._parametrized(node, inside)

    def visit_TypeAlias(self, node: Any) -> None:  # 3.12
        self.visit(node.name)
        self._parametrized(node, lambda: self._inside("function", node.value, [node.value]))

    def _parametrized(self, node: Any, inside: Callable[[], None]) -> None:
        """Go inside a definition, through the scope of its type parameters (3.12) if it has any."""
        parameters = getattr(node, "type_params", [])
        if not parameters:
            inside()
            return
        around, self.scope = self.scope, Scope("function", parameters[0], self.scope)
        self.scope.bound.update(parameter.name for parameter in parameters)
        self._all(parameters)
        inside()
        self.scope = around

    def _comprehension(self, node: ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp) -> None:
        first, *others = node.generators
        self.visit(first.iter)
        results = [node.key, node.value] if isinstance(node, ast.DictComp) else [node.elt]
        self._inside("comprehension", node, [first.target, *first.ifs, *others, *results])

    visit_ListComp = visit_SetComp = visit_DictComp = visit_GeneratorExp = _comprehension

    def visit_Global(self, node: ast.Global) -> None:
        self.scope.declared_global.update(node.names)

    def visit_Nonlocal(self, node: ast.Nonlocal) -> None:
        if self.scope.kind != "body":
            self.scope.declared_nonlocal.update(node.names)

    def visit_alias(self, node: ast.alias) -> None:
        if node.name != "*":
            self.scope.bound.add(node.asname or node.name.partition(".")[0])

    def _capturing(self, node: Any) -> None:
        name = node.rest if isinstance(node, ast.MatchMapping) else node.name
        if name is not None:
            self.scope.bound.add(name)
        self.generic_visit(node)

    visit_ExceptHandler = visit_MatchAs = visit_MatchStar = visit_MatchMapping = _capturing


def _arguments(args: ast.arguments) -> Iterator[ast.arg]:
    yield from (*args.posonlyargs, *args.args, *args.kwonlyargs)
    yield from (arg for arg in (args.vararg, args.kwarg) if arg is not None)


def _annotations(node: ast.FunctionDef | ast.AsyncFunctionDef) -> Iterator[ast.expr]:
    yield from (arg.annotation for arg in _arguments(node.args) if arg.annotation is not None)
    if node.returns is not None:
        yield node.returns
