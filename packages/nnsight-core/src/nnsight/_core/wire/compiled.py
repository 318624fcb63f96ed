"""Code from the text of one definition alone.

The one idea: a definition is compiled inside a function whose parameters are the variables that it closes over, inside a
class of the right name if it stood in one, so that closures, `super()` and private names mean what they meant; then its
code is taken out. Values are no part of this.
"""

from __future__ import annotations
import __future__

import ast
import copy
from collections.abc import Iterable, Sequence
from types import CodeType
from typing import Any

from ..parsing import parse_source

FUTURES = __future__.annotations.compiler_flag | __future__.barry_as_FLUFL.compiler_flag
CELLS, MAKE, BASES, VALUES = ".cells", ".make", ".bases", ".values"  # no name in a program begins with a dot


def first_line(node: Any) -> int:
    """Return the first line of a definition, that of a decorator if it has one."""
    decorated: list[ast.expr] = getattr(node, "decorator_list", [])
    return min(int(node.lineno), *(one.lineno for one in decorated)) if decorated else int(node.lineno)


def parse_at(lines: Sequence[str], first: int, place: Sequence[int] | None = None) -> tuple[Any, list[str]]:
    """Read a definition from its lines, of which the first has the number `first`.

    Args:
        lines: whole lines, as they stand in their file.
        first: the number of the first.
        place: for a lambda, where in them it stands: first and last line, and the columns in bytes.

    Returns:
        The definition, and the text that it was read from, whose first line has the number `first - 1`.
    """
    if place is not None:
        return _parse_lambda(lines, first, place)
    statements, text = parse_block(lines, first)
    return statements[0], text


def parse_block(lines: Sequence[str], first: int) -> tuple[list[ast.stmt], list[str]]:
    """Read statements from their lines, as they are indented; see `parse_at`."""
    indented = lines[0][:1] in " \t"
    text = ["if 1:\n" if indented else "\n", *lines]
    tree = parse_source("".join(text))
    ast.increment_lineno(tree, first - 2)
    head: Any = tree.body[0]
    return (head.body if indented else tree.body), text


def _parse_lambda(lines: Sequence[str], first: int, place: Sequence[int]) -> tuple[Any, list[str]]:
    line, column, end_line, end_column = place
    kept = [line.encode() for line in lines[line - first : end_line - first + 1]]
    kept[-1] = kept[-1][:end_column]
    # A parenthesis lets it go on over several lines; the line above holds it, so that the columns stay.
    kept[0] = b" " * column + kept[0][column:]
    text = ["(\n", *(part.decode() for part in kept), "\n)"]
    tree = parse_source("".join(text), mode="eval")
    ast.increment_lineno(tree, line - 2)
    return tree.body, text


def compile_function(
    node: Any, frees: Iterable[str], owner: str | None, qualname: str, filename: str, flags: int
) -> CodeType:
    """Compile one function, and return its code.

    Args:
        node: its definition.
        frees: the variables that it closes over.
        owner: the class around it, if any.
        qualname: its qualified name.
        filename, flags: as for `compile`.

    Raises:
        SyntaxError, LookupError: the text is not what it should be.
    """
    bare = _bare(node)
    statement = ast.copy_location(ast.Expr(bare), bare) if isinstance(bare, ast.Lambda) else bare
    # In a class even without an owner: there a function that calls itself does not close over itself. Names are not
    # private to a class that is called so.
    owner = owner or "_"
    code = _compile(_function(CELLS, frees, [_class(owner, [statement])]), node, filename, flags)
    name = getattr(node, "name", "<lambda>")
    return renamed(_inner(code, name, skip=owner), f"{CELLS}.<locals>.{owner}.{name}", qualname)


def compile_class(
    node: ast.ClassDef, frees: Iterable[str], valued: Iterable[str], filename: str, flags: int, in_module: bool
) -> CodeType:
    """Compile a function that makes one class, `.make(bases, values)`, and return its code.

    Args:
        node: the class's definition; decorators and keywords are evaluated by the function, bases are not.
        frees: the variables that it closes over, and those that it reads from a function around it.
        valued: the names in it whose values are given, and not computed.
        filename, flags: as for `compile`.
        in_module: whether it stands in a module itself, in no function or class.
    """
    given = set(valued)
    made = copy.copy(node)
    made.bases = [ast.Starred(ast.Name(BASES, ast.Load()), ast.Load())]
    made.body = [_valued(one, given) for one in node.body]
    answer = ast.Return(ast.Name(node.name, ast.Load()))
    inside: list[ast.stmt] = [made, answer]
    if in_module:
        inside.insert(0, ast.Global([node.name]))
    make = _function(MAKE, [BASES, VALUES], inside)
    return _inner(_compile(_function(CELLS, frees, [make]), node, filename, flags), MAKE)


