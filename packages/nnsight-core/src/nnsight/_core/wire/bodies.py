"""Captured blocks: their text, and the names that they read.

The one idea: what `blocks` found when it captured a block is said again, so that over there the same code reads and
compiles it, with whatever Python is there. The head of the `with` stays at home.
"""

from __future__ import annotations

import ast
import weakref
from collections.abc import Iterable
from types import ModuleType
from typing import Any, NamedTuple

from ..blocks import Block, Body, Found
from ..blocks.bindings import declared_global
from ..blocks.names import BodyGlobals
from ..errors import WireError
from ..parsing import parse_source
from .compiled import FUTURES, first_line, parse_block
from .decoder import Decoder
from .encoder import Encoder
from .kinds import makes, writes
from .needed import needed
from .spaces import put, put_import, space_of, use
from .texts import Sparse
from .uses import Uses, uses


class _Said(NamedTuple):
    """What a message says of a block, once for all of the bodies that are made of it."""

    step: list[Any]
    used: Uses


@writes(Body)
def _write_body(encoder: Encoder, body: Body) -> int:
    around = _around(body)
    # A loop makes many bodies of one block with the same values around it: then the same is said of each.
    same = likeness(body)
    written = encoder.done.get(same)
    if written is not None:
        return encoder.emit(*encoder.nodes[written])
    blocks: dict[Block, _Said] = encoder.kept.setdefault("blocks", {})
    said = blocks.get(body.block)
    if said is None:
        said = blocks[body.block] = _say(encoder, body.block)
    names = _names(encoder, body, around, said)
    number = encoder.done[same] = encoder.emit("body", *said.step, space_of(encoder, around), names)
    return number


def likeness(body: Body) -> tuple[Any, ...]:
    """Return what a body has in common with those that are made of its block with the same values around it."""
    return body.block, id(_around(body)), *body.outer, *map(id, body.outer.values())


def _around(body: Body) -> dict[str, Any]:
    return body.real.real if isinstance(body.real, BodyGlobals) else body.real


def _say(encoder: Encoder, block: Block) -> _Said:
    known = known_of(block)
    first, lines = known.first, known.lines
    file = encoder.files.add(block.filename, first, lines)
    return _Said([[file, first, first + len(lines) - 1, block.lineno], *known.step], known.used)


class Known:
    """What is written of a block, as far as it is the same in every message: a loop sends one block again and again.

    Attributes:
        first, lines: its first line, and its lines.
        step: what is said of it besides.
        used: what its code may look up.
        bound: the names that it binds before it reads them.
    """

    def __init__(self, block: Block) -> None:
        found, code = block.found, block.code
        self.first, self.lines = _lines(found)
        target = found.item.optional_vars
        self.step: list[Any] = [
            [ast.unparse(target) if target is not None else None, [ast.unparse(item) for item in found.items_after]],
            _owners(found),
            [code.co_name, getattr(code, "co_qualname", code.co_name), code.co_flags & FUTURES],
        ]
        self.used = uses(code)
        self.bound = bound_first(block)


_known: weakref.WeakKeyDictionary[Block, Known] = weakref.WeakKeyDictionary()


def known_of(block: Block) -> Known:
    """Return what is the same of a block in every message."""
    known = _known.get(block)
    if known is None:
        known = _known[block] = Known(block)
    return known


def _names(encoder: Encoder, body: Body, around: dict[str, Any], block: _Said) -> list[Any]:
    """Write the values that the block reads; return those of the function around it."""
    said: list[Any] = []
    used = block.used
    for name in outer_names(body):
        value, chains = body.outer[name], used.names.get(name, [()])
        try:
            with encoder.at(f"`{name}`"):
                use(encoder, value, chains)
                said += [name, encoder.value(value)]
        except WireError:
            if name in used.names:
                raise
            # The block computes names, and so took all there were along.
    for name in global_names(body):
        put(encoder, around, name, used.names[name])
    for one in used.imports:
        put_import(encoder, around, one)
    return said


def outer_names(body: Body) -> list[str]:
    """Return the names around a body that it needs."""
    return sorted(body.outer.keys() - known_of(body.block).bound)


def global_names(body: Body) -> list[str]:
    """Return the names that it may look up past those."""
    known = known_of(body.block)
    return sorted(
        name for name in known.used.names if name not in body.outer and name not in known.bound and name[0] != "."
    )


def bound_first(block: Block) -> set[str]:
    """Return the names that a block binds before it reads them."""
    if block.found.items_after:
        return set()
    wanted = needed(block.found.node.body, block.binds - block.writes)
    private = tuple(name for name in wanted if name.startswith("__"))  # in a class they are bound under longer names
    return {name for name in block.binds - wanted if not (private and name.endswith(private))}


