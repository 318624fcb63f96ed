"""Names of operations that mean something else in nnsight 0.8.

The one idea: both number the calls in a forward by the name of what is called. There an assignment is an operation as well
and takes part in the numbering, so `attention_interface_0` is the first call of it for us, and its assignment for them.
Names that are assigned in no forward of the model mean the same.

relies on: the names of operations, nnsight 0.8.1
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from typing import Any

import torch

from nnsight.plugin import parse_source


class Operations:
    """What the operations of a model are called on both sides."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._assigned: set[str] | None = None

    def mismatch(self, node: ast.Attribute) -> str:
        """Say why an attribute that stands in a block may name another operation over there; empty if it does not."""
        above = node.value
        if not (isinstance(above, ast.Attribute) and above.attr in ("source", "nns_source")):
            return ""
        if any(isinstance(one, ast.Attribute) and one.attr == above.attr for one in ast.walk(above.value)):
            return f"`{node.attr}` lies inside another operation, where the two count differently"
        if self._assigned is None:
            self._assigned = _assigned(self._model._module)
        name = node.attr.rpartition("_")[0]
        return (
            f"`{node.attr}` is counted differently, as `{name}` is also assigned to" if name in self._assigned else ""
        )


def _assigned(module: torch.nn.Module) -> set[str]:
    """Return the names that forwards in a model assign to, as nnsight 0.8 writes them."""
    found: set[str] = set()
    for cls in {type(one) for one in module.modules()}:
        try:
            tree = parse_source(textwrap.dedent(inspect.getsource(inspect.unwrap(cls.forward))))
        except (OSError, TypeError, SyntaxError, ValueError):
            continue  # without a text it has no operations either
        found |= {_name(node) for node in ast.walk(tree) if isinstance(getattr(node, "ctx", None), ast.Store)}
    return found


def _name(node: ast.AST) -> str:
    parts: list[str] = []
    while isinstance(node, (ast.Attribute, ast.Subscript, ast.Starred)):
        if isinstance(node, ast.Attribute):
            parts.append(node.attr)
        node = node.value
    if isinstance(node, ast.Name):
        parts.append(node.id)
    return "_".join(reversed(parts))
