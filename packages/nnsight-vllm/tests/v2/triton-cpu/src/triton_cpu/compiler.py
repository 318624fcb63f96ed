"""A compiler that has nothing to do: kernels are interpreted."""

from __future__ import annotations

from typing import Any

from triton.backends.compiler import BaseBackend, GPUTarget


class Compiler(BaseBackend):
    @staticmethod
    def supports_target(target: GPUTarget) -> bool:
        return target.backend == "cpu"

    def hash(self) -> str:
        return "interpreted"

    def get_module_map(self) -> dict[str, Any]:
        return {}

    def parse_options(self, options: Any) -> Any:
        raise RuntimeError("kernels are interpreted here, and not compiled")

    def add_stages(self, stages: Any, options: Any, language: Any) -> None:
        raise RuntimeError("kernels are interpreted here, and not compiled")

    def load_dialects(self, context: Any) -> None:
        raise RuntimeError("kernels are interpreted here, and not compiled")
