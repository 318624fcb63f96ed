"""What code asks of its surroundings, read off its instructions.

The one idea: a global name that is followed by attributes is used for those only, so that of a module just what is used
has to travel.
"""

from __future__ import annotations

import dis
from collections.abc import Iterator
from types import CodeType
from typing import NamedTuple

#: The attributes that are taken of a name, one after the other; empty if it is used itself.
Chain = tuple[str, ...]


class Import(NamedTuple):
    """An import statement."""

    level: int
    module: str
    names: tuple[str, ...]


class Uses(NamedTuple):
    """What code, and all code inside it, may look up."""

    names: dict[str, set[Chain]]
    imports: set[Import]
    #: The same for variables of functions around it.
    frees: dict[str, set[Chain]]


_GLOBAL = frozenset(("LOAD_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS"))
_CHANGED = frozenset(("STORE_GLOBAL", "DELETE_GLOBAL"))
_FREE = frozenset(("LOAD_DEREF", "LOAD_CLASSDEREF", "LOAD_CLOSURE", "LOAD_FROM_DICT_OR_DEREF"))
_ATTRIBUTE = frozenset(("LOAD_ATTR", "LOAD_METHOD"))
_known: dict[int, tuple[CodeType, Uses]] = {}


def uses(code: CodeType, inner: bool = True) -> Uses:
    """Read what code uses; without `inner`, what it uses itself, not in the functions that it defines."""
    if not inner:
        return _read([code])
    known = _known.get(id(code))
    if known is None:
        if len(_known) > 4096:
            _known.clear()
        known = _known[id(code)] = (code, _read(_all(code)))
    return known[1]


def _all(code: CodeType) -> Iterator[CodeType]:
    yield code
    for one in code.co_consts:
        if isinstance(one, CodeType):
            yield from _all(one)


def _read(codes: Iterator[CodeType] | list[CodeType]) -> Uses:
    found = Uses({}, set(), {})
    for code in codes:
        steps = [step for step in dis.get_instructions(code) if step.opname not in ("CACHE", "EXTENDED_ARG")]
        for at, step in enumerate(steps):
            if step.opname in _GLOBAL:
                found.names.setdefault(step.argval, set()).add(_chain(steps, at))
            elif step.opname in _FREE:
                found.frees.setdefault(step.argval, set()).add(_chain(steps, at))
            elif step.opname in _CHANGED:
                found.names.setdefault(step.argval, set())
            elif step.opname == "IMPORT_NAME":
                level, names = steps[at - 2].argval, steps[at - 1].argval
                found.imports.add(Import(level if isinstance(level, int) else 0, step.argval, tuple(names or ())))
    return found


def _chain(steps: list[dis.Instruction], at: int) -> Chain:
    chain = []
    for step in steps[at + 1 :]:
        if step.opname not in _ATTRIBUTE:
            break
        chain.append(step.argval)
    return tuple(chain)
