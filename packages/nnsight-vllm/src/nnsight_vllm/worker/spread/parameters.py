"""Parameters of a model that an engine serves, as bodies may read them: whole, and not to be changed.

One idea: weights belong to all requests of an engine, so what a body reads is a copy that refuses edits. Some engines throw
the numbers of a weight away once they have packed them for their kernels: then the layer itself tells them, as what it makes
of each unit vector.

relies on: `output_dim`, `input_dim` and `weight_loader` of a layer's parameters, `quant_method.apply` of a layer, and an
empty `weight` where it is packed, vLLM 0.30 to 0.33.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from vllm.model_executor.layers.linear import ColumnParallelLinear, LinearBase, RowParallelLinear
from vllm.model_executor.layers.vocab_parallel_embedding import VocabParallelEmbedding

from nnsight import NNsightError
from nnsight.plugin import ReadOnly

from .layers import columns, rows, unwrapped
from .shares import Ranges

T = TypeVar("T")
#: Columns of a packed weight that are asked for at once.
_AT_ONCE = 4096


class Alone:
    """What one process does together with all others there are."""

    def together(self, doing: str, what: Callable[[], T]) -> T:
        """Do it."""
        return what()


class Parameters:
    """How the values of a model that is in one process lie, and how its parameters are read; see `nnsight.plugin.Sharding`.

    Args:
        module: the model.
        root: the path of its root.
    """

    #: This process's number among those that share the model.
    rank = 0

    def __init__(self, module: torch.nn.Module, root: str) -> None:
        self.module = module
        self.root = root
        self.lockstep: Any = Alone()

    def gather(self, path: str, stage: str, value: Any) -> Any:
        """Return a value."""
        return value

    def split(self, path: str, stage: str, value: Any, local: Any) -> Any:
        """Return a value."""
        return value

    def read(self, path: str, value: Any) -> Any:
        """Return a copy of a whole parameter, which refuses edits; any other attribute of a module as it is."""
        if not isinstance(value, torch.Tensor) or value.is_meta:  # of another stage of a pipeline: it says so itself
            return value
        inside = path.removeprefix(self.root).removeprefix(".")
        above, _, name = inside.rpartition(".")
        module = unwrapped(self.module.get_submodule(above))
        whole = self.lockstep.together(f"reads `{path}`", lambda: self._whole(path, module, name, value))
        return ReadOnly.of(whole, f"a copy of `{path}`, which belongs to all requests of the engine. {_INSTEAD}")

    def assign(self, path: str, old: Any, new: Any) -> Any:
        """Refuse to change what a module holds."""
        raise NNsightError(f"`{path}` was assigned to, and belongs to all requests of the engine. {_INSTEAD}")

    def _whole(self, path: str, module: Any, name: str, value: torch.Tensor) -> torch.Tensor:
        return copied(unpacked(path, module, name, value))


_INSTEAD = (
    "Change what the module gives (`.output`), which is this request's own; to change weights, load another checkpoint."
)


def copied(tensor: torch.Tensor) -> torch.Tensor:
    """Return a copy that is no parameter, and no tensor of inference mode."""
    with torch.inference_mode(False):
        return tensor.detach().clone()


def unpacked(path: str, module: Any, name: str, value: torch.Tensor) -> torch.Tensor:
    """Return this rank's part of a parameter, also where just its packed form is left.

    Raises:
        NNsightError: its numbers are gone.
    """
    if value.numel() or not isinstance(module, LinearBase):
        return value
    if name != "weight":
        raise NNsightError(f"The engine has packed `{path}` for its kernels, and thrown the numbers away.")
    size = module.input_size_per_partition if isinstance(module, RowParallelLinear) else module.input_size
    columns_of = []
    for start in range(0, size, _AT_ONCE):
        count = min(_AT_ONCE, size - start)
        units = torch.zeros(count, size, dtype=value.dtype, device=value.device)
        units[:, start : start + count].fill_diagonal_(1)
        columns_of.append(module.quant_method.apply(module, units, bias=None))
    return torch.cat(columns_of).T.contiguous()


def is_everywhere(module: Any, name: str, value: torch.Tensor) -> bool:
    """Say whether each rank has all of a parameter: what is loaded without a loader of its own is loaded as it is."""
    if isinstance(module, LinearBase):
        return isinstance(module, RowParallelLinear) and name == "bias"
    return isinstance(value, torch.nn.Parameter) and not hasattr(value, "weight_loader")


def shared(module: Any, name: str, part: torch.Tensor, value: torch.Tensor) -> tuple[int, Ranges] | None:
    """Say along which dimension ranks share a parameter, and which entries this one has; None if the layer does not say."""
    dim: int | None
    if isinstance(module, ColumnParallelLinear):
        dim, ranges = getattr(value, "output_dim", 0), columns(module)
    elif isinstance(module, RowParallelLinear):
        dim, ranges = getattr(value, "input_dim", 1 if name == "weight" else None), rows(module)
    elif isinstance(module, VocabParallelEmbedding):
        mine = module.num_embeddings_per_partition
        dim, ranges = 0, ((module.tp_rank * mine, mine),) if not module.num_added_embeddings else None
    else:
        return None
    if dim is None or ranges is None or part.shape[dim] != sum(length for _, length in ranges):
        return None
    return dim, ranges
