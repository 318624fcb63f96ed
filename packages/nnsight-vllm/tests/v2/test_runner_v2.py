"""vLLM's second model runner."""

from __future__ import annotations

from runner_behaviour import RunnerBehaviour


class TestRunnerV2(RunnerBehaviour):
    module = "vllm.v1.worker.gpu.model_runner"
