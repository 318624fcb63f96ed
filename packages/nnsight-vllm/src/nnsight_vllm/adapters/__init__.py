"""What differs between versions of vLLM, and between its two model runners: one small file each.

An adapter puts itself into a model runner's methods and tells a `Stage` what happens there; `around` has what they share.

relies on: the modules in which its two model runners are, vLLM 0.30 to 0.33.
"""

from __future__ import annotations

from typing import Any

from nnsight import NNsightError

from .. import versions  # noqa: F401  # a worker may have another vLLM than whoever started the engine
from .around import Around
from .runner_v1 import AroundV1
from .runner_v2 import AroundV2

#: Who knows a model runner, by the module in which vLLM defines it; those of other devices are made of these.
RUNNERS = {"vllm.v1.worker.gpu_model_runner": AroundV1, "vllm.v1.worker.gpu.model_runner": AroundV2}


def adapt(runner: Any, stage: Any) -> Any:
    """Let a stage hear what a model runner does, and return the stage.

    Raises:
        NNsightError: it is none of those that are known.
    """
    _of(runner)(runner, stage)
    return stage


def run_dummy(runner: Any, tokens: int) -> None:
    """Let a model runner call its model on some tokens, of no request."""
    _of(runner).run_dummy(runner, tokens)


def _of(runner: Any) -> type[Around]:
    for cls in type(runner).__mro__:
        if cls.__module__ in RUNNERS:
            return RUNNERS[cls.__module__]
    cls = type(runner)
    raise NNsightError(
        f"The engine's model runner is {cls.__module__}.{cls.__qualname__}, which is made of neither of vLLM's own "
        f"({' and '.join(RUNNERS)}), so bodies cannot be served in it. Another vLLM plugin has put it there."
    )
