"""What the language of nnsight 0.8 has and ours does not, found in the text of a block before anything runs.

The one idea: as for what is sent the other way (`fabric/language.py`), only names are followed that lead from the model by
attributes that stand in the text; whatever is reached another way fails at its line.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from typing import Any

from nnsight.plugin import Envoy, WireError, parse_source

from ...fabric.operations import Operations
from ...fabric.tree import SERVED

_REFUSED = {
    "pipe": "runs the pipeline of a task; generate (`model.generate`), and decode what comes back",
    "load_adapter": "loads an adapter; serve the model with it merged",
    "dispatch": "loads weights, which are here",
}


def check_model(model: Any) -> None:
    """Refuse a model of which the same line would mean something else here."""
    for node in model.modules():
        for name in node._module._modules:
            if name in SERVED:
                raise WireError(
                    f"`{node.path}` has a submodule called `{name}`, and `.{name}` is that submodule here, but its value for "
                    "nnsight 0.8; so blocks of 0.8 are not run on this model. Use the client of this server: upgrade nnsight"
                )


def check_block(text: str, filename: str, names: Mapping[str, Any], operations: Operations) -> None:
    """Refuse a block, or a function, that says something which only nnsight 0.8 understands.

    Raises:
        WireError: says what it is, and where.
    """
    try:
        tree = parse_source(text)
    except (SyntaxError, ValueError):
        return  # whoever compiles it says what is wrong
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr in _REFUSED and _is_of_model(node.value, names):
            said = f"`{ast.unparse(node)}` {_REFUSED[node.attr]}"
        elif isinstance(node, ast.Attribute) and (why := operations.mismatch(node)):
            said = f"{why}; read the input or the output of a module"
        elif isinstance(node, ast.Call) and _is_of_model(node.func, names) and _hooks(node):
            said = "`hook=True` is not understood: a module that is called by hand is no part of the run here"
        else:
            continue
        raise WireError(f"{said} ({filename}:{getattr(node, 'lineno', '?')}, in a block of nnsight 0.8)")


def _hooks(call: ast.Call) -> bool:
    return any(one.arg == "hook" for one in call.keywords)


def _is_of_model(node: ast.AST, names: Mapping[str, Any]) -> bool:
    while isinstance(node, (ast.Attribute, ast.Subscript)):
        node = node.value
    return isinstance(node, ast.Name) and isinstance(names.get(node.id), Envoy)