def _lines(found: Found) -> tuple[int, list[str]]:
    """Return the first line of a block, and its lines; what stands before it on the first is blank."""
    body = found.node.body
    first = first_line(body[0])
    lines = list(found.lines[first - 1 : found.node.end_lineno])
    if not getattr(body[0], "decorator_list", None):
        head = lines[0].encode()
        column = body[0].col_offset
        if head[:column].strip():
            lines[0] = " " * column + head[column:].decode()
    return first, lines


def _owners(found: Found) -> list[Any]:
    """Say what of the functions and classes around a block matters: the class, the first argument, the globals."""
    classes = [one.name for one in found.owners if isinstance(one, ast.ClassDef)]
    inner = found.owners[-1] if found.owners else None
    if not isinstance(inner, (ast.FunctionDef, ast.AsyncFunctionDef)):
        return [classes[-1] if classes else None, False, []]
    arguments = [*inner.args.posonlyargs, *inner.args.args]
    first = arguments[0].arg if arguments else None
    return [classes[-1] if classes else None, first, sorted(declared_global(found.owners))]


# -- over there ------------------------------------------------------------------------------------------------------


@makes("body")
def _make_body(decoder: Decoder, step: list[Any]) -> Body:
    *said, space, names = step[1:]
    module = decoder.value([space])
    if not isinstance(module, ModuleType):
        raise WireError("the globals of a block are those of no module")
    before, block = decoder.kept.get("block", (None, None))
    if block is None or before != said:
        block = _block_of(decoder, said)
        decoder.kept["block"] = said, block
    return Body(block, dict(decoder.pairs(names)), vars(module))


def _block_of(decoder: Decoder, said: list[Any]) -> Block:
    [file, first, last, _], *_ = said
    filename, lines = decoder.files.filename(file), decoder.files.cut(file, first, last)
    # Many bodies may be made of one block, in one message and in many: it is compiled once.
    key = (filename, "".join(lines), repr(said[0][1:]), repr(said[1:]))
    block = _blocks.get(key)
    if block is None:
        block = _block(filename, lines, *said)
        if len(_blocks) >= _KEPT:
            _blocks.clear()
        if len(key[1]) <= _LONGEST:
            _blocks[key] = block
    return block


#: Blocks that were compiled, by all that was said of them; as many as are kept, and how many characters they may have.
_blocks: dict[tuple[str, str, str, str], Block] = {}
_KEPT, _LONGEST = 256, 20_000


def _block(
    filename: str, text: list[str], place: list[Any], head: list[Any], owners: list[Any], code: list[Any]
) -> Block:
    [_, first, _, line], [target, items], [name, qualname, flags] = place, head, code
    statements, text = parse_block(text, first)
    lines = dict(enumerate(text, start=first - 1))
    lines.pop(0, None)
    node = with_around(target, items, statements, line)
    found = Found(node, 0, _synthetic(*owners), Sparse(lines), filename)
    return Block(found, code_like(filename, name, qualname, flags), None)


def with_around(target: str | None, items: Iterable[str], body: list[ast.stmt], line: int) -> ast.With:
    """Return the `with` that a block stood under, whose head stayed at home: `line` is where it began."""
    heads = [ast.withitem(ast.Name("_", ast.Load()), _target(target)), *(_item(item) for item in items)]
    node = ast.With(heads, body)
    for one in heads:
        for part in ast.walk(one):
            if isinstance(part, ast.expr):
                part.lineno = part.end_lineno = line
                part.col_offset = part.end_col_offset = 0
    node.lineno, node.col_offset = line, 0
    node.end_lineno, node.end_col_offset = body[-1].end_lineno, body[-1].end_col_offset
    return node


def _target(said: str | None) -> ast.expr | None:
    if said is None:
        return None
    item = _item(f"_ as {said}")
    return item.optional_vars


def _item(said: str) -> ast.withitem:
    statement = parse_source(f"with {said}: pass").body[0]
    assert isinstance(statement, ast.With)
    return statement.items[0]


def _synthetic(owner: str | None, first: str | None | bool, names: list[str]) -> tuple[ast.AST, ...]:
    """Return owners like those that were around the block, as far as they matter."""
    owners: list[ast.AST] = [] if owner is None else [ast.ClassDef(owner, [], [], [], [])]
    if first is not False:
        args = ast.arguments([], [ast.arg(str(first))] if first else [], None, [], [], None, [])
        said: list[ast.stmt] = [ast.Global(names)] if names else [ast.Pass()]
        owners.append(ast.FunctionDef("_", args, said, [], None))
    return tuple(owners)


def code_like(filename: str, name: str, qualname: str, flags: int) -> Any:
    """Return code of the names and the flags that the code around the block had."""
    code = compile("", filename, "exec", flags=flags & FUTURES, dont_inherit=True)
    named = {"co_name": name, "co_qualname": qualname} if hasattr(code, "co_qualname") else {"co_name": name}
    return code.replace(**named)
