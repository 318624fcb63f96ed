"""Modules of the user's own, and the globals of functions: the same thing.

The one idea: over there each module of the user's is a module object that nobody else sees, which holds the names that
something uses, each put there by a step of its own. Import statements in what travels find these modules first.
"""

from __future__ import annotations

import builtins
import importlib
import importlib.util
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from types import ModuleType
from typing import Any

from ..errors import WireError
from . import origin
from .decoder import Decoder
from .encoder import Encoder, plain
from .kinds import makes, writes
from .uses import Chain, Import, Uses

_SELF: set[Chain] = {()}


def space_of(encoder: Encoder, around: dict[str, Any]) -> int:
    """Write the module that these globals belong to, without its names, and return the number of its step."""
    spaces = _spaces(encoder)
    known = spaces.get(id(around))
    if known is None:
        name = around.get("__name__")
        module = sys.modules.get(name) if isinstance(name, str) else None
        if is_everywhere(around):
            known = encoder.emit("import", name, "")
            _note_version(encoder, str(name))
        else:
            known = encoder.emit("module", *facts_of(around), hasattr(module, "__path__"))
        spaces[id(around)] = known
        encoder.kept.setdefault("globals", []).append(around)  # none may get its number meanwhile
    return known


def is_everywhere(around: dict[str, Any]) -> bool:
    """Say whether these are the globals of an installed module, which is at the other end too."""
    name = around.get("__name__")
    module = sys.modules.get(name) if isinstance(name, str) else None
    return module is not None and vars(module) is around and not origin.is_own(name)


def facts_of(around: dict[str, Any]) -> list[str | None]:
    """Return the name, package and file of the module that these globals belong to, as far as it says."""
    facts = [around.get(fact) for fact in ("__name__", "__package__", "__file__")]
    return [fact if isinstance(fact, str) else None for fact in facts]


def bare_module(name: str | None, package: str | None, file: str | None) -> ModuleType:
    """Make a module of the user's anew, with none of its names yet."""
    module = ModuleType(name or "unnamed")
    around = vars(module)
    around["__package__"] = package
    if file is not None:
        around["__file__"] = file
    around["__builtins__"] = dict(vars(builtins))
    return module


def put_uses(encoder: Encoder, around: dict[str, Any], used: Uses, skipped: Iterable[str] = ()) -> int:
    """Put what code uses into the module that its globals belong to, and return the number of that."""
    space = space_of(encoder, around)
    left_out = set(skipped)
    for name, chains in used.names.items():
        if name not in left_out:
            put(encoder, around, name, chains)
    for one in used.imports:
        put_import(encoder, around, one)
    return space


def put(encoder: Encoder, around: dict[str, Any], name: str, chains: Iterable[Chain] = _SELF) -> None:
    """Put one name into the module that these globals belong to, if it is there."""
    if name not in around or name in ("__builtins__", "__name__", "__file__", "__package__", "__spec__", "__loader__"):
        return
    space = space_of(encoder, around)
    if encoder.nodes[space][0] == "import":
        return  # it is there, with all its names
    value = around[name]
    with encoder.at(f"`{name}`"):
        use(encoder, value, chains)
        if encoder.first_time((space, name)):
            encoder.when_free(lambda: _put(encoder, space, name, value))


def _put(encoder: Encoder, space: int, name: str, value: Any) -> None:
    encoder.emit("put", space, name, encoder.value(value))


def use(encoder: Encoder, value: Any, chains: Iterable[Chain]) -> None:
    """Write what is used of a value, if it is a module of the user's."""
    if not isinstance(value, ModuleType) or not origin.is_own(value.__name__):
        return
    for chain in chains:
        if not chain:
            put_all(encoder, value)
        elif chain[0] in vars(value):
            put(encoder, vars(value), chain[0], [chain[1:]])
        elif hasattr(value, "__getattr__"):
            put_all(encoder, value)


def put_all(encoder: Encoder, module: ModuleType) -> None:
    """Put every name of a module; those that cannot travel are missed only when they are asked for."""
    if not encoder.first_time(("all of", module.__name__)):
        return
    space = space_of(encoder, vars(module))
    for name in list(vars(module)):
        try:
            put(encoder, vars(module), name)
        except WireError as error:
            encoder.emit("absent", space, name, str(error))


