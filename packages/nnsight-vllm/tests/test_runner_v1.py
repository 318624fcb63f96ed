"""vLLM's first model runner."""

from __future__ import annotations

from runner_behaviour import RunnerBehaviour


class TestRunnerV1(RunnerBehaviour):
    module = "vllm.v1.worker.gpu_model_runner"
