"""What the engines of the tests are started with, in whichever process."""

from __future__ import annotations

from typing import Any

#: Small, so that prompts are many beside one another, and roomy, so that they need not wait. What vLLM computes in parts of
#: 32 on a CPU is exact there.
OPTIONS: dict[str, Any] = {
    "dtype": "float32",
    "max_model_len": 256,
    "max_num_batched_tokens": 512,
    "max_num_seqs": 16,
    "block_size": 32,
    "num_gpu_blocks_override": 80,
}
