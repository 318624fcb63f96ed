"""vLLM's second model runner."""

from __future__ import annotations

import pytest
from runner_behaviour import RunnerBehaviour

import nnsight


class TestRunnerV2(RunnerBehaviour):
    module = "vllm.v1.worker.gpu.model_runner"


class TestCompiledRunnerV2(RunnerBehaviour):
    """The same with compiled graphs, at declared sites."""

    module = "vllm.v1.worker.gpu.model_runner"
    knows_what_is_alike = False

    # How vLLM ranks tokens is compiled by itself then, which takes long and has nothing to do with where a model is cut.
    test_log_probabilities_of_a_prompt_are_no_logits_of_a_step = None

    @pytest.fixture(scope="class")
    def llama(self, pair):
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("VLLM_CPU_CI_ENV", "1")  # no compiler for C++
            yield pair("llama", taps=[f"model.layers.{layer}.output" for layer in range(4)])

    def test_a_site_that_was_not_declared_is_refused(self, llama):
        with pytest.raises(nnsight.MissedProviderError, match="Declared are"):
            with llama.served.trace([5, 6], max_tokens=1):
                llama.served.model.layers[1].mlp.output  # noqa: B018
