"""What engines of several processes need to be told before the first of them starts."""

from __future__ import annotations

import os

# vLLM reads its settings once for a process. Left to itself, it looks for a NUMA node for each of its workers.
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
