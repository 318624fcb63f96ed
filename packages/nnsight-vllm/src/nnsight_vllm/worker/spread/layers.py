"""What vLLM's layers say of what they take and give when a model is spread over several ranks.

One idea: their own attributes say it. A column-parallel layer gives each rank a slice of each of its parts, in one order
for all models; a row-parallel one takes the slice that such layers gave. What lies between them follows (`measured.py`).

relies on: `tp_size`, `tp_rank`, `output_sizes`, `gather_output`, `num_kv_head_replicas`, `input_is_parallel`,
`reduce_results` of `vllm.model_executor.layers.linear`; `moe_kernel.output_is_reduced` of what computes experts, and
`moe_config.skip_final_all_reduce` of what holds them; vLLM 0.30 to 0.33.
"""

from __future__ import annotations

from typing import Any

import torch
from vllm.model_executor.layers.attention_layer_base import AttentionLayerBase
from vllm.model_executor.layers.layernorm import RMSNorm
from vllm.model_executor.layers.linear import (
    ColumnParallelLinear,
    MergedColumnParallelLinear,
    QKVParallelLinear,
    RowParallelLinear,
)
from vllm.model_executor.layers.rotary_embedding import RotaryEmbedding
from vllm.model_executor.layers.vocab_parallel_embedding import VocabParallelEmbedding

from nnsight.plugin import leaves

from .shares import Ranges

#: Stands for a tensor of which each rank has a summand.
SUM = "sum"

#: Those whose outputs have, entry by entry, what their inputs have.
_KEEPING: tuple[type, ...] = (RMSNorm, RotaryEmbedding, torch.nn.LayerNorm, torch.nn.SiLU, torch.nn.GELU, torch.nn.ReLU)


def given(module: torch.nn.Module) -> Ranges | str | None:
    """Say which entries of the whole output this rank gives; `SUM` for a summand of it; None if the layer does not say."""
    layer = unwrapped(module)
    if isinstance(layer, ColumnParallelLinear):
        return None if layer.gather_output or layer.tp_size == 1 else columns(layer)
    if isinstance(layer, (RowParallelLinear, VocabParallelEmbedding)):
        return SUM if layer.tp_size > 1 and not getattr(layer, "reduce_results", True) else None
    kernel = getattr(layer, "moe_kernel", None)
    if kernel is not None:
        return None if kernel.output_is_reduced() else SUM
    config = getattr(layer, "moe_config", None)
    return SUM if getattr(config, "skip_final_all_reduce", False) else None


def taken(module: torch.nn.Module) -> Ranges | None:
    """Say which entries of the whole input this rank takes, if the layer does."""
    layer = unwrapped(module)
    if isinstance(layer, RowParallelLinear) and layer.input_is_parallel and layer.tp_size > 1:
        return rows(layer)
    return None


def columns(layer: Any) -> Ranges | None:
    """Return which outputs of the whole layer this rank computes, in its order; None for a layer of a kind of its own."""
    if type(layer) is QKVParallelLinear:
        # Where there are fewer heads of keys and values than ranks, several ranks have the same.
        sizes, copies = layer.output_sizes, [1, layer.num_kv_head_replicas, layer.num_kv_head_replicas]
    elif type(layer) is MergedColumnParallelLinear:
        sizes, copies = layer.output_sizes, [1] * len(layer.output_sizes)
    elif type(layer) is ColumnParallelLinear:
        sizes, copies = [layer.output_size], [1]
    else:
        return None
    ranges, start = [], 0
    for size, same in zip(sizes, copies):
        mine = size // layer.tp_size  # sizes count each copy
        ranges.append((start + layer.tp_rank // same * mine, mine))
        start += size // same
    return tuple(ranges)


def rows(layer: Any) -> Ranges:
    """Return which inputs of the whole layer this rank takes."""
    mine = layer.input_size_per_partition
    return ((layer.tp_rank * mine, mine),)


def kept(module: torch.nn.Module, inputs: Any, output: Any) -> list[tuple[int, int]]:
    """Return which tensors of the output lie as which of the input do, by their numbers among the tensors there."""
    if not isinstance(module, _KEEPING):
        return []
    pairs: list[tuple[int, int]] = []
    free = [(at, tensor) for at, tensor in enumerate(leaves(inputs)) if tensor.is_floating_point()]
    for number, tensor in enumerate(leaves(output)):
        while free:  # they are in one order
            at, candidate = free.pop(0)
            if candidate.shape == tensor.shape:
                pairs.append((number, at))
                break
    return pairs


def remembers(module: torch.nn.Module) -> bool:
    """Say whether a layer reads what the engine keeps of earlier tokens."""
    return isinstance(module, AttentionLayerBase)


def unwrapped(module: torch.nn.Module) -> Any:
    """Return the layer itself, if an adapter is wrapped around it."""
    return getattr(module, "base_layer", module)
