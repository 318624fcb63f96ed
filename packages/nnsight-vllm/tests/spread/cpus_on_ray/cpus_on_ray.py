"""Lets vLLM spread a model over CPUs with Ray, for tests: Ray's logical GPUs stand for them. A plugin of vLLM's.

relies on: the platform plugin group `vllm.platform_plugins`, and `ray_device_key` and `ray_noset_device_env_vars` of a
platform, vLLM 0.28 to 0.33.
"""

from __future__ import annotations

from typing import Any


def register() -> str:
    """Name the platform."""
    return "cpus_on_ray.CpusOnRay"


def __getattr__(name: str) -> Any:
    if name != "CpusOnRay":
        raise AttributeError(name)
    # Not before it is asked for: vLLM's platforms are about to be imported when it looks for plugins.
    from vllm.platforms.cpu import CpuPlatform

    class CpusOnRay(CpuPlatform):
        """CPUs, one for each logical GPU."""

        ray_device_key = "GPU"
        ray_noset_device_env_vars = ["RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES"]

    globals()[name] = CpusOnRay
    return CpusOnRay
