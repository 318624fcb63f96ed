"""Engines that the tests share: one for each kind of model, in this process, started when a test first asks for it.

Several engines live beside one another here, so a test that needs other options may start one of its own; each costs three
seconds. Tests that spread a model over processes, or need another environment, are in `spread/` and `v2/`.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

# Read when vLLM is imported: the engine runs in this process, and fits beside others on a small machine.
os.environ.update(VLLM_ENABLE_V1_MULTIPROCESSING="0", VLLM_CPU_KVCACHE_SPACE="1", VLLM_NO_USAGE_STATS="1")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")


class Pair(NamedTuple):
    """A model as it is served, and the same weights in transformers: the oracle."""

    served: Any
    plain: Any
    #: Its checkpoint, for engines with other options.
    folder: Path


@pytest.fixture(scope="session")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Pair]:
    """Make a checkpoint and an engine that serves it: `pair("llama", max_num_seqs=2)`."""
    import checkpoints
    from engines import OPTIONS

    from nnsight import VLLM

    def make(kind: str, **options: Any) -> Pair:
        folder = tmp_path_factory.mktemp(kind)
        plain = checkpoints.endless(folder, getattr(checkpoints, kind)())
        return Pair(VLLM(str(folder), **{**OPTIONS, **options}), plain, folder)

    return make


@pytest.fixture(scope="session")
def llama(pair: Callable[..., Pair]) -> Pair:
    """A Llama: fused residuals, merged projections; `model.model.layers`."""
    return pair("llama")


@pytest.fixture(scope="session")
def gpt2(pair: Callable[..., Pair]) -> Pair:
    """A GPT-2: layers that return one tensor; `model.transformer.h`."""
    return pair("gpt2")
