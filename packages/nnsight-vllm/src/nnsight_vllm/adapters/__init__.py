"""What differs between versions of vLLM, and between its two model runners: one small file each.

An adapter puts itself into a model runner's methods and tells a `Stage` what happens there.
"""

from __future__ import annotations

from typing import Any

from . import runner_v1


def adapt(runner: Any, stage: Any) -> Any:
    """Let a stage hear what a model runner does, and return the stage."""
    runner_v1.attach(runner, stage)
    return stage
