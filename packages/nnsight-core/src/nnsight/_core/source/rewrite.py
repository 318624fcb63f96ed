"""A function equal to another one, whose every call is made by somebody else.

The calls are replaced in the function's tree (`operations.py`) and the tree is compiled where it stood (`locate.py`);
a function object around the new code then shares everything with the old one, and reaches its row of callables through
one more closure cell. The code is made once for each code object and shared by all rows.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from types import CellType, CodeType, FunctionType
from typing import Any

from ..errors import SourceError
from ..parsing import reading
from .locate import compile_in_place, locate
from .operations import HandOver, Operation


@dataclass(frozen=True)
class Rewritten:
    """What `rewrite` made of a function's code: its operations, and the means to run them one's own way."""

    operations: tuple[Operation, ...]
    function_name: str
    filename: str
    first_line: int
    lines: tuple[str, ...]
    """The source from `first_line` on, decorators included, without line ends."""
    _code: CodeType = field(repr=False)
    _row: str = field(repr=False)
    _source: weakref.ref[CodeType] = field(repr=False)

    def __iter__(self) -> Iterator[Operation]:
        return iter(self.operations)

    @cached_property
    def by_name(self) -> Mapping[str, Operation]:
        return {operation.name: operation for operation in self.operations}

    def bind(self, function: FunctionType, row: Sequence[Callable[..., Any]]) -> FunctionType:
        """Return a function equal to `function` in which operation i is made by `row[i](callee, *args, **kwargs)`.

        `row` is read anew at each call, so its items may be exchanged later; a list or a tuple is fastest. A callable
        in it takes the callee by position only, for its own names could be keywords of the call. Only functions that
        run the code that was rewritten can be bound.
        """
        code = function.__code__
        if code is not self._source():
            raise SourceError(f"{function.__qualname__} does not run the code that was rewritten: rewrite it first.")
        cells = dict(zip(code.co_freevars, function.__closure__ or (), strict=True))
        cells[self._row] = CellType(row)
        return reclosed(function, self._code, tuple(cells[name] for name in self._code.co_freevars))


def reclosed(function: FunctionType, code: CodeType, cells: tuple[CellType, ...]) -> FunctionType:
    """Return a function that runs `code` over `cells` and is like `function` in all else."""
    made = FunctionType(code, function.__globals__, function.__name__, function.__defaults__, cells)
    made.__kwdefaults__ = function.__kwdefaults__
    made.__qualname__ = function.__qualname__
    made.__module__ = function.__module__
    made.__doc__ = function.__doc__
    made.__dict__.update(function.__dict__)
    if getattr(function, "__annotate__", None) is not None:
        # From Python 3.14 on, annotations are made when somebody asks; asking for them here might fail.
        made.__annotate__ = function.__annotate__  # type: ignore[attr-defined, unused-ignore]
    else:
        made.__annotations__ = function.__annotations__
    if hasattr(function, "__type_params__"):
        made.__type_params__ = function.__type_params__  # type: ignore[attr-defined, unused-ignore]
    return made


# By identity, not equality: equal codes may come from different files.
_made: dict[int, Rewritten] = {}


def rewrite(function: object) -> Rewritten:
    """Return the rewriting of the code of a Python function, made once for as long as that code lives.

    Raises `SourceError` for whatever has no Python source of its own, and says what to do instead.

        >>> rewritten = rewrite(Attention.forward)
        >>> [operation.name for operation in rewritten]
        ['self_c_attn_0', 'split_0', 'self_c_proj_0']
        >>> forward = rewritten.bind(Attention.forward, [lambda callee, /, *a, **k: callee(*a, **k)] * 3)
    """
    if not isinstance(function, FunctionType):
        raise SourceError(
            f"There are no operations to name in {function!r}: it is of type {type(function).__name__}, and no Python "
            "function. Its own input and output can still be asked for."
        )
    code = function.__code__
    known = _made.get(id(code))
    if known is None:
        with reading:
            known = _made[id(code)] = _rewrite(function)
    return known


def _rewrite(function: FunctionType) -> Rewritten:
    code = function.__code__
    located = locate(function)
    row = "operations"
    text = "\n".join(located.lines)
    while row in text:
        row += "_"
    hand_over = HandOver(row, _bound(code))
    hand_over.body(located.definition)
    key = id(code)
    return Rewritten(
        operations=tuple(hand_over.operations),
        function_name=function.__qualname__,
        filename=code.co_filename,
        first_line=code.co_firstlineno,
        lines=located.lines,
        _code=compile_in_place(located, code, (row,)),
        _row=row,
        _source=weakref.ref(code, lambda _: _made.pop(key, None)),
    )


def _bound(code: CodeType) -> set[str]:
    """Return every variable that a function, or one inside it, binds or closes over."""
    names = {*code.co_varnames, *code.co_cellvars, *code.co_freevars}
    for const in code.co_consts:
        if isinstance(const, CodeType):
            names |= _bound(const)
    return names
