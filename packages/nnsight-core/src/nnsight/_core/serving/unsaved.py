"""What a block made where it ran and did not save, though its text looks as if it meant to: said, with what to write instead.

One idea: two lines look as if they kept something and do not. `a, b = x.save()` saves the pair, which no name holds; and what
is put into a list from outside the block is put into the copy that travelled. Both can be seen in the text of the block.
"""

from __future__ import annotations

import ast
import warnings
import weakref
from collections.abc import Collection, Iterable, Iterator

from ..blocks import Block, Body
from ..errors import NNsightWarning

_PUTS = frozenset("append extend insert add update setdefault appendleft".split())
_HOLDS = (list, dict, set)

_known: weakref.WeakKeyDictionary[Block, tuple[dict[str, int], dict[str, int]]] = weakref.WeakKeyDictionary()


def warn_of_unsaved(bodies: Iterable[Body], saved: Collection[str]) -> None:
    """Warn, once for each line, of what blocks will have meant to bring back.

    Args:
        bodies: the blocks, which have run.
        saved: the names that came back.
    """
    looked: dict[Block, tuple[dict[str, int], dict[str, int]]] = {}
    for body in bodies:
        found = looked.get(body.block)
        if found is None:
            found = looked[body.block] = _look(body.block)
        if found != ({}, {}):
            _warn_of(body, saved, *found)


def _look(block: Block) -> tuple[dict[str, int], dict[str, int]]:
    found = _known.get(block)
    if found is None:
        found = _known[block] = (dict(_taken_apart(block)), dict(_filled(block)))
    return found


def _warn_of(body: Body, saved: Collection[str], apart: dict[str, int], filled: dict[str, int]) -> None:
    for name, line in apart.items():
        if name not in saved:
            _warn(
                body,
                line,
                f"`{name}` is a part of what was saved here, and did not come back: what a name holds comes back if it was "
                f"saved itself. Save the whole under one name (`both = x.save()`), or each part (`nnsight.save({name})`).",
            )
    for name, line in filled.items():
        if name not in saved and type(body.outer.get(name)) in _HOLDS:
            kind = type(body.outer[name]).__name__
            _warn(
                body,
                line,
                f"`{name}` is a {kind} from outside the block, which ran elsewhere with a copy of it, and what was put into "
                f"that did not come back. Make it in the block and save it (`{name} = nnsight.save({kind}())`), or save it "
                f"there (`nnsight.save({name})`).",
            )


def _warn(body: Body, line: int, text: str) -> None:
    warnings.warn_explicit(text, NNsightWarning, body.filename, line, registry=body.block.warned)


def _taken_apart(block: Block) -> Iterator[tuple[str, int]]:
    for node in _inside(block):
        if isinstance(node, ast.Assign) and _saves(node.value):
            for target in node.targets:
                if isinstance(target, (ast.Tuple, ast.List)):
                    yield from ((part.id, node.lineno) for part in target.elts if isinstance(part, ast.Name))


def _saves(value: ast.expr) -> bool:
    if not isinstance(value, ast.Call):
        return False
    called = value.func
    return (called.attr if isinstance(called, ast.Attribute) else getattr(called, "id", "")) == "save"


def _filled(block: Block) -> Iterator[tuple[str, int]]:
    for node in _inside(block):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in _PUTS:
            if isinstance(node.func.value, ast.Name):
                yield node.func.value.id, node.lineno
        elif isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Store) and isinstance(node.value, ast.Name):
            yield node.value.id, node.lineno


def _inside(block: Block) -> Iterator[ast.AST]:
    for statement in block.found.node.body:
        yield from ast.walk(statement)
