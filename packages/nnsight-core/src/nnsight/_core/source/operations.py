"""The calls in a function's body: how they are named, and how each is handed to a callable that stands in for it.

A call `f(x)` becomes `row[3](f, x)`: Python still evaluates `f`, then `x`, in the function's own frame, and nothing
else about the body changes. Names follow the text: `self.c_proj(x)` is `self_c_proj_0`, the second one `self_c_proj_1`,
inner calls before outer ones. `locate.py` brings the tree; `rewrite.py` compiles what is made of it here.
"""

from __future__ import annotations

import ast
import sys
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from typing import TypeVar

from ..parsing import parse_source

_Node = TypeVar("_Node", bound=ast.AST)
Span = tuple[int, int, int, int]
"""Line, last line, column and last column, as the fields of `Operation`."""

# These read or write the frame that calls them. Through a stand-in they would find the stand-in's frame.
_FRAME_READERS = {"super", "locals", "globals", "eval", "exec", "breakpoint"}
_FRAME_READERS_WITHOUT_ARGUMENTS = {"vars", "dir"}
_DOTTED_FRAME_READERS = {"sys._getframe", "inspect.currentframe", "inspect.stack", "pdb.set_trace", "warnings.warn"}

# Python before 3.12 places what stands inside an f-string wrongly.
_PLACES_IN_FSTRINGS = sys.version_info >= (3, 12)
# Python before 3.11 compiles a call with keywords as a plain call, even on an attribute.
_METHODS_TAKE_KEYWORDS = sys.version_info >= (3, 11)


@dataclass(frozen=True)
class Operation:
    """One call in a function's body.

    Lines are those of the file, columns are UTF-8 bytes as in `ast`. The span runs from the name that is called to the
    closing parenthesis, so in a chain over several lines each call has its own line.
    """

    name: str
    """Unique in the function, and a valid identifier: `self_c_proj_0`."""
    index: int
    """Its place in the row of callables."""
    callee: str
    """What is called, as one line of source: `self.c_proj`."""
    text: str
    """The whole call, as one line of source: `self.c_proj(attn_output)`."""
    lineno: int
    end_lineno: int
    col_offset: int
    end_col_offset: int


def stem(callee: ast.expr) -> str:
    """Return the name of a callee without its number: the dotted words of it that can be read off the text.

    Subscripts are dropped (`self.h[0]` is `self_h`), a method of something nameless keeps its own name
    (`f(x).sum` is `sum`), and what has no word at all is `call`.
    """
    words: list[str] = []
    node = callee
    while isinstance(node, (ast.Attribute, ast.Subscript)):
        if isinstance(node, ast.Attribute):
            words.append(node.attr)
        node = node.value
    if isinstance(node, ast.Name):
        words.append(node.id)
    return "_".join(reversed(words)) or "call"


