"""Aliases: other names under which the modules of a wrapped model can be reached.

A `Naming` answers, for one module at a time, what a name stands for there, always as a relative path *of real
submodule names*; who asked walks it. Nothing is bound onto modules, so a module that is replaced later is simply found,
or not found, the next time.

The rules come from `rename.py`. That an alias is an attribute of an envoy is `envoy.py`'s doing; that it shows in the
repr, `printing.py`'s.
"""

from __future__ import annotations

import weakref
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import NamedTuple

from torch.nn import Module

from .errors import RenameError
from .rename import Names, Rule, ends_of, rules_of


class Match(NamedTuple):
    """A module that a rule leads to, and its path from where the alias was asked for."""

    names: Names
    module: Module
    rule: Rule


class Known(NamedTuple):
    """An answer given before, and what must still hold for it to be given again."""

    asked: weakref.ref[Module]
    children: list[str]
    names: Names
    path: str

    def holds(self, module: Module, alias: str) -> bool:
        """Whether nothing has come or gone that could change the answer."""
        if self.asked() is not module or list(module._modules) != self.children:
            return False
        if alias in module.__dict__ or alias in module._parameters or alias in module._buffers:
            return False
        for name in self.names:
            child = module._modules.get(name)
            if child is None:
                return False
            module = child
        return True


