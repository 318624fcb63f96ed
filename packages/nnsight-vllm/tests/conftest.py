"""One engine for all tests of a file, in this process."""

from __future__ import annotations

import os

# Read when vLLM is imported: the engine runs in this process, and fits beside others on a small machine.
os.environ.update(VLLM_ENABLE_V1_MULTIPROCESSING="0", VLLM_CPU_KVCACHE_SPACE="1", VLLM_NO_USAGE_STATS="1")
