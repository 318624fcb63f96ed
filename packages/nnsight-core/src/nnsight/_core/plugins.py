"""The plugins that are installed, and how a name of theirs becomes the thing itself.

The one idea: plugins are found when a name is first asked for that the core does not have, never before, and kept. An
error about a name says what to do: what to install, upgrade or remove. How they are found is in `discovery.py`.
"""

from __future__ import annotations

import importlib
import re
import sys
from contextvars import ContextVar
from importlib.machinery import PathFinder
from typing import Any

from . import aliases, directory
from .discovery import KINDS, Plugin, in_words, search
from .errors import MissingPluginError, PluginError


class BrokenPluginError(PluginError, ImportError):
    """A plugin is installed, and what is asked of it cannot be imported."""


class Plugins(list[Plugin]):
    """The installed plugins, shown as a table."""

    def __repr__(self) -> str:
        if not self:
            return "no plugins are installed"
        wide = max(len(plugin.title) for plugin in self)
        rows = []
        for plugin in self:
            head, *rest = plugin.lines()
            rows += [f"{plugin.title:<{wide}}  {head}", *(f"{'':<{wide}}  {line}" for line in rest)]
        return "\n".join(rows)


def plugins() -> Plugins:
    """List the installed plugins: what each is called, its version, what it offers, or why it cannot be used.

    Each element has `name`, `distribution`, `version`, `offers` (kind -> name -> "module:attribute") and `problem`.
    """
    return Plugins(_found())


def offered(kind: str) -> dict[str, str]:
    """All names of one kind, each with the "module:attribute" that it stands for; nothing of it is imported."""
    return {name: target for plugin in _found() for name, target in plugin.offers.get(kind, {}).items()}


def knows(kind: str, name: str) -> bool:
    """Whether `name` is offered, or would be by a package of this project that is missing: ask `lookup` then."""
    return bool(_claims(kind, name)) or directory.owner(kind, name) is not None


def lookup(kind: str, name: str) -> Any:
    """Load what a plugin offers as `name`; `kind` is one of the hooks, such as "families" or "backends".

    Raises a `PluginError` that says what to install, upgrade or uninstall.
    """
    claims = _claims(kind, name)
    if not claims and directory.owner(kind, name):
        forget()  # it may have been installed since, from a notebook
        claims = _claims(kind, name)
    if not claims:
        raise _refusal(kind, name)
    if len(claims) > 1:
        titles = " and by ".join(plugin.title for plugin in claims)
        raise PluginError(
            f"the {KINDS[kind]} {name!r} is claimed by {titles}; uninstall one of them: "
            f"pip uninstall {claims[-1].distribution}"
        )
    return _load(claims[0], kind, name)


def public_name(name: str) -> Any:
    """Find `nnsight.NAME` for a name that the core does not have: this is `nnsight.__getattr__`."""
    path = f"nnsight.{name}"
    if not name.startswith("_"):  # such names are asked for by tools, and must not make us look for plugins
        # `from nnsight import testing` asks for an attribute first, and is no reason to look for plugins either.
        if path in aliases.TABLE or PathFinder.find_spec(path, sys.modules["nnsight"].__path__):
            return importlib.import_module(path)
        for kind, known_as in (("families", name), ("import_aliases", path)):
            if knows(kind, known_as):
                return lookup(kind, known_as)
    raise AttributeError(f"module 'nnsight' has no attribute {name!r}", name=name, obj=sys.modules["nnsight"])


def suspicion(path: str) -> PluginError | None:
    """The error to raise for a path under `nnsight` that nobody offers, if a broken plugin might have offered it."""
    if not any(plugin.problem for plugin in _found()):
        return None
    parent, _, name = path.rpartition(".")
    return _refusal("families", name) if parent == "nnsight" else _refusal("import_aliases", path)


def packages() -> frozenset[str]:
    """The packages that the plugins' things lie in."""
    targets = (target for plugin in _found() for offers in plugin.offers.values() for target in offers.values())
    return frozenset(target.partition(":")[0].partition(".")[0] for target in targets)


def forget() -> None:
    """Look for plugins anew when one is next asked for."""
    global _plugins
    importlib.invalidate_caches()
    _plugins = None


_plugins: tuple[Plugin, ...] | None = None
_searching: ContextVar[bool] = ContextVar("nnsight_searching_for_plugins", default=False)


def _found() -> tuple[Plugin, ...]:
    # No lock: two threads that search at once find the same, while a lock held during imports could deadlock with
    # Python's own locks on modules.
    global _plugins
    known = _plugins
    if known is None:
        if _searching.get():
            raise PluginError(
                "the entry module of a plugin asks nnsight for a name that plugins may offer, while they are being "
                "found; import such names where they are used"
            )
        token = _searching.set(True)
        try:
            known = _plugins = tuple(search())
        finally:
            _searching.reset(token)
    return known


def _claims(kind: str, name: str) -> list[Plugin]:
    return [plugin for plugin in _found() if name in plugin.offers.get(kind, ())]


def _load(plugin: Plugin, kind: str, name: str) -> Any:
    target = plugin.offers[kind][name]
    try:
        return aliases.resolve(target)
    except Exception as error:  # whatever a plugin's modules raise, the message must say whose they are
        raise BrokenPluginError(
            f"{plugin.title} offers the {KINDS[kind]} {name!r} as {target}, which cannot be had: {in_words(error)}"
        ) from error


def _refusal(kind: str, name: str) -> PluginError:
    """Why nobody offers `name`: not installed, installed and broken, too old, or no such name."""
    owner, candidates = directory.owner(kind, name), _found()
    if owner:
        candidates = tuple(one for one in candidates if _same_distribution(one.distribution, owner.distribution))
        if not candidates:
            return MissingPluginError(
                f"the {KINDS[kind]} {name!r} is in {owner.distribution}, which is not installed: {owner.install_line}"
            )
    broken = [plugin for plugin in candidates if plugin.problem]
    if broken:
        reasons = "; ".join(f"{plugin.title} {plugin.lines()[0]}" for plugin in broken)
        error = BrokenPluginError(f"the {KINDS[kind]} {name!r} is not available: {reasons}")
        error.__cause__ = broken[0].problem
        return error
    if owner:
        return PluginError(
            f"{candidates[0].title} has no {KINDS[kind]} {name!r} yet: pip install --upgrade {owner.distribution}"
        )
    return PluginError(f"no plugin offers the {KINDS[kind]} {name!r}; there are {', '.join(offered(kind)) or 'none'}")


def _same_distribution(one: str, other: str) -> bool:
    return re.sub(r"[-_.]+", "-", one).lower() == re.sub(r"[-_.]+", "-", other).lower()