class HandOver(ast.NodeTransformer):
    """Replace every call of a body by a call of the callable that stands in for it, and keep what was found.

    One thing does change: where Python itself refuses the arguments (`f(**3)`), its message names the stand-in.

    `row` is the variable that holds the callables; `taken` are the variables that the function binds itself, behind
    which a builtin of that name is hidden.
    """

    def __init__(self, row: str, taken: Collection[str]) -> None:
        self.operations: list[Operation] = []
        self._row = row
        self._taken = taken
        self._counts: Counter[str] = Counter()
        self._in_class_body = False
        self._fstring: Span | None = None

    def visit_Call(self, node: ast.Call) -> ast.expr:
        if self._reads_frame(node):
            self.generic_visit(node)
            return self._without_row(node)
        callee, text = ast.unparse(node.func), ast.unparse(node)
        self.generic_visit(node)
        word = stem(node.func)
        name, index = f"{word}_{self._counts[word]}", len(self.operations)
        self._counts[word] += 1
        self.operations.append(Operation(name, index, callee, text, *(self._fstring or _span(node))))
        return self._handed_over(node, index)

    def _handed_over(self, node: ast.Call, index: int) -> ast.Call:
        row = ast.copy_location(ast.Name(self._row, ast.Load()), node.func)
        place = ast.copy_location(ast.Constant(index), node.func)
        stand_in = ast.copy_location(ast.Subscript(row, place, ast.Load()), node.func)
        call = ast.copy_location(ast.Call(stand_in, [node.func, *node.args], node.keywords), node)
        if _compiled_as_method(node):
            # Python reports such a call on the line of the method's name. Ours is no longer one, so say it.
            call.lineno, _, call.col_offset, _ = _span(node)
        return call

    def _reads_frame(self, node: ast.Call) -> bool:
        if isinstance(node.func, ast.Name):
            name = node.func.id
            reads = name in _FRAME_READERS or (
                name in _FRAME_READERS_WITHOUT_ARGUMENTS and not node.args and not node.keywords
            )
            return reads and name not in self._taken
        return isinstance(node.func, ast.Attribute) and ast.unparse(node.func) in _DOTTED_FRAME_READERS

    def _without_row(self, node: ast.Call) -> ast.expr:
        """Hide our variable from a function that lists its own; a class body lists its namespace, where it is not."""
        name = node.func.id if isinstance(node.func, ast.Name) else ""
        if self._in_class_body or name not in {"locals", "vars", "dir"}:
            return node
        if name == "dir":
            frame = f"[name for name in 0 if name != {self._row!r}]"
        else:
            frame = f"{{name: value for name, value in 0 if name != {self._row!r}}}"
        listing = parse_source(frame, mode="eval").body
        assert isinstance(listing, (ast.ListComp, ast.DictComp))
        listed: ast.expr = node
        if name != "dir":
            listed = ast.Call(ast.Attribute(node, "items", ast.Load()), [], [])
        listing.generators[0].iter = listed
        for part in ast.walk(listing):
            if part is not node and isinstance(part, (ast.expr, ast.keyword)):
                ast.copy_location(part, node)
        return listing

    def visit_JoinedStr(self, node: ast.JoinedStr) -> ast.AST:
        outer = self._fstring
        if not _PLACES_IN_FSTRINGS:
            self._fstring = outer or _extent(node)
        self.generic_visit(node)
        self._fstring = outer
        return node

    def visit_Dict(self, node: ast.Dict) -> ast.AST:
        for at, key in enumerate(node.keys):
            node.keys[at] = None if key is None else self.visit(key)
            node.values[at] = self.visit(node.values[at])
        return node

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST:
        node.target = self.visit(node.target)
        if node.value is not None:
            node.value = self.visit(node.value)
        return node

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        return self._nested(node)

    def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> ast.AST:
        return self._nested(node)

    def _nested(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> ast.AST:
        """Its decorators and defaults belong to the body around it. Annotations stay: they are no part of a forward."""
        node.decorator_list = [self.visit(decorator) for decorator in node.decorator_list]
        self.visit(node.args)
        self.body(node)
        return node

    def visit_Lambda(self, node: ast.Lambda) -> ast.AST:
        self.visit(node.args)
        in_class_body, self._in_class_body = self._in_class_body, False
        node.body = self.visit(node.body)
        self._in_class_body = in_class_body
        return node

    def visit_arg(self, node: ast.arg) -> ast.AST:
        return node

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.AST:
        node.decorator_list = [self.visit(decorator) for decorator in node.decorator_list]
        node.bases = [self.visit(base) for base in node.bases]
        node.keywords = [self.visit(keyword) for keyword in node.keywords]
        in_class_body, self._in_class_body = self._in_class_body, True
        node.body = [self.visit(statement) for statement in node.body]
        self._in_class_body = in_class_body
        return node

    def visit_TypeAlias(self, node: _Node) -> _Node:
        return node

    def body(self, function: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        """Hand over the calls of the statements of `function`, and leave its head alone."""
        in_class_body, self._in_class_body = self._in_class_body, False
        function.body = [self.visit(statement) for statement in function.body]
        self._in_class_body = in_class_body


def _extent(node: ast.expr) -> Span:
    end_lineno, end_col_offset = node.end_lineno, node.end_col_offset
    assert end_lineno is not None and end_col_offset is not None, "a parsed expression knows where it ends"
    return node.lineno, end_lineno, node.col_offset, end_col_offset


def _span(node: ast.Call) -> Span:
    """Return where a call stands: from the name that is called, not from the start of the chain it ends."""
    _, end_lineno, _, end_col_offset = _extent(node)
    lineno, name_ends, col_offset, column = _extent(node.func)
    if isinstance(node.func, ast.Attribute):
        lineno, col_offset = name_ends, max(0, column - len(node.func.attr.encode()))
    return lineno, end_lineno, col_offset, end_col_offset


def _compiled_as_method(node: ast.Call) -> bool:
    """Say whether CPython's compiler fuses the attribute and the call; see `maybe_optimize_method_call` in it."""
    if not isinstance(node.func, ast.Attribute) or any(isinstance(argument, ast.Starred) for argument in node.args):
        return False
    if node.keywords and not _METHODS_TAKE_KEYWORDS:
        return False
    return all(keyword.arg is not None for keyword in node.keywords)
