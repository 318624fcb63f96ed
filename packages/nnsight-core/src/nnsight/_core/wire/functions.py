"""Functions: by import path if they are installed, and by their text if not.

The one idea: text gives the code, and everything else about a function is a value, its globals, cells and defaults among
them; so a function over there shares what it shared here.
"""

from __future__ import annotations

import ast
import types
from collections.abc import Iterable, Sequence
from types import CellType, CodeType, FunctionType
from typing import Any

from ..errors import SourceError, WireError
from ..source.given import Scope, class_called, function_called, give, scopes_of
from . import origin
from .compiled import FUTURES, compile_function, parse_at
from .decoder import Decoder
from .encoder import Encoder
from .kinds import makes, writes
from .located import Located, find_function
from .spaces import put_uses, reference, space_of, use
from .texts import Sparse
from .uses import Chain, uses


@writes(FunctionType)
def _write_function(encoder: Encoder, function: FunctionType) -> int:
    found = origin.find(function)
    if found is not None:
        return reference(encoder, *found)
    method = _in_class(function)
    if method is not None:
        return encoder.emit("attribute", encoder.value(method), function.__name__)
    try:
        where = find_function(function)
    except SourceError as error:
        raise encoder.refusal(
            f"{error}", "write it in a file, a notebook cell or the block itself, or let an installed package hold it"
        ) from None
    return _write_text(encoder, function, where)


def _write_text(encoder: Encoder, function: FunctionType, where: Located) -> int:
    code, node = function.__code__, where.node
    place = None
    if code.co_name == "<lambda>":
        place = [node.lineno, node.col_offset, node.end_lineno, node.end_col_offset]
    file = encoder.files.add(where.filename, where.first, where.lines[where.first - 1 : where.last])
    # Cells can only be given to a function when it is made: they come first, and empty.
    cells = list(zip(code.co_freevars, function.__closure__ or ()))
    number = encoder.emit(
        "function",
        [file, where.first, where.last, place],
        [function.__name__, function.__qualname__, _text_of(function.__module__)],
        [where.owner, code.co_flags & FUTURES],
        space_of(encoder, function.__globals__),
        {name: cell_of(encoder, cell) for name, cell in cells},
    )
    encoder.number(function, number)
    encoder.when_free(lambda: _fill(encoder, number, function))
    used = uses(code)
    for name, cell in cells:
        fill_cell(encoder, cell, name, used.frees.get(name, ()))
    put_uses(encoder, function.__globals__, used)
    return number


def _fill(encoder: Encoder, number: int, function: FunctionType) -> None:
    defaults = encoder.value(function.__defaults__, "its defaults")
    keywords = encoder.value(function.__kwdefaults__, "its defaults")
    extra = dict(vars(function)) or None
    own = FunctionType(function.__code__, {}, None, None, function.__closure__).__doc__
    doc = function.__doc__ if isinstance(function.__doc__, str) and function.__doc__ != own else None
    if (defaults, keywords, extra, doc) != (None, None, None, None):
        encoder.emit("fill", number, [defaults, keywords, encoder.value(extra, "its attributes"), doc])


def cell_of(encoder: Encoder, cell: CellType) -> int:
    """Write a variable that functions share, without its value, and return the number of its step."""
    cells = encoder.kept.setdefault("cells", {})
    if id(cell) not in cells:
        cells[id(cell)] = (encoder.emit("cell"), cell)
    return int(cells[id(cell)][0])


def fill_cell(encoder: Encoder, cell: CellType, name: str, chains: Iterable[Chain]) -> None:
    """Write the value of a shared variable, once; `chains` say what of it is used."""
    try:
        value = cell.cell_contents
    except ValueError:
        return  # it is empty here too
    number = cell_of(encoder, cell)
    with encoder.at(f"closure `{name}`"):
        use(encoder, value, chains)
        if encoder.first_time(("cell", number)):
            encoder.when_free(lambda: _fill_cell(encoder, number, value))


def _fill_cell(encoder: Encoder, number: int, value: Any) -> None:
    encoder.emit("fill", number, encoder.value(value))


def _in_class(function: FunctionType) -> type | None:
    """Return the class of the user's that a function is a method of, if it can be found by name."""
    owner, _, name = function.__qualname__.rpartition(".")
    if not owner or "<locals>" in owner or name != function.__name__:
        return None
    found: Any = types.SimpleNamespace(**function.__globals__)
    for part in owner.split("."):
        found = getattr(found, part, None)
    return found if isinstance(found, type) and vars(found).get(name) is function else None


def _text_of(name: Any) -> str | None:
    return name if isinstance(name, str) else None


# -- over there ------------------------------------------------------------------------------------------------------


@makes("function")
def _make_function(decoder: Decoder, step: list[Any]) -> FunctionType:
    _, [file, first, last, place], [name, qualname, module], [owner, flags], space, said = step[:6]
    filename = decoder.files.filename(file)
    node, text = parse_at(decoder.files.cut(file, first, last), first, place)
    code = compile_function(
        node, [name for name in said if name != "__class__"], owner, qualname, filename, flags & FUTURES
    )
    keep_text(decoder, code, text, place[0] if place else first)
    if place is None:
        give(code, text, first - 1, _scopes(qualname, node.name, owner))
    if sorted(code.co_freevars) != sorted(said):
        raise WireError(f"`{name}` closes over {list(code.co_freevars)} here, and did over {list(said)}")
    cells = tuple(decoder.value([said[one]]) for one in code.co_freevars)
    made = FunctionType(code, vars(decoder.value([space])), name, None, cells)
    made.__qualname__, made.__module__ = qualname, module
    # Nothing is filled where there is nothing to fill, so that it is no error to leave it open.
    decoder.open[len(decoder.made)] = lambda content: _filled(decoder, made, content)
    return made


def _filled(decoder: Decoder, made: FunctionType, content: Any) -> None:
    made.__defaults__, made.__kwdefaults__, extra, doc = decoder.values(content)
    vars(made).update(extra or {})
    made.__doc__ = made.__doc__ if doc is None else doc


def keep_text(decoder: Decoder, code: CodeType, text: Sequence[str], first: int) -> None:
    """Let blocks inside code find their text, which begins one line above `first`."""
    lines = dict(enumerate(text, start=first - 1))
    lines.pop(0, None)
    decoder.files.keep(code, Sparse(lines))


def _scopes(qualname: str, name: str, owner: str | None) -> tuple[Scope, ...]:
    """Return what a function stands in; only its class matters where its qualified name is another function's."""
    scopes = scopes_of(qualname, name)
    if scopes is not None:
        classes = [one.name for one in scopes if isinstance(one, ast.ClassDef)]
        if owner == (classes[-1] if classes else None):
            return scopes
    return (function_called("_"), *([class_called(owner)] if owner is not None else []))


@makes("cell")
def _make_cell(decoder: Decoder, step: list[Any]) -> CellType:
    cell = CellType()
    decoder.open[len(decoder.made)] = lambda content: setattr(cell, "cell_contents", decoder.value(content))
    return cell
