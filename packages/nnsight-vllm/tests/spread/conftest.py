"""What engines of several processes need to be told before the first of them starts, and what they serve."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

# vLLM reads its settings once for a process. Left to itself, it looks for a NUMA node for each of its workers.
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")


@pytest.fixture(scope="module")
def kind() -> str:
    """What is served (see `checkpoints`); a file may have another."""
    return "llama"


@pytest.fixture(scope="module")
def folder(kind: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where its checkpoint is, once `plain` was asked for."""
    return tmp_path_factory.mktemp(kind)


@pytest.fixture(scope="module")
def plain(kind: str, folder: Path) -> Any:
    """The same weights in transformers."""
    import checkpoints

    return checkpoints.endless(folder, getattr(checkpoints, kind)())


@pytest.fixture(scope="module")
def llama(pair: Any) -> Iterator[Any]:
    """A Llama, whose engine in this process ends with the file: workers that others fork would take its groups for theirs."""
    made = pair("llama")
    yield made
    made.served.shutdown()
