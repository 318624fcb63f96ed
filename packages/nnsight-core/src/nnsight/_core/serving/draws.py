"""Random numbers that bodies draw with torch, apart from those of the engine.

One idea: each body has a state of its own, which begins with a seed that is the same on all ranks. So the ranks draw the
same, whatever else their processes have drawn; and what a body draws, or seeds, changes no token of other requests.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from .mediator import ServedMediator


def draw_apart(mediator: ServedMediator, seed: int, turn: Callable[[], Any]) -> Any:
    """Let a body have a turn with random numbers of its own.

    Args:
        mediator: the body's.
        seed: what its first turn begins with.
        turn: the turn.
    """
    generators = _generators()
    engine = [generator.get_state() for generator in generators]
    if mediator.drawn is None:
        for generator in generators:
            generator.manual_seed(seed)
    else:
        for generator, state in zip(generators, mediator.drawn):
            generator.set_state(state)
    try:
        return turn()
    finally:
        mediator.drawn = [generator.get_state() for generator in generators]
        for generator, state in zip(generators, engine):
            generator.set_state(state)


def _generators() -> list[torch.Generator]:
    in_use: Callable[[], bool] = torch.cuda.is_initialized
    if in_use():
        return [torch.default_generator, torch.cuda.default_generators[torch.cuda.current_device()]]
    return [torch.default_generator]
