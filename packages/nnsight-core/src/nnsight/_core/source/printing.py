"""A function's source with its operations named beside it, and the lines around one operation."""

from __future__ import annotations

from collections import defaultdict

from .operations import Operation
from .rewrite import Rewritten

_CONTEXT = 5
#: A longer name stands on a row of its own, above its line: one of them would push all the code to the right.
_WIDEST = 30


def listing(rewritten: Rewritten) -> str:
    """Return the source of a function, each line with the number it has in its file, and its operations before it.

    ::

        Attention.forward (model.py, line 11)

         self_c_attn_0 -> 12     q, k, v = self.c_attn(x).split(self.width, dim=2)
         split_0       ->  +     .split(self.width, dim=2)
         self_c_proj_0 -> 13     return self.c_proj(attend(q, k, v))
    """
    beside: dict[int, list[Operation]] = defaultdict(list)
    for operation in rewritten.operations:
        beside[operation.lineno].append(operation)
    lengths = [len(operation.name) for operation in rewritten.operations]
    names = max((length for length in lengths if length <= _WIDEST), default=0)
    digits = len(str(rewritten.first_line + len(rewritten.lines)))
    rows: list[str] = []

    def write(name: str, number: str, text: str) -> None:
        if len(name) > names:
            rows.append(f" {name}")
            name = ""
        rows.append(f" {name:<{names}} -> {number:>{digits}} {text}")

    for lineno, line in enumerate(_dedented(rewritten), start=rewritten.first_line):
        here = beside[lineno]
        if here:
            write(here[0].name, str(lineno), line)
        else:
            rows.append(" " * (names + 4) + f" {lineno:>{digits}} {line}")
        indent = line[: len(line) - len(line.lstrip())]
        for other in here[1:]:
            write(other.name, "+", indent + _brief(other))
    return "\n".join([_head(rewritten), "", *map(str.rstrip, rows)])


def around(rewritten: Rewritten, operation: Operation) -> str:
    """Return the lines around an operation, its own from `-->` to `<--`, and its name above them."""
    first = operation.lineno - rewritten.first_line
    last = operation.end_lineno - rewritten.first_line
    lines = _dedented(rewritten)
    start, stop = max(0, first - _CONTEXT), min(len(lines), last + 1 + _CONTEXT)
    rows = [f"{operation.name} in {_head(rewritten, operation.lineno)}", ""]
    rows += ["    ..."] if start else []
    for at in range(start, stop):
        row = ("--> " if at == first else "    ") + lines[at]
        rows.append(row + " <--" if at == last else row)
    rows += ["    ..."] if stop < len(lines) else []
    return "\n".join(map(str.rstrip, rows))


def _head(rewritten: Rewritten, lineno: int | None = None) -> str:
    return f"{rewritten.function_name} ({rewritten.filename}, line {lineno or rewritten.first_line})"


def _dedented(rewritten: Rewritten) -> list[str]:
    """Return the lines without the indentation of the first one, which a text in quotes need not have."""
    first = rewritten.lines[0]
    indent = first[: len(first) - len(first.lstrip())]
    return [line.removeprefix(indent) for line in rewritten.lines]


def _brief(operation: Operation, limit: int = 80) -> str:
    """Return the text of a call, without the call that it is chained to."""
    chained = operation.callee.rfind(")") + 1
    text = operation.text
    if chained and text.startswith(operation.callee) and text[chained] == ".":
        text = text[chained:]
    return text if len(text) <= limit else text[: limit - 3] + "..."
