"""A forward as a row of operations: every call in its body, named, and each of them handed to somebody else to make.

This package turns functions into functions and knows nothing of runs: who receives the calls, and what they do with
them, is `taps.py`'s and `served.py`'s business.

    operations   one call in a body: its name, its place, and the tree that hands it over
    locate       the text that a running function was made from, checked against its code
    given        the same, where whoever compiled the function says from what
    rewrite      an equal function whose calls go through a row of callables
    unwrap       the function under decorators, and the same decorators around another function
    printing     the listing of a function's operations, and the lines around one of them
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .operations import Operation
from .rewrite import rewrite
from .unwrap import innermost

__all__ = ["Operation", "operations_of"]


def operations_of(function: Callable[..., Any]) -> tuple[Operation, ...]:
    """Return the calls in a function's body, as `.source` names them, in the order of their names' numbers.

    Args:
        function: a Python function or method; of a decorated one, the calls of what is decorated.

    Raises:
        SourceError: it is no Python function, or its text cannot be had.
    """
    return rewrite(innermost(function)).operations
