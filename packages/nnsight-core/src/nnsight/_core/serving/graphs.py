"""The sites of a model that runs as compiled graphs: where the graphs end, and nowhere else.

One idea: what is compiled is not called module by module, so nothing can be put around a module there. But a graph can be
made to end at a site that was declared before it was built, and whoever runs the graphs says that the model is there
(`Forwards.pass_site`). All other sites inside are refused when they are asked for: they would never come.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from ..errors import MissedProviderError
from ..sites import Place, site_name


class Graphs:
    """The declared sites of a model, by their numbers.

    Args:
        inside: the places of all modules that are compiled.
        sites: the places, and the stages, at which graphs end.
    """

    def __init__(self, inside: Collection[Place], sites: Sequence[tuple[Place, str]]) -> None:
        self.inside = frozenset(inside)
        self.sites = list(sites)
        self._declared = frozenset(sites)

    def check(self, place: Place, stage: str) -> None:
        """Refuse a site that never comes."""
        if place.owner in self.inside and (place, stage) not in self._declared:
            raise MissedProviderError(
                f"{site_name(place.path, stage)} never comes: the model runs as compiled graphs, which end at the sites that "
                f"were declared when its engine was started, and nowhere else. {self._those()} Start the engine with this "
                "one declared too, or without compiled graphs."
            )

    def check_skip(self, place: Place) -> None:
        """Refuse to skip what a graph computes."""
        if place.owner in self.inside:
            raise MissedProviderError(
                f"`{place.path}` cannot be skipped: the model runs as compiled graphs, in which all of it is computed. "
                f"Replace a declared site that comes after it ({self._those()}), or start the engine without graphs."
            )

    def _those(self) -> str:
        names = ", ".join(site_name(place.path, stage) for place, stage in self.sites)
        return f"Declared are {names}." if names else "None is declared."
