"""A driver that is never the active one, so that Triton asks for no device."""

from __future__ import annotations

from typing import Any

import torch
from triton.backends.compiler import GPUTarget
from triton.backends.driver import DriverBase


class Driver(DriverBase):
    @classmethod
    def is_active(cls) -> bool:
        return False

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cpu", 0, 1)

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")

    def map_python_to_cpp_type(self, ty: str) -> str:
        raise RuntimeError("kernels are interpreted here, and not compiled")

    def get_benchmarker(self) -> Any:
        raise RuntimeError("kernels are interpreted here, and not timed")
