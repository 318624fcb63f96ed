"""Lets vLLM schedule a step ahead on a CPU, where its platform says that there is no need to.

Its code for that runs as it is; what it asks of CUDA (streams, on which copies run beside the model, and events) stands in
for what a CPU has: one line in which everything is in order.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest
import torch
from vllm.platforms.cpu import CpuPlatform


class Line:
    """A stream or an event of a device on which all is done in order."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def wait_stream(self, other: Line) -> None:
        """Nothing is left to wait for."""

    record = synchronize = lambda self, *args: None


def _one_line(stream: Any) -> AbstractContextManager[None]:
    return nullcontext()


def schedule_ahead(patch: pytest.MonkeyPatch) -> None:
    """Let engines that are started from now on schedule a step ahead."""
    settle = CpuPlatform.check_and_update_config.__func__

    def ahead(cls: Any, config: Any) -> None:
        settle(cls, config)
        config.scheduler_config.async_scheduling = True

    patch.setattr(CpuPlatform, "check_and_update_config", classmethod(ahead))
    patch.setattr(torch.cuda, "Stream", Line)
    patch.setattr(torch.cuda, "Event", Line)
    patch.setattr(torch.cuda, "stream", _one_line)
    patch.setattr(torch.cuda, "current_stream", Line)
