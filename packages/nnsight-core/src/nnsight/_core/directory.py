"""What the packages that belong to this project offer, so that a missing one can be named.

The one idea: the core's code names no plugin. `directory.json` lists which extra of nnsight-core brings which names,
and is consulted only to explain why a name cannot be had; what is really offered, `plugins.py` learns from the plugins.
"""

from __future__ import annotations

import functools
import json
from typing import NamedTuple


class Owner(NamedTuple):
    """The extra of nnsight-core, and the distribution behind it, that a name belongs to."""

    extra: str
    distribution: str

    @property
    def install_line(self) -> str:
        return f'pip install "nnsight-core[{self.extra}]"'


@functools.cache
def _owners() -> dict[tuple[str, str], Owner]:
    from importlib.resources import files

    content = json.loads(files("nnsight._core").joinpath("directory.json").read_text(encoding="utf-8"))
    return {
        (kind, name): Owner(extra, entry["distribution"])
        for extra, entry in content.items()
        for kind, names in entry.items()
        if kind != "distribution"
        for name in names
    }


def owner(kind: str, name: str) -> Owner | None:
    """Who in this project brings `name`, installed or not; None for names that it knows nothing of."""
    return _owners().get((kind, name))


def owned(kind: str) -> dict[str, Owner]:
    """All names of one kind that packages of this project bring, installed or not, each with its owner."""
    return {name: owner for (of, name), owner in _owners().items() if of == kind}
