"""Whether the running instruction of a frame belongs to the head of a `with`, read off its bytecode.

The one idea: the opcodes of a `with` head stand in a fixed order after the context expression, so looking one or two
opcodes ahead answers without any source. `find.py` turns the same place into a syntax tree.

relies on: the opcodes of a `with` head, CPython 3.10 to 3.14:

    3.10          <expression> SETUP_WITH <store or POP_TOP>
    3.11 to 3.13  <expression> BEFORE_WITH <store or POP_TOP>
    3.14          <expression> COPY, LOAD_SPECIAL __exit__, SWAP, SWAP, LOAD_SPECIAL __enter__, CALL <store or POP_TOP>

and that `co_code` shows plain opcodes (0 for inline caches) while the code is specialized or instrumented.
"""

from __future__ import annotations

import dis
import sys
from types import CodeType, FrameType

_OPS = dis.opmap
_CACHE = 0
_EXTENDED_ARG = _OPS["EXTENDED_ARG"]
#: The width of each opcode that was met, caches included. Before 3.11 it is not the opcode's alone.
_widths: dict[int, int] = {}
_HAS_CACHES = sys.version_info >= (3, 11)
_NEW_HEADS = sys.version_info >= (3, 14)
_ENTER = _OPS["CALL" if _NEW_HEADS else "BEFORE_WITH" if sys.version_info >= (3, 11) else "SETUP_WITH"]
_HEADS = frozenset((_OPS["COPY"],)) if _NEW_HEADS else frozenset((_ENTER, _OPS["BEFORE_ASYNC_WITH"]))
_LOAD_SPECIAL = _OPS.get("LOAD_SPECIAL", -1)


def is_with_head(frame: FrameType) -> bool:
    """Tell whether the call that `frame` is executing is, as it stands, the context expression of a `with`.

    True for `with f():` and `async with f():`, false for `f()`, `with g(f()):` and `x = f()`.
    """
    # Every plain `backward()` comes by here, so the common case takes no loop.
    code = frame.f_code.co_code
    at = frame.f_lasti
    at += _widths.get(code[at]) or _width(code, at)
    if at >= len(code) or code[at] not in _HEADS:
        return False
    # A `:=` copies as well (3.14); the head of a `with` looks up __exit__ next.
    return not _NEW_HEADS or code[at + 2] == _LOAD_SPECIAL


def _width(code: bytes, at: int) -> int:
    """Return how far it is from the instruction at `at` to the next one, past the caches that belong to it."""
    opcode, start = code[at], at
    while code[at] == _EXTENDED_ARG:  # only 3.10 leaves f_lasti there
        at += 2
    at += 2
    end = len(code)
    while at < end and code[at] == _CACHE:
        at += 2
    if at < end and code[at] == _EXTENDED_ARG:  # only 3.10 says in the head of a `with` how long the block is
        while code[at] == _EXTENDED_ARG:
            at += 2
    elif opcode != _EXTENDED_ARG and _HAS_CACHES:
        _widths[opcode] = at - start
    return at - start


def after_enter(code: CodeType, at: int) -> int | None:
    """Give the offset of what runs once the `with` that enters its context at `at` has done so; None if none does."""
    ops = code.co_code
    while ops[at] == _EXTENDED_ARG:
        at += 2
    if not _enters(ops, at):
        return None
    at += 2
    while _NEW_HEADS and ops[at] == _CACHE:
        at += 2
    return at


def enters(code: CodeType) -> list[int]:
    """Give the offsets at which a `with` of this code enters its context, in the order of the bytecode."""
    ops = code.co_code
    return [at for at in range(0, len(ops), 2) if _enters(ops, at)]


def _enters(ops: bytes, at: int) -> bool:
    # In 3.14 the number 0 stands for __enter__, and 2 for __aenter__.
    return ops[at] == _ENTER and (not _NEW_HEADS or (ops[at - 2] == _LOAD_SPECIAL and ops[at - 1] == 0))
