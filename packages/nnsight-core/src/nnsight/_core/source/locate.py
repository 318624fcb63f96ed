"""The text that a running function was made from, found in its file and proven to be that.

The whole file is parsed, so that the function's tree has its true lines and columns and the scopes around it are
known; the function is then compiled as it stands and compared with the code that runs. `rewrite.py` compiles the same
tree a second time, changed. Where whoever compiled a function said from what (`given.py`), no file is asked.
"""

from __future__ import annotations
import __future__

import ast
import inspect
import linecache
import warnings
from dataclasses import dataclass
from functools import reduce
from operator import or_
from types import CodeType, FunctionType
from typing import TypeAlias

from ..errors import SourceError
from ..parsing import parse_source
from .given import Given, Scope, given

Definition: TypeAlias = ast.FunctionDef | ast.AsyncFunctionDef

_FUTURES = reduce(or_, (getattr(__future__, name).compiler_flag for name in __future__.all_feature_names))
# A notebook's cell may hold an `await` beside the function.
_CELL = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT


@dataclass
class Located:
    """A function's definition as a tree, the scopes that it stands in, and its lines."""

    definition: Definition
    scopes: tuple[Scope, ...]
    lines: tuple[str, ...]


def locate(function: FunctionType) -> Located:
    """Return the definition of `function`, proven to be the source of the code that it runs.

    Raises `SourceError` where there is no source, or another one than the function was made from.
    """
    code = function.__code__
    who = f"{function.__qualname__} ({code.co_filename}:{code.co_firstlineno})"
    if code.co_name == "<lambda>":
        raise SourceError(
            f"{who} is a lambda: it has no lines of its own, so its operations cannot be named. "
            "Write it as a function with `def`."
        )
    known = given(code)
    if known is not None:
        return _within(known, code)
    lines = _lines(function)
    if not lines:
        raise SourceError(
            f"There is no source to read for {who}: it was compiled from a string, typed into a prompt that keeps no "
            "text, or installed without its .py file. Put the function into a file or a notebook cell."
        )
    changed = SourceError(
        f"The source of {who} is not what is running: the file was edited after it was imported, or an import hook "
        "rewrote it. Restart Python (or reload the module and build the model again), then try once more."
    )
    try:
        tree = parse("".join(lines), code)
    except SyntaxError as error:
        raise changed from error
    found = _find(tree, code)
    if found is None:
        raise changed
    definition, scopes = found
    if not _alike(_compiled(tree, code), code):
        raise changed
    _strip_head(definition)
    own = lines[code.co_firstlineno - 1 : definition.end_lineno]
    return Located(definition, scopes, tuple(line.rstrip("\r\n") for line in own))


def _within(known: Given, code: CodeType) -> Located:
    """Return the definition of code in the text that it was compiled from, which therefore needs no proof."""
    tree = parse("".join(known.lines), code)
    ast.increment_lineno(tree, known.first - 1)
    found = _find(tree, code)
    assert found is not None, "code is told from the text that it was compiled from"
    definition, scopes = found
    _strip_head(definition)
    assert definition.end_lineno is not None, "a parsed statement knows where it ends"
    own = known.lines[code.co_firstlineno - known.first : definition.end_lineno - known.first + 1]
    return Located(definition, (*known.scopes, *scopes), tuple(line.rstrip("\r\n") for line in own))


def _lines(function: FunctionType) -> list[str]:
    filename = function.__code__.co_filename
    linecache.checkcache(filename)
    lines = linecache.getlines(filename, function.__globals__)
    if not lines:
        # Prompts register their text in ways that differ between Pythons; `inspect` knows them.
        try:
            lines = list(inspect.findsource(function)[0])
        except (OSError, TypeError, IndexError):
            return []
    return lines


def parse(text: str, code: CodeType) -> ast.Module:
    """Parse a file as `code` was: with the future statements that were in force."""
    flags = _CELL | (code.co_flags & _FUTURES)
    with warnings.catch_warnings():
        # They were given when the file was imported.
        warnings.simplefilter("ignore")
        tree = parse_source(text, code.co_filename, flags=flags)
    assert isinstance(tree, ast.Module)
    return tree


def _find(tree: ast.Module, code: CodeType) -> tuple[Definition, tuple[Scope, ...]] | None:
    """Return the definition whose first line, decorators included, is that of `code`, and the scopes around it."""
    pending: list[tuple[ast.AST, tuple[Scope, ...]]] = [(tree, ())]
    while pending:
        node, scopes = pending.pop()
        if isinstance(node, ast.stmt) and not _first_line(node) <= code.co_firstlineno <= _last_line(node):
            continue
        if isinstance(node, Scope):
            here = node.name == code.co_name and _first_line(node) == code.co_firstlineno
            if here and not isinstance(node, ast.ClassDef):
                return node, scopes
            scopes = (*scopes, node)
        if not isinstance(node, ast.expr):
            pending.extend((child, scopes) for child in ast.iter_child_nodes(node))
    return None


