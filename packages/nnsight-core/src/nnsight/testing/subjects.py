"""What of a model the suites look at: which modules, which values, and a loss to go back from."""

from __future__ import annotations

from typing import Any

import torch

from nnsight._core.structures import leaves, zip_map
from nnsight.plugin import Envoy, eproperty
from nnsight.testing.reference import Hooked


def change(output: torch.Tensor) -> torch.Tensor:
    """Return something else of the same shape: the edit that the suites make."""
    return output * 1.5 + 0.25


def some(paths: list[str], most: int = 4) -> list[str]:
    """Choose the first, the last and some between, so that a deep model costs no more than a shallow one."""
    if len(paths) <= most:
        return paths
    return [paths[round(at * (len(paths) - 1) / (most - 1))] for at in range(most)]


def own_values(model: Any, plain: Hooked) -> list[tuple[str, str]]:
    """Return (path, name) of the values that the family's envoys define for modules visited once."""
    found = []
    for path in plain.order:
        if len(plain.outputs[path]) == 1:
            envoy = model.get(path)
            names = [name for name in dir(type(envoy)) if not hasattr(Envoy, name) and not name.startswith("nns_")]
            found += [(path, name) for name in names if own_property(envoy, name) is not None]
    return found


def own_property(envoy: Any, name: str) -> Any:
    found = getattr(type(envoy), name, None)
    return found if isinstance(found, eproperty) and not found.provided else None


def is_floating(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.is_floating_point() and value.dim() > 0


def serves_output(model: Any, path: str) -> bool:
    """Say whether a module has its output under that name, which a submodule called `output` takes from it."""
    return not hasattr(model._module.get_submodule(path), "output")


def is_changeable_tuple(outputs: list[Any]) -> bool:
    return len(outputs) == 1 and type(outputs[0]) is tuple and len(outputs[0]) > 1 and is_floating(outputs[0][0])


def loss_of(result: Any) -> torch.Tensor:
    terms = [leaf.square().mean() for leaf in leaves(result) if leaf.requires_grad]
    assert terms, "nothing in the result requires a gradient; set differentiable = False if that is how the family is"
    return sum(terms[1:], start=terms[0])


def unpadded(value: Any, alone: Any, side: str) -> Any:
    """Return the part of a value in a batch that is as large as it is alone, without the padding on a side of it."""

    def cut(mine: Any, other: Any) -> Any:
        if not isinstance(mine, torch.Tensor) or mine.dim() != other.dim():
            return mine
        for dim in range(1, mine.dim()):
            more = mine.shape[dim] - other.shape[dim]
            if more > 0:
                mine = mine.narrow(dim, more if side == "left" else 0, other.shape[dim])
        return mine

    return zip_map(cut, value, alone)
