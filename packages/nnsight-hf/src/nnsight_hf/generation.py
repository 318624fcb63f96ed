"""The places of a generation that the model's own modules do not have: its result, and the token of each step."""

from __future__ import annotations

from typing import Any

import torch


class Passing(torch.nn.Module):
    """Returns what it is given, so that the value has a site."""

    def forward(self, value: Any) -> Any:
        """Return `value`."""
        return value


class Generator(Passing):
    """The result of a generation: `model.generator.output`, and each step's tokens: `model.generator.streamer.output`."""

    def __init__(self) -> None:
        super().__init__()
        self.streamer = Passing()


class Stream:
    """A streamer, as `generate` takes one, that passes each step's tokens [rows] through the generator's place."""

    def __init__(self, place: Passing) -> None:
        self._place = place
        self._prompt = True

    def put(self, value: torch.Tensor) -> None:
        """Take the prompt, which is no step's, and then the tokens of each step."""
        if self._prompt:
            self._prompt = False
        else:
            self._place(value)

    def end(self) -> None:
        """Nothing is kept, so there is nothing to finish."""


def multiples(module: torch.nn.Module, options: dict[str, Any]) -> tuple[int, ...]:
    """Return how many times in a row a prompt may lie in the values of a generation: beams, returned sequences."""
    config = options.get("generation_config") or getattr(module, "generation_config", None)

    def stated(name: str) -> int:
        value = options.get(name)
        if value is None:
            value = getattr(config, name, None)
        return int(value or 1)

    return tuple(sorted({1, stated("num_beams"), stated("num_return_sequences")}))


def streams(module: torch.nn.Module, options: dict[str, Any]) -> bool:
    """Say whether a streamer may be passed: transformers refuses one with beams, and the user may have one."""
    config = options.get("generation_config") or getattr(module, "generation_config", None)
    beams = options.get("num_beams")
    if beams is None:
        beams = getattr(config, "num_beams", None)
    return "streamer" not in options and int(beams or 1) == 1
