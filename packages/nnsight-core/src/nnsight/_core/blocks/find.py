"""The syntax tree of the `with` that a frame is entering.

The one idea: an instruction knows the stretch of text that it was made from (its line only, on 3.10 and under `-X
no_debug_ranges`), and where several `with` items share a stretch, their entering instructions come in the order of
the text. What the block needs and binds is left to `bindings.py`.

relies on: the place of the entering instruction is the statement's up to 3.12, the context expression's from 3.13 on.
"""

from __future__ import annotations

import ast
import dis
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import CodeType, FrameType

from ..errors import SourceError
from ..parsing import parse_source
from .heads import after_enter, enters
from .lines import lines_of

Item = tuple[ast.With, int, tuple[ast.AST, ...]]
Place = tuple[int | None, ...]


@dataclass(frozen=True)
class Found:
    """A `with` statement, the item of it that is being entered, and the classes and functions that stand around it."""

    node: ast.With
    index: int
    owners: tuple[ast.AST, ...]
    lines: Sequence[str]
    filename: str

    @property
    def item(self) -> ast.withitem:
        """The item that is being entered."""
        return self.node.items[self.index]

    @property
    def items_before(self) -> list[ast.withitem]:
        """The items of the same `with` that were entered already; they are left before the body runs."""
        return self.node.items[: self.index]

    @property
    def items_after(self) -> list[ast.withitem]:
        """The items of the same `with` that belong to the body."""
        return self.node.items[self.index + 1 :]


class _Text:
    """All `with` items of one text, in its order, by the places that their entering instructions may have."""

    def __init__(self, lines: Sequence[str], filename: str) -> None:
        self.lines = lines
        self.items: dict[Place, list[Item]] = {}
        for node, owners in _withs(parse_source("".join(lines), filename), ()):
            for index, item in enumerate(node.items):
                of = item.context_expr if sys.version_info >= (3, 13) else node
                for place in ((of.lineno, of.end_lineno, of.col_offset, of.end_col_offset), (of.lineno,)):
                    self.items.setdefault(place, []).append((node, index, owners))


_texts: dict[str, _Text] = {}


def find_with(frame: FrameType) -> Found:
    """Find the `with` statement whose context is being entered in `frame`.

    SourceError if the frame is not entering a `with`, or if the text is not to be had or has changed.
    """
    code, at = frame.f_code, frame.f_lasti
    entered = after_enter(code, at)
    if entered is None:
        raise SourceError(
            f"{code.co_filename}, line {frame.f_lineno}: this context was entered by `__enter__()`, an ExitStack or "
            "`async with`, so there is no block of its own to read. Write `with ...:` around the block"
        )
    filename = code.co_filename
    text = _text(lines_of(frame), filename)
    place, *after = _places(code, [at, *(other for other in enters(code) if other >= entered)])
    items = text.items.get(place)
    if items is None:
        raise changed(filename, frame.f_lineno)
    # Counted from the end: a captured body may hold the last items of a `with` only (see body.py). The remainder,
    # because what stands in a `finally` is compiled more than once.
    node, index, owners = items[-1 - after.count(place) % len(items)]
    return Found(node, index, owners, text.lines, filename)


def changed(filename: str, line: int) -> SourceError:
    """Give the error for text that is not what the running code was compiled from."""
    return SourceError(
        f"the text of {filename!r} is not what is running: there is no such `with` at line {line} any more. The file "
        "changed since it was imported, or the code was rewritten. Import it again, or restart the interpreter"
    )


def _text(lines: Sequence[str], filename: str) -> _Text:
    known = _texts.get(filename)
    if known is not None and (known.lines is lines or known.lines == lines):
        return known
    try:
        read = _Text(lines, filename)
    except SyntaxError as error:
        raise changed(filename, error.lineno or 0) from error
    _texts[filename] = read
    return read


def _withs(node: ast.AST, owners: tuple[ast.AST, ...]) -> Iterator[tuple[ast.With, tuple[ast.AST, ...]]]:
    if isinstance(node, ast.With):
        yield node, owners
    elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
        owners = (*owners, node)
    elif isinstance(node, ast.expr):
        return  # no statement stands in an expression
    for child in ast.iter_child_nodes(node):
        yield from _withs(child, owners)


def _places(code: CodeType, offsets: Sequence[int]) -> list[Place]:
    if sys.version_info >= (3, 11):
        spans = list(code.co_positions())
        if spans[offsets[0] // 2][2] is not None:
            return [spans[at // 2] for at in offsets]
    lines = list(dis.findlinestarts(code))
    return [([line for start, line in lines if start <= at][-1],) for at in offsets]
