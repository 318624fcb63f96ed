"""What of our language an nnsight over there does not have, found before anything is sent.

The one idea: only names are followed that lead from the model, the tracer or `nnsight` itself by attributes that stand in the
text; whatever is reached another way, the server refuses at its line. What would run there and mean something else is
refused here in any case.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from nnsight.plugin import Envoy, Request, WireError, aliases_of, is_own, names_of_block, text_of_block

from .operations import Operations


@dataclass(frozen=True)
class Dialect:
    """What one release of nnsight has.

    Attributes:
        version: the release, as messages name it.
        envoy: what is served at an envoy, or can be done with one, besides what its module has.
        library: names of the package that a block may use.
        tracer: what a tracer has.
        renames: whether a submodule whose name is taken goes by another one there.
    """

    version: str
    envoy: frozenset[str]
    library: frozenset[str]
    tracer: frozenset[str] = frozenset(("all", "barrier", "invoke", "iter", "result", "stop"))
    renames: bool = True


_INSTEAD_OF = {
    "tokens": "keep the ids that the tokenizer gives you, outside the block",
    "log": "write `print(...)`: it arrives as a line of the job's log",
    "next": "loop over `tracer.iter[...]`",
    "cache": "save the outputs that you want one by one: its record is an object that cannot be decoded safely",
    "model": "use the model's own name",
}
#: What nnsight 0.8 has.
EIGHT = Dialect(
    "0.8",
    frozenset(
        ("clear_edits", "cpu", "cuda", "device", "devices", "edit", "generate", "get", "input", "inputs", "modules",
         "named_modules", "output", "parent", "path", "pipe", "root", "scan", "session", "skip", "source", "to", "trace",
         "generator", "tokenizer", "processor", "image_processor", "feature_extractor", "task", "repo_id", "revision")
    ),
    frozenset(("save", "Object", "NNsight", "Envoy", "LanguageModel", "TransformersModel", "__version__")),
)  # fmt: skip


def check(request: Request, dialect: Dialect = EIGHT) -> None:
    """Refuse a block that the nnsight over there cannot run, or would run as something else.

    Args:
        request: the block.
        dialect: what is there.

    Raises:
        WireError: says what it is, why, and what to write instead.
    """
    text = text_of_block(request.body)
    outer, inner = names_of_block(request.body)
    tracers = {request.body.target} if request.body.target and not request.session else set()
    operations = Operations(request.node.root)
    check = _Check({**outer, **inner}, tracers, text.filename, dialect, operations)
    check.statements([one for one in text.nodes if isinstance(one, ast.stmt)])
    generates = request.method is not None
    for edit in request.node.root.edits:
        names = {name: value for held in names_of_block(edit.body) for name, value in held.items()}
        body = [one for one in text_of_block(edit.body).nodes if isinstance(one, ast.stmt)]
        _Check(names, set(), text_of_block(edit.body).filename, dialect, operations).statements(body)
        if (generates or request.session) and not any(map(_is_loop, _walk(body))):
            raise WireError(
                f"{edit.name!r} is replayed in every step of a generation here, and in the first one only by nnsight "
                f"{dialect.version}; walk the steps in it, or write its changes into the block that is sent"
            )


class _Check:
    def __init__(
        self, names: dict[str, Any], tracers: set[str], filename: str, dialect: Dialect, operations: Operations
    ) -> None:
        self.names = names
        self.operations = operations
        self.tracers = set(tracers)
        self.filename = filename
        self.dialect = dialect
        self.theirs = f"nnsight {dialect.version}"

    def statements(self, body: Sequence[ast.stmt]) -> None:
        nodes = list(_walk(body))
        for node in nodes:
            self._note_tracer(node)
        for node in nodes:
            if isinstance(node, ast.Attribute):
                self._attribute(node)
            elif isinstance(node, (ast.Import, ast.ImportFrom)):
                self._import(node)
            elif isinstance(node, (ast.AsyncWith, ast.AsyncFor, ast.Await)):
                raise self._refusal(node, "nothing is awaited in a block on NDIF", "await before it or after it")
        self._after_open_loops(body)

    def _note_tracer(self, node: ast.AST) -> None:
        """Note what stands after `as`, where a trace or an invoke is opened inside."""
        for item in getattr(node, "items", None) or ():
            if isinstance(item, ast.withitem) and isinstance(item.optional_vars, ast.Name):
                call = item.context_expr
                if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute):
                    if call.func.attr in ("trace", "generate") and self._value(call.func.value) is not None:
                        self.tracers.add(item.optional_vars.id)

    def _attribute(self, node: ast.Attribute) -> None:
        name = node.attr
        if isinstance(node.value, ast.Name) and node.value.id in self.tracers:
            if name not in self.dialect.tracer:
                raise self._refusal(node, f"{self.theirs} has no `{node.value.id}.{name}`", _INSTEAD_OF.get(name, ""))
            return
        if why := self.operations.mismatch(node):
            raise self._refusal(node, why, "read the input or the output of a module")
        value = self._value(node.value)
        if isinstance(value, ModuleType) and value.__name__ == "nnsight" and name not in self.dialect.library:
            raise self._refusal(node, f"{self.theirs} has no `nnsight.{name}`, or another", "do this outside the block")
        if isinstance(value, Envoy) and not self._has(value, name):
            raise self._refusal(
                node,
                f"{self.theirs} has no `{name}` at `{value.path}`",
                "use the names of the model's own modules, as `print(model)` shows them",
            )

    def _has(self, envoy: Envoy, name: str) -> bool:
        """Whether an envoy over there has an attribute: its own, a submodule, an alias, or one of its module."""
        if name in self.dialect.envoy or (self.dialect.renames and name.startswith("E_")) or name in aliases_of(envoy):
            return True
        module = envoy._module
        held: tuple[Any, ...] = (module._modules, module._parameters, module._buffers, vars(module))
        return any(name in one for one in held) or hasattr(type(module), name)

    def _value(self, node: ast.AST) -> Any:
        """Return the envoy or module that an expression stands for, if its text says so."""
        if isinstance(node, ast.Name):
            return self.names.get(node.id)
        above = self._value(node.value) if isinstance(node, (ast.Attribute, ast.Subscript)) else None
        if not isinstance(above, Envoy):
            return None
        if isinstance(node, ast.Subscript):
            index = node.slice.value if isinstance(node.slice, ast.Constant) else None
            name = str(index)
        else:
            name = getattr(node, "attr", "")
        path = aliases_of(above).get(name, name)
        return above.get(path) if path == "generator" or _leads(above._module, path) else None

    def _import(self, node: ast.Import | ast.ImportFrom) -> None:
        wanted = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or "."]
        for name in wanted:
            if name.partition(".")[0].startswith("nnsight_") or is_own(name) and _is_here(name):
                raise self._refusal(
                    node,
                    f"the module {name} is not on NDIF",
                    "import it above the block: what is used of it then travels",
                )

    def _after_open_loops(self, body: Sequence[ast.stmt], follows: bool = False) -> None:
        """Refuse what stands after a loop that has no end of its own: it is dropped silently over there."""
        for place, one in enumerate(body):
            after = follows or place + 1 < len(body)
            if isinstance(one, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
                continue
            if _is_loop(one) and _is_open(one) and after:
                raise self._refusal(
                    one,
                    f"{self.theirs} drops what stands after a loop over all steps",
                    "give the loop an end (`tracer.iter[:n]`), or put what follows after the block",
                )
            # What follows an invoke is another body's.
            inside = False if isinstance(one, ast.With) else after
            for name in ("body", "orelse", "finalbody"):
                self._after_open_loops(getattr(one, name, None) or [], inside)

    def _refusal(self, node: ast.AST, what: str, instead: str) -> WireError:
        where = f"{self.filename}:{getattr(node, 'lineno', '?')}"
        return WireError(f"{what} ({where}, in a block for NDIF)" + (f"; {instead}" if instead else ""))


def _walk(body: Sequence[ast.stmt]) -> Iterator[ast.AST]:
    for one in body:
        yield from ast.walk(one)


def _leads(module: Any, path: str) -> bool:
    for name in path.split("."):
        module = getattr(module, "_modules", {}).get(name)
        if module is None:
            return False
    return True


def _is_here(name: str) -> bool:
    import importlib.util

    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):
        return False


def _is_loop(node: ast.AST) -> bool:
    return isinstance(node, ast.For) and _selection(node.iter) is not None


def _selection(node: ast.AST) -> ast.AST | None:
    """Return what a loop over steps selects, as it is written; None for another loop."""
    if isinstance(node, ast.Subscript) and isinstance(node.value, ast.Attribute) and node.value.attr == "iter":
        return node.slice
    if isinstance(node, ast.Attribute) and node.attr == "iter":
        return node
    if (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr == "all"
        and not node.args
    ):
        return node
    return None


def _is_open(node: Any) -> bool:
    selection = _selection(node.iter)
    return (
        not isinstance(selection, ast.Slice)
        and isinstance(selection, (ast.Attribute, ast.Call))
        or (isinstance(selection, ast.Slice) and selection.upper is None)
    )
