"""The text that a frame's code was compiled from.

The one idea: `linecache` knows files, notebook cells, doctests and whatever a tool registered there; text that it
does not know is offered by whoever started the code (the command line, IPython) and believed only if it fits the
code. Finding a `with` in the text is left to `find.py`.
"""

from __future__ import annotations

import ast
import linecache
import sys
import textwrap
from collections.abc import Iterator, Sequence
from types import CodeType, FrameType
from typing import Any

from ..errors import SourceError
from .names import BodyGlobals

_TEXTS = (ast.Constant, ast.JoinedStr, getattr(ast, "TemplateStr", ast.JoinedStr))  # the last since 3.14
_OPTIONS_WITH_VALUE = frozenset("WX")
# The names that IPython gives to what `%%time` and `%%timeit` compile without telling linecache.
_MAGIC_CELLS = frozenset(("<timed exec>", "<timed eval>", "<magic-timeit>"))


def lines_of(frame: FrameType) -> Sequence[str]:
    """Give the lines of the text that a frame's code was compiled from, with their line ends.

    SourceError if nobody has kept the text.
    """
    return text_of(frame.f_code, frame.f_globals, frame.f_lineno)


def text_of(code: CodeType, around: dict[str, Any], line: int | None = None) -> Sequence[str]:
    """Give the lines of the text that code was compiled from, as `lines_of` does; `around` are its globals."""
    if isinstance(around, BodyGlobals):
        return around.block.found.lines
    remembered = _remembered.get(id(code))
    if remembered is not None:
        return remembered[1]
    filename = code.co_filename
    if filename == "<string>":  # any exec() is called so: linecache's word (3.13) proves nothing either
        for text in _command():
            if _made(text, filename, code):
                return text.splitlines(keepends=True)
    elif filename in _MAGIC_CELLS:
        for text in _cell():
            return text.splitlines(keepends=True)
    linecache.checkcache(filename)
    lines = linecache.getlines(filename, around)
    if lines:
        return lines
    line = line or code.co_firstlineno
    raise SourceError(
        f"this block has to be read before it runs, but the text of {filename!r} (line {line}) is kept "
        "nowhere: code typed into a plain prompt, piped into the interpreter or passed to exec() is forgotten once "
        "compiled. Put it into a file, a notebook cell or `python -c`, or write a form that runs where it stands: "
        "`with model.trace(input):` for one input, and `for step in tracer.iter[...]:` for steps"
    )


#: Code that came with a text of its own, under its number; the code is kept, so that no other gets that number.
_remembered: dict[int, tuple[CodeType, Sequence[str]]] = {}


def remember(code: CodeType, lines: Sequence[str]) -> None:
    """Say which text code, and the code inside it, was compiled from, where no file tells."""
    _remembered[id(code)] = (code, lines)
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            remember(inner, lines)


def forget(code: CodeType) -> None:
    """Take back what `remember` said."""
    _remembered.pop(id(code), None)
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            forget(inner)


def dedented(lines: Sequence[str], statements: Sequence[ast.stmt]) -> str:
    """Give the text of neighbouring statements as if they stood at the left margin."""
    first = statements[0]
    decorators: list[ast.expr] = getattr(first, "decorator_list", [])
    start = min(first.lineno, *(one.lineno for one in decorators)) if decorators else first.lineno
    last = statements[-1]
    text = list(lines[start - 1 : last.end_lineno])
    before = text[0].encode()[: first.col_offset]
    if before.strip() and not decorators:  # on the line of the `with`
        text[0] = text[0].encode()[first.col_offset :].decode()
        return "".join(text)
    margin = text[0][: len(text[0]) - len(text[0].lstrip())]
    within = {
        number - start
        for statement in statements
        for node in ast.walk(statement)
        if isinstance(node, _TEXTS)
        for number in range(node.lineno + 1, (node.end_lineno or node.lineno) + 1)
    }
    return "".join(line if number in within else line.removeprefix(margin) for number, line in enumerate(text))


def _command() -> Iterator[str]:
    """Give the text after `-c`, as the interpreter may have read it."""
    arguments = iter(sys.orig_argv[1:])
    for argument in arguments:
        if not argument.startswith("-") or argument == "-":
            return
        if argument.startswith("--"):
            if argument == "--check-hash-based-pycs":
                next(arguments, None)
            continue
        for place, option in enumerate(argument[1:], start=2):
            if option == "c":
                text = argument[place:] or next(arguments, "")
                yield text
                yield textwrap.dedent(text)  # 3.14
                return
            if option in _OPTIONS_WITH_VALUE:
                if not argument[place:]:
                    next(arguments, None)
                break


def _cell() -> Iterator[str]:
    """Give the notebook cell that is running, less the lines of its `%%` magics."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    if shell is None:
        return
    text = shell.history_manager.input_hist_raw[-1]
    while text.lstrip().startswith("%%"):
        text = text.lstrip().partition("\n")[2]
    yield shell.transform_cell(text)


def _made(text: str, filename: str, code: CodeType) -> bool:
    try:
        whole = compile(text, filename, "exec", dont_inherit=True)
    except SyntaxError:
        return False
    waiting = [whole]
    while waiting:
        one = waiting.pop()
        if one == code:
            return True
        waiting += [inner for inner in one.co_consts if isinstance(inner, CodeType)]
    return False
