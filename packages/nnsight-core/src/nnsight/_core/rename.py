"""What a user writes as `rename`, read into rules.

A rename is a mapping of keys (which modules are meant) to aliases (what they are also called). Here its form is
checked and each pair becomes one `Rule`; what the rules lead to in a given model is `naming.py`'s question.
"""

from __future__ import annotations

import keyword
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

from torch.nn import Module

from .errors import RenameError

Names = tuple[str, ...]
"""A path as its components; empty for the module where it starts."""

_MODULE_ATTRIBUTES = frozenset(dir(Module()))


class Rule(NamedTuple):
    """One key of a rename, as it concerns one alias."""

    key: str | type
    parts: Names
    """The key's components; none if the key is a class."""
    anchored: bool
    """Whether the path starts at the root only."""
    star: int
    """Where the last `*` stands among the parts, or -1."""

    def __str__(self) -> str:
        return self.key.__name__ if isinstance(self.key, type) else repr(self.key)


def rules_of(rename: Mapping[str | type, str | Sequence[str]], reserved: Collection[str]) -> dict[str, list[Rule]]:
    """Return, for each alias, its rules in the order in which they were written.

    Raises:
        RenameError: A key or an alias has the wrong form, or an alias can never be reached.
    """
    if not isinstance(rename, Mapping):
        raise RenameError(f"rename must be a dict of key to alias, not {rename!r}: write {{'mlp': 'feedforward'}}.")
    rules: dict[str, list[Rule]] = {}
    for key, value in rename.items():
        rule = _rule(key)
        for alias in _aliases(key, value):
            bare = alias.removeprefix(".")
            # A key that is its own alias changes nothing, and libraries with one rename for many families write such.
            if rule.parts[-1:] != (bare,):
                _accept(key, bare, reserved)
            rules.setdefault(bare, []).append(rule._replace(anchored=rule.anchored or alias != bare))
    return rules


def ends_of(rules: Mapping[str, Sequence[Rule]]) -> dict[str, list[str]]:
    """Return, by the real name of a module, the aliases that may stand for it; under `*`, those that may for any."""
    ends = {alias: {"*" if isinstance(r.key, type) else r.parts[-1] for r in some} for alias, some in rules.items()}
    growing = True
    while growing:
        growing = False
        for names in ends.values():
            # A key may end in an alias, and so stand for what that one stands for.
            further = {end for name in names for end in ends.get(name, ())} - names
            growing = growing or bool(further)
            names |= further
    every = {"*"}.union(*ends.values())
    return {name: [alias for alias, names in ends.items() if name in names or "*" in names] for name in every}


def _rule(key: object) -> Rule:
    if isinstance(key, type):
        return Rule(key, (), False, -1)
    if not isinstance(key, str):
        raise RenameError(f"rename key {key!r} is neither a path nor a class: write 'mlp', 'transformer.h' or MyMLP.")
    parts = tuple(key.removeprefix(".").split("."))
    if not all(parts):
        raise RenameError(f"rename key {key!r} has an empty component: write 'mlp', 'transformer.h' or '.transformer'.")
    return Rule(key, parts, key.startswith("."), max((i for i, part in enumerate(parts) if part == "*"), default=-1))


def _aliases(key: object, value: object) -> list[str]:
    given = [value] if isinstance(value, str) else value
    if not isinstance(given, Sequence) or not given or not all(isinstance(alias, str) for alias in given):
        raise RenameError(f"rename gives {key!r} {value!r}: write one alias, 'layers', or a list, ['layers', 'h'].")
    return list(given)


def _accept(key: object, alias: str, reserved: Collection[str]) -> None:
    if not alias.isidentifier() or keyword.iskeyword(alias):
        raise RenameError(
            f"rename gives {key!r} the alias {alias!r}, which cannot be written as an attribute: "
            "an alias is one name, such as 'layers'; paths and numbers belong in the key."
        )
    if alias in _MODULE_ATTRIBUTES or alias in reserved:
        owner = "torch.nn.Module" if alias in _MODULE_ATTRIBUTES else "nnsight"
        raise RenameError(
            f"rename gives {key!r} the alias {alias!r}, which every module has already (from {owner}), so that it "
            f"would never be reached: choose another, such as '{alias}_'."
        )