def _first_line(statement: ast.stmt) -> int:
    decorators: list[ast.expr] = getattr(statement, "decorator_list", [])
    return min([statement.lineno, *(decorator.lineno for decorator in decorators)])


def _last_line(statement: ast.stmt) -> int:
    assert statement.end_lineno is not None, "a parsed statement knows where it ends"
    return statement.end_lineno


def _compiled(tree: ast.Module, code: CodeType) -> CodeType | None:
    """Compile a file as it stands and return what its source makes of `code`; the other functions' bodies are dropped.

    The module's own statements matter, for what it imports there is called differently.
    """
    for statement in tree.body:
        if isinstance(statement, Scope) and not _first_line(statement) <= code.co_firstlineno <= _last_line(statement):
            statement.body = [ast.copy_location(ast.Pass(), statement)]
    pending = [_compile(tree, code, _CELL)]
    for made in pending:
        if made.co_name == code.co_name and made.co_firstlineno == code.co_firstlineno:
            return made
        pending.extend(const for const in made.co_consts if isinstance(const, CodeType))
    return None


def _compile(tree: ast.Module, code: CodeType, flags: int = 0) -> CodeType:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        flags |= code.co_flags & _FUTURES
        made: CodeType = compile(tree, code.co_filename, "exec", flags=flags, dont_inherit=True)
    return made


def _strip_head(definition: Definition) -> None:
    """Drop what was evaluated when the function was made and belongs to the function object: none of it is code."""
    definition.decorator_list, definition.returns = [], None
    vars(definition)["type_params"] = []  # from Python 3.12 on
    arguments = definition.args
    arguments.defaults, arguments.kw_defaults = [], [None] * len(arguments.kwonlyargs)
    for argument in ast.walk(arguments):
        if isinstance(argument, ast.arg):
            argument.annotation = None


def compile_in_place(located: Located, code: CodeType, extra: tuple[str, ...]) -> CodeType:
    """Compile the definition where it stands, so that it closes over what `code` closes over, and over `extra`.

    The scopes around it are rebuilt empty: they mangle private names, give `super()` its class, and make qualified
    names come out right. The closed-over names are parameters of the innermost function among them.
    """
    names = [scope.name for scope in located.scopes] + [located.definition.name]
    functions = [at for at, scope in enumerate(located.scopes) if not isinstance(scope, ast.ClassDef)]
    parameters = ["", *("" for _ in located.scopes)]
    parameters[functions[-1] + 1 if functions else 0] = ", ".join((*code.co_freevars, *extra))
    # The factory declares the outermost name global, or every qualified name would begin with the factory's own.
    text = [f"def factory({parameters[0]}):"]
    if functions or names[0] not in code.co_freevars:
        text.append(f" global {names[0]}")
    for depth, scope in enumerate(located.scopes, start=1):
        head = f"class {scope.name}:" if isinstance(scope, ast.ClassDef) else f"def {scope.name}({parameters[depth]}):"
        text.append(" " * depth + head)
    text.append(" " * (len(located.scopes) + 1) + "pass")
    tree = parse("\n".join(text), code)
    innermost: ast.AST = tree.body[0]
    for _ in located.scopes:
        innermost = innermost.body[-1]  # type: ignore[attr-defined]
    innermost.body[-1] = located.definition  # type: ignore[attr-defined]
    made = _compile(tree, code)
    for name in ["factory", *names]:
        made = next(const for const in made.co_consts if isinstance(const, CodeType) and const.co_name == name)
    return made


_NAMES = ("co_argcount", "co_kwonlyargcount", "co_freevars", "co_cellvars")
_BODY = ("co_code", "co_names", "co_varnames")


def _alike(one: object, other: object) -> bool:
    """Say whether two codes, or two constants of them, do the same; lines, flags and file names are not compared."""
    if isinstance(one, CodeType) and isinstance(other, CodeType):
        if not all(getattr(one, part) == getattr(other, part) for part in _NAMES):
            return False
        if _asserts_rewritten(other):
            # pytest rewrote the assertions of this function, so its code cannot be that of its source.
            inner = ([const for const in code.co_consts if isinstance(const, CodeType)] for code in (one, other))
            return set(one.co_names) <= set(other.co_names) and all(map(_alike, *inner))
        return all(getattr(one, part) == getattr(other, part) for part in _BODY) and _alike(
            one.co_consts, other.co_consts
        )
    if isinstance(one, tuple) and isinstance(other, tuple):
        return len(one) == len(other) and all(map(_alike, one, other))
    if isinstance(one, frozenset):
        return one == other
    return type(one) is type(other) and repr(one) == repr(other)


def _asserts_rewritten(code: CodeType) -> bool:
    return any(name.startswith("@py") for name in (*code.co_names, *code.co_varnames))
