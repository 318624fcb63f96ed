"""The shape of the core: which file may know which, and what it may not know at all."""

from __future__ import annotations

import ast
import functools
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from fresh_python import in_fresh_python

import nnsight

ROOT = Path(nnsight.__file__).parent
CORE = ROOT / "_core"

#: Lowest first. A file imports from rows above its own only; what stands in one row does not know its neighbours.
#: `blocks`, `source` and `wire` are packages, which know the leaves and no context; `serving` is one that knows much.
LAYERS = [
    [
        "errors",
        "sites",
        "structures",
        "directory",
        "hookspecs",
        "hosting",
        "legacy",
        "printing",
        "aliases",
        "parsing",
        "pieces",
    ],
    [
        "settings",
        "rename",
        "turns",
        "batching",
        "active",
        "discovery",
        "complaints",
        "blocks",
        "source",
        "notebook",
        "shapes",
        "lockstep",
        "entries",
        "readonly",
    ],
    ["configfile", "naming", "taps", "here", "plugins", "saved", "sharding", "wire"],
    ["config", "mediator", "rigging", "served", "classes", "commands"],
    ["ending", "visits", "standard"],
    ["interleaver"],
    ["sharded", "barrier", "steps", "invoke", "edit", "cache", "session", "tree", "sources", "sofar"],
    ["backward", "trace"],
    ["scan", "patches"],
    ["validate"],
    ["backend", "received", "bypath", "foreign"],
    ["envoy", "travel", "serving"],
    ["rehearsal"],
    ["model", "provided", "notes"],
    ["loading"],
]
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}

#: Arrows the wrong way that are followed when a function runs, and the reason.
LATE = {
    ("backend", "rehearsal"): "`remote=local` is a backend that sends, and what is sent knows what a request is",
    ("aliases", "plugins"): "an import path of an earlier release may belong to a plugin, known when it is imported",
}

#: The contexts: what opens a run or looks into one. What lies below knows none of them.
CONTEXTS = set("trace invoke steps edit session scan validate cache backward barrier backend travel".split())

DEPENDENCIES = {"torch", "greenlet", "pluggy", "platformdirs", "packaging"}


@functools.cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


@functools.cache
def files() -> list[Path]:
    return sorted(path for path in ROOT.rglob("*.py") if "__pycache__" not in path.parts)


def unit(path: Path) -> str:
    """The row entry that a file of the core belongs to."""
    return path.relative_to(CORE).parts[0].removesuffix(".py")


@functools.cache
def imports(path: Path) -> list[tuple[ast.Import | ast.ImportFrom, bool]]:
    """Each import that runs, and whether only when a function does; those for the type checker are no imports."""
    return list(_imports(parsed(path), False))


def _imports(tree: ast.AST, late: bool) -> Iterator[tuple[ast.Import | ast.ImportFrom, bool]]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.expr):
            continue  # no statement stands in an expression
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            yield node, late
        function = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
        yield from _imports(node, late or function)


def modules_of(node: ast.Import | ast.ImportFrom, path: Path) -> list[str]:
    """The full names of the modules that an import names."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    package = ["nnsight", *path.relative_to(ROOT).parent.parts]
    base = package[: len(package) - node.level + 1] if node.level else []
    name = ".".join([*base, *([node.module] if node.module else [])])
    if name == "nnsight._core":
        return [f"{name}.{alias.name}" for alias in node.names]
    return [name]


def arrows() -> Iterator[tuple[str, str, bool, str]]:
    """(from, to, late, where) for each import between files of the core."""
    for path in files():
        if CORE not in path.parents or path.name == "__init__.py" and path.parent == CORE:
            continue
        for node, late in imports(path):
            for name in modules_of(node, path):
                if name.startswith("nnsight._core."):
                    target = name.split(".")[2]
                    if target != unit(path):
                        yield unit(path), target, late, f"{path.relative_to(ROOT)}:{node.lineno}"


def test_every_file_has_its_place() -> None:
    units = {unit(path) for path in files() if CORE in path.parents and path != CORE / "__init__.py"}
    assert units == set(RANK), "give the new file a place in LAYERS, above all that it imports"


def test_arrows_run_one_way() -> None:
    wrong = [
        f"{where}: {source} -> {target}"
        for source, target, late, where in arrows()
        if RANK.get(target, 0) >= RANK.get(source, 99) and not (late and (source, target) in LATE)
    ]
    assert wrong == []


def test_late_arrows_are_those_that_are_explained() -> None:
    late = {
        (source, target) for source, target, late, _ in arrows() if late and RANK.get(target, 0) >= RANK.get(source, 99)
    }
    assert late == set(LATE)


@pytest.mark.parametrize("name", "tree served interleaver mediator taps here blocks source wire batching".split())
def test_below_the_contexts_nothing_knows_them(name: str) -> None:
    known: dict[str, set[str]] = {}
    for source, target, _, _ in arrows():
        known.setdefault(source, set()).add(target)
    reached, ahead = set(), [name]
    while ahead:
        at = ahead.pop()
        for target in known.get(at, ()):
            if target not in reached:
                reached.add(target)
                ahead.append(target)
    assert not reached & CONTEXTS


def test_one_file_imports_greenlet() -> None:
    users = [
        str(path.relative_to(ROOT))
        for path in files()
        for node, _ in imports(path)
        if any(name.split(".")[0] == "greenlet" for name in modules_of(node, path))
    ]
    assert users == ["_core/turns.py"]


def test_torch_and_pickle_are_no_part_of_the_wire_but_for_tensors() -> None:
    users = {
        path.name: name
        for path in files()
        if path.parent == CORE / "wire"
        for node, _ in imports(path)
        for name in modules_of(node, path)
        if name.split(".")[0] in ("torch", "numpy", "pickle", "marshal")
    }
    assert users == {"tensors.py": "torch"}


def test_the_core_imports_what_it_declares() -> None:
    foreign = {
        name.split(".")[0]
        for path in files()
        if "testing" not in path.relative_to(ROOT).parts
        for node, _ in imports(path)
        for name in modules_of(node, path)
    } - {"nnsight"}
    assert {name for name in foreign if name not in sys.stdlib_module_names} <= DEPENDENCIES


def test_the_core_names_no_family_and_no_server() -> None:
    names = re.compile(r"\b(transformers|vllm|diffusers|ray|ndif|hugging ?face)\b|NDIF", re.IGNORECASE)
    found = []
    for path in files():
        for number, line in enumerate(path.read_text().splitlines(), start=1):
            # Names of settings in the environment are older than this project, and users have them in their profiles.
            told = re.sub(r'"NDIF_\w+"', "", line) if path == CORE / "config.py" else line
            if names.search(told):
                found.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()}")
    assert found == []


def test_importing_the_core_imports_nothing_heavier_than_torch() -> None:
    code = """
import sys, torch
before = set(sys.modules)
import nnsight
new = {name.split(".")[0] for name in set(sys.modules) - before}
print(*sorted(new - set(sys.stdlib_module_names)))
"""
    done = in_fresh_python(code)
    assert done.returncode == 0, done.stderr
    assert set(done.stdout.split()) <= {"nnsight", "greenlet", "platformdirs"}


def test_plugins_are_told_names_that_are_there() -> None:
    from nnsight import plugin

    assert sorted(plugin.__all__) == plugin.__all__ and all(hasattr(plugin, name) for name in plugin.__all__)
    assert all(hasattr(nnsight, name) for name in nnsight.__all__)
