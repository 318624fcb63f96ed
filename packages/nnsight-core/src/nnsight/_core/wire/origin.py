"""Whose code a module is: installed, and so at the other end too, or the user's own.

The one idea: what lies where packages are installed is installed. Whatever lies elsewhere travels, an editable install
too, but for nnsight itself and its plugins; and whatever was registered.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import site
import sys
import sysconfig
from types import ModuleType
from typing import Any

_registered: set[str] = set()
_PLACES = ("site-packages", "dist-packages")


def register(name: str) -> None:
    """Let a module, and all below it, travel by value."""
    _registered.add(name)


def is_own(name: str | None) -> bool:
    """Whether what was written in the module of this name is the user's own, and so travels by value."""
    if name is None or name == "__main__":
        return True
    parts = name.split(".")
    if any(".".join(parts[: count + 1]) in _registered for count in range(len(parts))):
        return True
    module = sys.modules.get(name)
    if module is None:
        return True
    file = getattr(module, "__file__", None)
    if file is not None:
        return not _installed(file) and parts[0] not in _plugins()
    # Without a file: built in, frozen, a namespace of packages, made by hand, or by the code in C of a package.
    if getattr(module, "__path__", None) is not None:
        return not all(_installed(folder) for folder in module.__path__)
    if getattr(getattr(module, "__spec__", None), "origin", None) in ("built-in", "frozen"):
        return False
    return len(parts) == 1 or is_own(name.rpartition(".")[0])


def places() -> list[str]:
    """Return the folders from which another interpreter can import what is installed, and nothing of the user's."""
    found = [path for path in sys.path if _installed(os.path.join(path, "_"))]
    for package in sorted(_plugins()):
        spec = importlib.util.find_spec(package)
        if spec is not None and spec.origin is not None:
            folder = os.path.dirname(os.path.dirname(spec.origin))
            found += [] if folder in found else [folder]
    return found


def installed_by(package: str) -> bool:
    """Whether a package, which need not have been imported, is installed and none of the user's own."""
    if package in sys.modules:
        return not is_own(package)
    try:
        spec = importlib.util.find_spec(package)
    except (ImportError, ValueError):
        return False
    return spec is not None and (spec.origin in ("built-in", "frozen") or _installed(spec.origin or ""))


def find(thing: Any, name: str | None = None) -> tuple[str, str] | None:
    """Return the installed module and the name in it by which a thing can be imported; None if there is none."""
    name = name or getattr(thing, "__qualname__", None) or getattr(thing, "__name__", None)
    if not isinstance(name, str):
        return None
    home = getattr(thing, "__module__", None)
    if isinstance(home, str) and _holds(home, name, thing):
        return None if is_own(home) else (home, name)
    if "<locals>" in name:
        return None
    # Functions of C often do not say where they are; nor do those that are kept elsewhere under their names.
    name = name.rpartition(".")[2]
    for module, found in list(sys.modules.items()):
        if isinstance(found, ModuleType) and vars(found).get(name) is thing and not is_own(module):
            return module, name
    return None


def singleton(thing: Any) -> tuple[str, str] | None:
    """Return the installed module that an object's class is from and the name that the object has there, if it has one.

    `os.environ`, a sentinel, the configuration of a library: there is one of each at either end, and the other end's counts.
    """
    home = type(thing).__module__
    if home not in sys.modules or is_own(home):
        return None
    names = (name for name, value in list(vars(sys.modules[home]).items()) if value is thing)
    return next(((home, name) for name in names), None)


def version_of(module: str) -> tuple[str, str] | None:
    """Return the package that a module belongs to, and its version; None for the standard library."""
    top = module.partition(".")[0]
    if top in sys.stdlib_module_names:
        return None
    version = getattr(sys.modules.get(top), "__version__", None)
    return top, str(version) if isinstance(version, str) else ""


def _holds(home: str, name: str, thing: Any) -> bool:
    found: Any = sys.modules.get(home)
    for part in name.split("."):
        found = getattr(found, part, None)
    return found is thing


@functools.cache
def _installed(file: str) -> bool:
    path = os.path.abspath(file)
    return any(part in _PLACES for part in path.split(os.sep)) or path.startswith(_roots())


@functools.cache
def _roots() -> tuple[str, ...]:
    paths = [sysconfig.get_path(kind) for kind in ("stdlib", "platstdlib", "purelib", "platlib")]
    paths += [*site.getsitepackages(), site.getusersitepackages()] if hasattr(site, "getsitepackages") else []
    return tuple({os.path.abspath(path) + os.sep for path in paths if path})


@functools.cache
def _plugins() -> frozenset[str]:
    from importlib.metadata import entry_points

    return frozenset({"nnsight", *(entry.module.partition(".")[0] for entry in entry_points(group="nnsight"))})