class Naming:
    """Hold the aliases of one wrapped model.

    Each key of `rename` says which modules are meant, its value the alias, or several, that they also answer to:

    ====================  ==========================================================================================
    `"mlp"`               every submodule of that name; the alias is on its parent
    `"transformer.h"`     the module at that path from any module that has it; the alias is where the path starts
    `".transformer"`      the same, of a path (one component or more) that starts at the root only
    `"layers.*.attn"`     `*` is any one component. The alias is on each module that the last `*` stands for; and also
                          where the path starts, if from there it leads to one module only
    `MyAttention`         every submodule of that class; the alias is on its parent
    ====================  ==========================================================================================

    A component of a key may be an alias itself (`{"transformer": "model", "model.h": "layers"}`). Several keys may
    give one alias, for models that spell one part differently: those that lead nowhere are passed over. An attribute
    that a module really has comes before an alias of that name. A dot before an alias puts it on the root only.

    Args:
        rename: The aliases, or None for none.
        reserved: Names that no alias may have, because something else answers to them first.

    Raises:
        RenameError: A key or an alias has the wrong form, or an alias can never be reached.

    Example:
        >>> naming = Naming({"transformer.h": "layers", "mlp": ["feedforward", "ff"]})
        >>> naming.resolve(gpt2, "", gpt2, "layers")
        'transformer.h'
    """

    def __init__(
        self, rename: Mapping[str | type, str | Sequence[str]] | None = None, reserved: Collection[str] = ()
    ) -> None:
        self._given = ({} if rename is None else rename, reserved)
        self._rules = rules_of(*self._given)
        self._ends = ends_of(self._rules)
        self._known: dict[tuple[str, str], Known] = {}

    def __bool__(self) -> bool:
        return bool(self._rules)

    def __reduce__(self) -> tuple[type[Naming], tuple[object, ...]]:
        return type(self), self._given

    def resolve(self, root: Module, path: str, module: Module, name: str) -> str | None:
        """Return the path, relative to `module`, of the submodule that `name` is an alias of there, or None.

        Args:
            root: The wrapped module.
            path: Where `module` lies in it: "" for the root itself, else such as "transformer.h.0".
            module: The module on which the name is asked for.
            name: The name.

        Raises:
            RenameError: The alias leads to two different modules.
        """
        if name not in self._rules:
            return None
        known = self._known.get((path, name))
        if known is not None and known.holds(module, name):
            return known.path
        match = self._find(root, _split(path), module, name, frozenset())
        if match is None:
            return None
        answer = ".".join(match.names)
        self._known[path, name] = Known(weakref.ref(module), list(module._modules), match.names, answer)
        return answer

    def aliases(self, root: Module, path: str, module: Module) -> dict[str, str]:
        """Return every alias that `module` has, and the relative path of the submodule it stands for."""
        found = ((alias, self.resolve(root, path, module, alias)) for alias in self._rules)
        return {alias: relative for alias, relative in found if relative is not None}

    def names_of(self, root: Module, path: str) -> list[str]:
        """Return the aliases, on whichever modules above it, that stand for the module at `path`."""
        names = _split(path)
        likely = self._ends.get(names[-1], self._ends["*"]) if names else []
        if not likely:
            return []
        above = _spine(root, names[:-1])
        places = [(".".join(names[:depth]), module, ".".join(names[depth:])) for depth, module in enumerate(above)]
        return [
            alias
            for alias in likely
            if alias != names[-1]
            and any(self.resolve(root, start, module, alias) == rest for start, module, rest in places)
        ]

    def check(self, root: Module) -> None:
        """Raise RenameError where an alias leads to two different modules.

        Of modules that are built alike only the first is looked at, so that a deep model costs little more than a
        shallow one; what escapes this look is raised by `resolve`.
        """
        shapes: dict[object, int] = {}
        firsts: dict[int, tuple[str, Module]] = {}

        def shape(path: str, module: Module, above: tuple[Module, ...]) -> int:
            if module in above:
                return -1
            inside = tuple(
                (name, shape(f"{path}.{name}" if path else name, child, (*above, module)))
                for name, child in _children(module)
            )
            number = shapes.setdefault((type(module), inside), len(shapes))
            firsts.setdefault(number, (path, module))
            return number

        if self._rules:
            shape("", root, ())
        for path, module in firsts.values():
            self.aliases(root, path, module)

    def _find(self, root: Module, at: Names, module: Module, alias: str, busy: frozenset[object]) -> Match | None:
        """Return the one module that `alias` stands for on `module`.

        `busy` is what is being looked for already: keys may go through aliases, and so in a circle.
        """
        if (at, alias) in busy or _has(module, alias):
            return None
        busy |= {(at, alias)}
        rules = self._rules[alias]
        matches = [match for rule in rules for match in self._matches(root, at, module, rule, busy)]
        # The start of a starred path has the alias only by courtesy, so any other claim comes first.
        matches = matches or [match for rule in rules for match in self._lone(root, at, module, rule, busy)]
        for match in matches[1:]:
            if match.module is not matches[0].module:
                raise RenameError(_conflict(alias, at, module, matches[0], match))
        return matches[0] if matches else None

    def _matches(self, root: Module, at: Names, module: Module, rule: Rule, busy: frozenset[object]) -> Iterator[Match]:
        after = rule.parts[rule.star + 1 :]
        if rule.star >= 0 and after:
            if self._starred(root, at, rule, busy):
                yield from self._walk(root, at, module, rule, after, busy)
        elif rule.anchored and at:
            return
        elif isinstance(rule.key, type):
            yield from (Match((n,), child, rule) for n, child in _children(module) if isinstance(child, rule.key))
        else:
            yield from self._walk(root, at, module, rule, rule.parts, busy)

    def _lone(self, root: Module, at: Names, module: Module, rule: Rule, busy: frozenset[object]) -> list[Match]:
        """Return what a path with a `*` leads to from its start, if that is one module only."""
        if rule.star < 0 or (rule.anchored and at):
            return []
        matches = list(self._walk(root, at, module, rule, rule.parts, busy))
        return matches[:1] if len({id(match.module) for match in matches}) == 1 else []

    def _starred(self, root: Module, at: Names, rule: Rule, busy: frozenset[object]) -> bool:
        """Whether the rule's last `*` can stand for the module at `at`."""
        spine = _spine(root, at)

        def reaches(depth: int, parts: Names) -> bool:
            if not parts or depth == len(at):
                return not parts and depth == len(at)
            ways = self._step(root, at[:depth], spine[depth], parts[0], busy)
            return any(at[depth:][: len(way)] == way and reaches(depth + len(way), parts[1:]) for way, _ in ways)

        starts = range(1 if rule.anchored else len(at))
        return any(reaches(depth, rule.parts[: rule.star + 1]) for depth in starts)

    def _walk(
        self, root: Module, at: Names, module: Module, rule: Rule, parts: Names, busy: frozenset[object]
    ) -> Iterator[Match]:
        if not parts:
            yield Match((), module, rule)
            return
        for step, child in self._step(root, at, module, parts[0], busy):
            for match in self._walk(root, at + step, child, rule, parts[1:], busy):
                yield match._replace(names=step + match.names)

    def _step(
        self, root: Module, at: Names, module: Module, part: str, busy: frozenset[object]
    ) -> list[tuple[Names, Module]]:
        """Return where one component of a key leads from `module`: a real submodule, or else an alias."""
        if part == "*":
            return [((name,), child) for name, child in _children(module)]
        child = module._modules.get(part)
        if child is not None:
            return [((part,), child)]
        match = self._find(root, at, module, part, busy) if part in self._rules else None
        return [] if match is None else [(match.names, match.module)]


def _conflict(alias: str, at: Names, module: Module, one: Match, other: Match) -> str:
    where = f"'{'.'.join(at)}'" if at else "the root"
    keys = f"key {one.rule} leads" if one.rule == other.rule else f"keys {one.rule} and {other.rule} lead"
    first, second = ".".join(one.names), ".".join(other.names)
    return (
        f"rename alias '{alias}' would be two modules of {where} ({type(module).__name__}): its {keys} to '{first}' "
        f"and to '{second}'. Give each an alias of its own: {{'{first}': '{alias}', '{second}': '{alias}_2'}}."
    )


def _children(module: Module) -> list[tuple[str, Module]]:
    return [(name, child) for name, child in module._modules.items() if child is not None]


def _has(module: Module, name: str) -> bool:
    """Whether `name` is an attribute that the module really has, found without running any property."""
    own = (module._modules, module.__dict__, module._parameters, module._buffers)
    return any(name in names for names in own) or hasattr(type(module), name)


def _split(path: str) -> Names:
    return tuple(path.split(".")) if path else ()


def _spine(root: Module, names: Names) -> list[Module]:
    """Return the modules on the way down to `names`, both ends included."""
    spine = [root]
    for name in names:
        spine.append(spine[-1].get_submodule(name))
    return spine