def put_import(encoder: Encoder, around: Mapping[str, Any], wanted: Import) -> None:
    """Write the modules of the user's that an import statement in code with these globals finds."""
    package = around.get("__package__") or str(around.get("__name__") or "").rpartition(".")[0]
    try:
        name = importlib.util.resolve_name("." * wanted.level + wanted.module, package if wanted.level else None)
        parts = name.split(".")
        if origin.installed_by(parts[0]) and not origin.is_own(name):
            return  # whether it can be imported shows there
        module = importlib.import_module(name)
    except ImportError:
        return  # it fails here, so it may fail there
    if not origin.is_own(name):
        return
    for count in range(1, len(parts)):
        above = sys.modules[".".join(parts[:count])]
        put(encoder, vars(above), parts[count], ())
    space_of(encoder, vars(module))
    if not wanted.names or "*" in wanted.names:
        put_all(encoder, module)
    for one in wanted.names:
        if one not in vars(module) and importlib.util.find_spec(f"{name}.{one}"):
            importlib.import_module(f"{name}.{one}")
        put(encoder, vars(module), one)


@writes(ModuleType, family=True)
@plain
def _write_module(encoder: Encoder, module: ModuleType) -> int:
    # What is used of it is put there by those that use it.
    return space_of(encoder, vars(module))


def _spaces(encoder: Encoder) -> dict[int, int]:
    spaces: dict[int, int] = encoder.kept.setdefault("spaces", {})
    return spaces


def _note_version(encoder: Encoder, module: str) -> None:
    version = origin.version_of(module)
    if version is not None:
        encoder.packages[version[0]] = version[1]


def reference(encoder: Encoder, module: str, name: str) -> int:
    """Write a name of an installed module."""
    _note_version(encoder, module)
    return encoder.emit("import", module, name)


# -- over there ------------------------------------------------------------------------------------------------------


class Modules(dict[str, ModuleType]):
    """The user's modules that came with a message, by name."""

    def importer(self, name: str, around: Any = None, here: Any = None, names: Any = (), level: int = 0) -> Any:
        """Import for code that came with them: what `__import__` does."""
        full = name
        if level:
            package = around.get("__package__") or around.get("__name__", "").rpartition(".")[0]
            full = importlib.util.resolve_name("." * level + name, package)
        if full not in self:
            return builtins.__import__(name, around, here, names, level)
        if names:
            return self[full]
        top = full.partition(".")[0]
        return self.get(top, self[full])

    @contextmanager
    def known(self) -> Iterator[None]:
        """Let those whose names are free be found in `sys.modules`, where dataclasses look for a class's module."""
        mine = {name: module for name, module in self.items() if sys.modules.setdefault(name, module) is module}
        try:
            yield
        finally:
            for name, module in mine.items():
                if sys.modules.get(name) is module:
                    del sys.modules[name]


def modules_of(decoder: Decoder) -> Modules:
    """Return the user's modules that came with a message."""
    modules: Modules = decoder.kept.setdefault("modules", Modules())
    return modules


@makes("module")
def _make_module(decoder: Decoder, step: list[Any]) -> ModuleType:
    _, name, package, file, is_package = step
    modules = modules_of(decoder)
    module = bare_module(name, package, file)
    around = vars(module)
    if is_package:
        around["__path__"] = []
    around["__builtins__"]["__import__"] = modules.importer
    # Two may have one name: functions of `__main__` in several processes that a value went through.
    modules.setdefault(module.__name__, module)
    return module


@makes("put")
def _make_put(decoder: Decoder, step: list[Any]) -> None:
    _, space, name, value = step
    module = decoder.value([space])
    if not isinstance(module, ModuleType) or module not in modules_of(decoder).values():
        raise WireError("a name is to be put into something else than a module that came along")
    vars(module)[name] = decoder.value(value)


@makes("absent")
def _make_absent(decoder: Decoder, step: list[Any]) -> None:
    _, space, name, reason = step
    around = vars(decoder.value([space]))
    missing = around.setdefault("__absent__", {})
    missing[name] = str(reason)

    def tell(asked: str) -> Any:
        said = missing.get(asked, f"module {around['__name__']!r} has no attribute {asked!r}")
        raise AttributeError(said, name=asked)

    around.setdefault("__getattr__", tell)


@makes("import")
def _make_import(decoder: Decoder, step: list[Any]) -> Any:
    _, module, name = step
    try:
        found: Any = importlib.import_module(module)
        for part in name.split(".") if name else ():
            found = getattr(found, part)
    except (ImportError, AttributeError) as error:
        raise WireError(_missing(decoder, module, name, error)) from error
    return found


def _missing(decoder: Decoder, module: str, name: str, error: Exception) -> str:
    said = decoder.document.get("packages")
    top = module.partition(".")[0]
    version = said.get(top, "") if isinstance(said, dict) else ""
    what = f"`{name}` of `{module}`" if name else f"`{module}`"
    return (
        f"{what} is needed, and is not to be had here ({error}). Whoever sent it has {top} {version or 'of some version'}: "
        f"install that here, or send the package along with nnsight.register({top!r})"
    )
