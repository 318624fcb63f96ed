"""The second model runner, on a CPU: its kernels are Triton's, and are interpreted."""

from __future__ import annotations

import os

# Read when Triton and vLLM are imported. Tests here have a process of their own.
os.environ.update(TRITON_INTERPRET="1", VLLM_USE_V2_MODEL_RUNNER="1")
