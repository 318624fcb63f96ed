"""Finding the plugins that are installed, and asking each what it offers.

The one idea: a search collects names and imports nothing but each plugin's entry module. What is wrong with a plugin is
kept with that plugin, so that it costs nobody else. Each is asked through a plugin manager of its own: what it offers
is then known to be its own, and no plugin can change another's answers.
Which plugin a name is taken from is decided in `plugins.py`; the hooks are in `hookspecs.py`.
"""

from __future__ import annotations

import re
import sys
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING

from . import aliases
from .errors import NNsightWarning, PluginError

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

CORE = "nnsight-core"
#: The kinds of things that plugins offer, one hook each, and what one of them is called.
KINDS = {
    "families": "model family",
    "backends": "backend",
    "import_aliases": "import path",
    "travels_by_reference": "reference",
    "commands": "command",
}
_TARGET = re.compile(r"[\w.]+(:[\w.]+)?")


@dataclass(frozen=True)
class Plugin:
    """One installed plugin: where it comes from, and what it offers as kind -> name -> "module:attribute"."""

    name: str
    distribution: str
    version: str
    offers: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    #: Why nothing of it can be used, or None.
    problem: Exception | None = None

    @property
    def title(self) -> str:
        return f"{self.distribution} {self.version}"

    def lines(self) -> list[str]:
        """What it offers, or why it offers nothing, one kind a line."""
        if self.problem:
            return [f"cannot be used: {in_words(self.problem)}"]
        lines = [f"{kind.replace('_', ' ')}: {', '.join(names)}" for kind, names in self.offers.items() if names]
        return lines or ["offers nothing"]

    def __repr__(self) -> str:
        return f"<Plugin {self.name!r} of {self.title}; {'; '.join(self.lines())}>"


def in_words(problem: Exception) -> str:
    return str(problem) if isinstance(problem, PluginError) else f"{type(problem).__name__}: {problem}"


def search() -> Iterator[Plugin]:
    """Find every entry point of the group `nnsight`; warn of those that cannot be used."""
    from importlib.metadata import entry_points

    for entry in sorted(entry_points(group="nnsight"), key=lambda entry: (_distribution(entry), entry.name)):
        distribution, version = _distribution(entry)
        try:
            _check_requirement(entry)
            plugin = Plugin(entry.name, distribution, version, _ask(entry))
        except Exception as error:  # a plugin can raise anything, and must cost nobody but itself
            plugin = Plugin(entry.name, distribution, version, problem=error)
            warnings.warn(f"the plugin {plugin.title} {plugin.lines()[0]}", NNsightWarning, stacklevel=2)
        yield plugin


def _distribution(entry: EntryPoint) -> tuple[str, str]:
    # An entry point that was made by hand belongs to no distribution.
    return (entry.dist.name, entry.dist.version) if entry.dist else (entry.name, "of no version")


def _check_requirement(entry: EntryPoint) -> None:
    """Raise if the plugin's metadata asks for another version of the core than is here.

    From the metadata, where the installer reads it too, and not from a hook: a plugin for another core may well not
    be importable.
    """
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    from nnsight._version import __version__ as core

    for line in (entry.dist and entry.dist.requires) or ():
        needed = Requirement(line)
        if canonicalize_name(needed.name) != CORE or (needed.marker and not needed.marker.evaluate({"extra": ""})):
            continue
        if not needed.specifier.contains(core, prereleases=True):
            raise PluginError(
                f"it is made for {CORE} {needed.specifier}, and {CORE} {core} is installed; "
                f"upgrade both: pip install --upgrade {_distribution(entry)[0]} {CORE}"
            )


def _ask(entry: EntryPoint) -> dict[str, Mapping[str, str]]:
    """Import the entry module and ask its hooks for names."""
    import pluggy

    from . import hookspecs

    manager = pluggy.PluginManager("nnsight")
    manager.add_hookspecs(hookspecs)
    manager.register(entry.load(), name=entry.name)
    manager.check_pending()
    return {kind: MappingProxyType(_checked(kind, getattr(manager.hook, kind)())) for kind in KINDS}


def _checked(kind: str, answers: list[object]) -> dict[str, str]:
    names: dict[str, str] = {}
    for answer in answers:
        if not isinstance(answer, Mapping):
            raise PluginError(f"its hook {kind} returns {type(answer).__name__}, not a mapping of names")
        names.update(answer)
    for name, target in names.items():
        if not isinstance(target, str) or not _TARGET.fullmatch(target):
            raise PluginError(f"its hook {kind} gives {target!r} for {name!r}; it must be written 'module:attribute'")
        if kind == "import_aliases" and not name.startswith("nnsight."):
            raise PluginError(f"its hook {kind} names {name!r}; import paths of plugins lie under 'nnsight.'")
        if _is_cores_own(kind, name):
            raise PluginError(f"its hook {kind} claims {name!r}, which is a name of {CORE} itself")
    return names


def _is_cores_own(kind: str, name: str) -> bool:
    """Whether a plugin would offer `name` in vain, because nobody asks plugins for what the core has."""
    public = getattr(sys.modules["nnsight"], "__all__", ())
    if kind == "families":
        return name in public
    return kind == "import_aliases" and (name in aliases.TABLE or name.removeprefix("nnsight.") in public)