def target_of(statement: ast.stmt) -> str | None:
    """Return the name that a plain assignment in a class binds."""
    if isinstance(statement, ast.AnnAssign) and statement.value is not None:
        return statement.target.id if isinstance(statement.target, ast.Name) else None
    if isinstance(statement, ast.Assign) and len(statement.targets) == 1:
        target = statement.targets[0]
        return target.id if isinstance(target, ast.Name) else None
    return None


def renamed(code: CodeType, before: str, after: str) -> CodeType:
    """Return code in which the qualified names of what it defines begin otherwise."""
    constants = tuple(
        renamed(one, before, after)
        if isinstance(one, CodeType)
        else after + one[len(before) :]
        if isinstance(one, str) and one.startswith(before)
        else one
        for one in code.co_consts
    )
    changed: dict[str, Any] = {"co_consts": constants}
    qualified = getattr(code, "co_qualname", "")  # 3.11
    if qualified.startswith(before):
        changed["co_qualname"] = after + qualified[len(before) :]
    return code.replace(**changed)


#: What the qualified name of a class begins with when `compile_class` has compiled it.
MADE_IN = f"{CELLS}.<locals>.{MAKE}.<locals>."


def _valued(statement: ast.stmt, given: set[str]) -> ast.stmt:
    name = target_of(statement)
    if name not in given or not isinstance(statement, (ast.Assign, ast.AnnAssign)) or statement.value is None:
        return statement
    changed = copy.copy(statement)
    place = statement.value
    entry = ast.Subscript(ast.Name(VALUES, ast.Load()), ast.Constant(name), ast.Load())
    changed.value = ast.fix_missing_locations(ast.copy_location(entry, place))
    return changed


def _bare(node: Any) -> Any:
    """Leave out what belongs to the surroundings of a function: defaults, annotations, decorators."""
    bare = copy.copy(node)
    args = bare.args = copy.copy(node.args)
    args.defaults = [_nothing(one) for one in args.defaults]
    args.kw_defaults = [one and _nothing(one) for one in args.kw_defaults]
    for field in ("posonlyargs", "args", "kwonlyargs"):
        setattr(args, field, [_unannotated(one) for one in getattr(args, field)])
    args.vararg, args.kwarg = (one and _unannotated(one) for one in (args.vararg, args.kwarg))
    if not isinstance(bare, ast.Lambda):
        bare.returns = None
        # They stay, as nothing: the first line of a function is that of its first decorator.
        bare.decorator_list = [_nothing(one) for one in bare.decorator_list]
        if hasattr(bare, "type_params"):
            bare.type_params = []
    return bare


def _nothing(node: ast.expr) -> ast.expr:
    return ast.copy_location(ast.Constant(None), node)


def _unannotated(arg: ast.arg) -> ast.arg:
    return ast.copy_location(ast.arg(arg.arg), arg)


def _function(name: str, parameters: Iterable[str], body: Sequence[ast.stmt]) -> ast.stmt:
    args = ast.arguments([], [ast.arg(one) for one in parameters], None, [], [], None, [])
    made: Any = ast.FunctionDef(name, args, list(body), [], None)
    made.type_params = []
    return made  # type: ignore[no-any-return]


def _class(name: str, body: Sequence[ast.stmt]) -> ast.stmt:
    made: Any = ast.ClassDef(name, [], [], list(body), [])
    made.type_params = []
    return made  # type: ignore[no-any-return]


def _compile(statement: ast.stmt, node: Any, filename: str, flags: int) -> CodeType:
    # Where we add something, it stands where the definition does: nothing of ours is ever shown.
    tree = ast.Module([ast.copy_location(statement, node)], [])
    ast.fix_missing_locations(tree)
    code: CodeType = compile(tree, filename, "exec", flags=flags, dont_inherit=True)
    return code


def _inner(code: CodeType, name: str, skip: str | None = None) -> CodeType:
    for one in code.co_consts:
        if isinstance(one, CodeType):
            if one.co_name == name and skip is None:
                return one
            try:
                return _inner(one, name, None if one.co_name == skip else skip)
            except LookupError:
                continue
    raise LookupError(f"{name!r} is not defined in this text")
