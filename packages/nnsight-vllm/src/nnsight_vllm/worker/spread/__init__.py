"""A model that is spread over several workers (tensor and expert parallelism): its values and parameters, whole.

shares.py           how one tensor is shared out among ranks, and made whole again
layers.py           what vLLM's layers say of what they take and give
measured.py         what follows from that for all other values, found out once
parameters.py       parameters, whole, as bodies may read them
tensor_parallel.py  all of that together, as the core asks for it

Which values are put together when, and what keeps the ranks in step, is the core's (`nnsight.plugin.SpreadForwards`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from vllm.distributed.parallel_state import get_tp_group

from nnsight.plugin import Forwards, NNsight, SpreadForwards

from ..places import NAMES
from .measured import TOKENS, measure
from .parameters import Parameters
from .tensor_parallel import TensorParallel

_ROOT = NNsight._root_path


def lying(module: torch.nn.Module, dummy: Callable[[int], Any]) -> Parameters:
    """Say how the values of a model lie; every worker that shares it calls this.

    Args:
        module: the model.
        dummy: lets it run on some tokens.
    """
    group = get_tp_group()
    if group.world_size == 1:
        return Parameters(module, _ROOT)
    made = TensorParallel(module, _ROOT, group, [f"{_ROOT}.{name}" for name in NAMES])
    made.learn(measure(module, _ROOT, lambda: dummy(TOKENS), made.rank, group.cpu_group))
    return made


def forwards(model: NNsight, turn_seconds: float, lying: Parameters) -> Forwards:
    """Return the forwards of an engine, as this worker takes part in them."""
    if not isinstance(lying, TensorParallel):
        return Forwards(model, turn_seconds)
    spread = lying.lockstep = SpreadForwards(model, turn_seconds, lying, lying)
    return spread
