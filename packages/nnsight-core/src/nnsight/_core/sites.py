"""Places and stages: what a site is made of.

A *place* is something that a run passes: a module of the tree, an operation inside a forward, or a value that a family
provides. Each passing is a *visit*, which has two stages: the input is there, then the output is. Path, stage and
occurrence name a site. Places know nothing of runs; what stops at them is `taps.py` and `interleaver.py`.
"""

from __future__ import annotations

INPUT = "input"
OUTPUT = "output"


class Place:
    """Something that a run passes, known by its path from the root of the tree."""

    __slots__ = ("__weakref__", "owner", "path", "stepless")

    def __init__(self, path: str, owner: Place | None = None, stepless: bool = False) -> None:
        self.path = path
        #: The place of the module that this one belongs to: a run that has that module has this place.
        self.owner: Place = self if owner is None else owner
        #: True for what comes once, after the last step (a generator's result): steps neither delay nor hide it.
        self.stepless = stepless

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.path}>"


def site_name(path: str, stage: str) -> str:
    """Spell a site the way messages do: `model.h.1.output`."""
    return f"`{path}.{stage}`" if stage else f"`{path}`"
