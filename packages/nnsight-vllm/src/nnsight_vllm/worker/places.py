"""Values of an engine's step that no module of the model has: the logits, and the tokens that are drawn from them."""

from __future__ import annotations

from typing import Any

import torch

from nnsight.plugin import NNsight

#: Their names below the root, in the order in which they pass.
NAMES = ("logits", "samples")


class Passing(torch.nn.Module):
    """Returns what it is given, so that the value has a site."""

    def forward(self, value: Any) -> Any:
        """Return `value`."""
        return value


class ServedModel(NNsight):
    """A model of vLLM with the places of an engine's step: `model.logits.output`, `model.samples.output`."""

    def __init__(self, module: torch.nn.Module, **options: Any) -> None:
        super().__init__(module, **options)
        for name in NAMES:
            self._attach(name, Passing())

    def _pass(self, name: str, value: Any) -> Any:
        """Let a value pass through one of these places, and return what the bodies made of it."""
        return self.__dict__["_extras"][name](value)
