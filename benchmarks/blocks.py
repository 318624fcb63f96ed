"""The work, written with nnsight: the same text is run by ours and by the peer, each under the name `nnsight`.

Every function does its work once and returns a value by which it is compared with the same work done by hooks, so that
nothing is timed that does not happen.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

import nnsight


class PeerStack(nnsight.NNsight):
    """The peer's `NNsight` batches nothing by itself: this states that tensors are stacked."""

    def _batch(self, invokes: Any, fn: Any) -> Any:
        return invokes[0] if len(invokes) == 1 else ((torch.cat([inputs[0] for inputs, _ in invokes]),), {})


def wrap(net: torch.nn.Module, peer: bool) -> Any:
    """Wrap a module so that its invokes can be batched."""
    return PeerStack(net) if peer else nnsight.NNsight(net)


def empty(model: Any, x: Tensor) -> None:
    """A trace without a body."""
    with model.trace(x):
        pass


def read(model: Any, x: Tensor, layers: Sequence[int]) -> Tensor:
    """Read the outputs of some layers."""
    with model.trace(x):
        for number in layers:
            hidden = model.layers[number].output
        nnsight.save(hidden)
    return hidden


def replace(model: Any, x: Tensor, layers: Sequence[int]) -> Tensor:
    """Read and replace the outputs of some layers."""
    with model.trace(x):
        for number in layers:
            changed = model.layers[number].output * 1.5
            model.layers[number].output = changed
        nnsight.save(changed)
    return changed


def cache(model: Any, x: Tensor) -> Any:
    """Keep the outputs of all modules."""
    with model.trace(x) as tracer:
        kept = tracer.cache()
    return kept


def invokes(model: Any, x: Tensor, count: int, layer: int) -> Tensor:
    """Read one layer in each of several invokes."""
    with model.trace() as tracer:
        for _ in range(count):
            with tracer.invoke(x):
                hidden = model.layers[layer].output.save()
    return hidden


def assign(model: Any, x: Tensor, count: int, value: Tensor) -> Tensor:
    """Replace one layer's output in each of several invokes."""
    with model.trace() as tracer:
        for _ in range(count):
            with tracer.invoke(x):
                model.layers[1].output = value
        with tracer.invoke():
            result = model.output.save()
    return result


def edit_in_place(model: Any, x: Tensor, count: int, value: Tensor) -> Tensor:
    """Overwrite one layer's output in each of several invokes."""
    with model.trace() as tracer:
        for _ in range(count):
            with tracer.invoke(x):
                model.layers[1].output[:] = value
        with tracer.invoke():
            result = model.output.save()
    return result


def generate(model: Any, x: Tensor, steps: int, layer: int) -> Tensor:
    """Read one layer in every step of a generation."""
    with model.trace(x, steps, fn="generate") as tracer:
        for _ in tracer.iter[:steps]:
            hidden = model.layers[layer].output
        nnsight.save(hidden)
    return hidden
