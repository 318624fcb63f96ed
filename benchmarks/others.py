"""The work, as pyvene and TransformerLens do it, where they can: read, read and replace, and keep everything.

pyvene is given functions as interventions. TransformerLens is given hook points behind the layers of a chain; to models
of another shape they would have to be added by hand, so it is timed on chains only.
"""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from models import Chain, Subject


def case(contender: str, work: str, subject: Subject, count: int) -> Callable[[], Any] | None:
    """Return the work as this contender does it, or None if it cannot."""
    return {"pyvene": _pyvene, "TransformerLens": _transformer_lens}[contender](work, subject, count)


def _pyvene(work: str, subject: Subject, count: int) -> Callable[[], Any] | None:
    import pyvene

    kept: list[Tensor] = []

    def keep(base: Tensor, source: Any) -> Tensor:
        kept.append(base)
        return base

    def change(base: Tensor, source: Any) -> Tensor:
        kept.append(base * 1.5)
        return kept[-1]

    functions = {"read": keep, "read and replace": change}
    if work not in functions:
        return None
    net = subject.net
    net.config = types.SimpleNamespace()  # pyvene asks every model for one and reads nothing of it here
    places = [
        {"component": f"layers[{number}].output", "intervention": functions[work]} for number in subject.picked(count)
    ]
    model = pyvene.IntervenableModel(places, model=net)
    inputs = {"x" if subject.x.is_floating_point() else "ids": subject.x}

    def run() -> Tensor:
        kept.clear()
        model(inputs)
        assert len(kept) == count, "an intervention did not run"
        return kept[-1]

    return run


def _transformer_lens(work: str, subject: Subject, count: int) -> Callable[[], Any] | None:
    from transformer_lens import HookedRootModule
    from transformer_lens.hook_points import HookPoint

    if not isinstance(subject.net, Chain):
        return None

    class Hooked(HookedRootModule):
        def __init__(self, layers: nn.ModuleList) -> None:
            super().__init__()
            self.layers = layers
            self.points = nn.ModuleList(HookPoint() for _ in layers)
            self.setup()

        def forward(self, x: Tensor) -> Tensor:
            for layer, point in zip(self.layers, self.points):
                x = point(layer(x))
            return x

    model, x = Hooked(subject.net.layers), subject.x
    names = [f"points.{number}" for number in subject.picked(count)] if count else []
    kept: list[Tensor] = []

    def keep(value: Tensor, hook: Any) -> None:
        kept.append(value)

    def change(value: Tensor, hook: Any) -> Tensor:
        kept.append(value * 1.5)
        return kept[-1]

    def run(function: Callable[..., Any]) -> Tensor:
        kept.clear()
        model.run_with_hooks(x, fwd_hooks=[(name, function) for name in names])
        return kept[-1]

    made: dict[str, Callable[[], Any]] = {
        "read": lambda: run(keep),
        "read and replace": lambda: run(change),
        "cache all": lambda: model.run_with_cache(x)[1],
    }
    return made.get(work)
