"""One lock around everything that reads source text into syntax trees, and what does so.

CPython 3.10 and 3.11 count the depth of a tree under construction for all threads together, so two that parse at once
may get `SystemError: AST constructor recursion depth mismatch` (python/cpython#106905). Silencing the warnings of a
compilation is not safe in two threads either. What is read is kept by those who read it, so nobody waits here often.

The lock keeps out whoever takes it. Others parse as well (Python itself, for the carets of a traceback), so a text that gets
this error is read again. A tree that is to be changed is copied here too, for others keep things on its nodes.
"""

from __future__ import annotations

import ast
import threading
from typing import Any, TypeVar

Node = TypeVar("Node", bound=ast.AST)

reading = threading.RLock()

#: How often a text is read before the error is believed.
_TRIES = 20


def parse_source(text: str, filename: str = "<unknown>", mode: str = "exec", flags: int = 0) -> Any:
    """Return the tree of a text, as `ast.parse` does.

    Args:
        text: the text.
        filename, mode: as for `ast.parse`.
        flags: more flags of `compile`, of what is imported from `__future__`.

    Raises:
        SyntaxError, ValueError: it is no text of Python's.
    """
    flags |= ast.PyCF_ONLY_AST
    with reading:
        left = _TRIES
        while True:
            left -= 1
            try:
                return compile(text, filename, mode, flags, dont_inherit=True)
            except SystemError:
                if not left:
                    raise


def copy_tree(node: Node) -> Node:
    """Copy what a tree of nodes says, and nothing that anybody keeps on its nodes.

    All trees of a process share one `Load()` and one of each operator. What `executing` keeps on them (with it IPython
    shows tracebacks) leads to the tree of another file, all of which `copy.deepcopy` would copy.
    """
    if not node._fields and not node._attributes:
        return node
    parts = {name: getattr(node, name) for name in (*node._fields, *node._attributes) if hasattr(node, name)}
    return type(node)(**{name: _part(value) for name, value in parts.items()})


def _part(value: Any) -> Any:
    if isinstance(value, list):
        return [_part(one) for one in value]
    return copy_tree(value) if isinstance(value, ast.AST) else value
