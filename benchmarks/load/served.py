"""The model of the load runs, the block that is run on it, and what that block has to give, worked out by hand."""

from __future__ import annotations

import torch

from nnsight import NNsight
from nnsight.testing.models import MLP, seeded


def mlp() -> NNsight:
    """Make the model: the same weights wherever it is made."""
    return NNsight(seeded(MLP, depth=4, width=32))


def input_of(job: int) -> torch.Tensor:
    """Return what job number `job` is given, [3, 4]: no two are alike."""
    return torch.randn(3, 4, generator=torch.Generator().manual_seed(job))


def by_hand(model: NNsight, job: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the second layer's output and the model's, where the third layer's is replaced with the second's times `job`."""
    module = model._module
    with torch.no_grad():
        state = module.embed(input_of(job))
        for number, layer in enumerate(module.layers):
            given = layer(state)
            if number == 1:
                hidden = given
            if number == 2:
                given = hidden * job
            state = state + torch.tanh(given)
        return hidden, module.head(state)
