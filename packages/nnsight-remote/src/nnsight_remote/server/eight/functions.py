"""Functions and modules that came along with a block of nnsight 0.8.

The one idea: they write a function as its text at the left margin of an empty module, and what it closes over as globals;
so it is compiled as they compile it. Its text is kept where tracebacks, and blocks inside it, look for texts, as long as
the job lasts.

relies on: the arguments that nnsight 0.8.1 and cloudpickle 2.2 to 3.1 write
"""

from __future__ import annotations

import builtins
import importlib
import linecache
from collections.abc import Callable, Mapping
from types import CodeType, FunctionType, ModuleType
from typing import Any

from nnsight.plugin import WireError

from ...fabric.operations import Operations
from .mismatch import check_block


class Texts:
    """The texts that came along, shown until they are forgotten."""

    def __init__(self) -> None:
        self._before: dict[str, Any] = {}

    def show(self, filename: str, text: str) -> None:
        """Let a text be that of a file."""
        self._before.setdefault(filename, linecache.cache.get(filename))
        linecache.cache[filename] = (len(text), None, text.splitlines(keepends=True), filename)

    def forget(self) -> None:
        """Let every file have the text that it had before."""
        for filename, before in self._before.items():
            if before is None:
                linecache.cache.pop(filename, None)
            else:
                linecache.cache[filename] = before
        self._before.clear()


def loader(texts: Texts, operations: Operations) -> Callable[..., FunctionType]:
    """Return what makes a function of what was written of it."""

    def load(
        source: str,
        name: str,
        defaults: tuple[Any, ...] | None,
        kwdefaults: dict[str, Any] | None,
        annotations: Mapping[str, Any] | None,
        filename: str,
        line: int,
    ) -> FunctionType:
        text = "\n" * (line - 1) + source
        # Several functions of one file came each with a text of its own.
        shown = f"[{name}:{line}] {filename}"
        try:
            module = compile(text, shown, "exec", dont_inherit=True)
        except (SyntaxError, ValueError) as error:
            raise WireError(
                f"the text of the function `{name}` is no Python that is understood here: {error}"
            ) from error
        check_block(text, shown, {}, operations)
        # Those of decorators and default values come first.
        made = [one for one in module.co_consts if isinstance(one, CodeType) and one.co_name == name]
        if not made:
            raise WireError(f"the text of the function `{name}` holds no such function")
        texts.show(shown, text)
        function = FunctionType(made[-1], {"__builtins__": builtins}, name, defaults)
        function.__kwdefaults__ = dict(kwdefaults) if kwdefaults else None
        function.__annotations__ = dict(annotations or {})
        return function

    return load


def fill(function: FunctionType, names: Mapping[str, Any]) -> None:
    """Give a function the names that it uses; one of them may be its own."""
    function.__globals__.update(names)


def importer(check: Callable[[str], None]) -> Callable[[str], ModuleType]:
    """Return what imports a module that a block refers to; `check` raises for one that blocks may not import."""

    def load(name: str) -> ModuleType:
        check(name)
        return importlib.import_module(name)

    return load
