"""What vLLM lets its workers do besides their own work: its `worker_extension_cls`.

relies on: `worker_extension_cls` makes a class's methods callable through `collective_rpc`, vLLM 0.30 to 0.33.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

from nnsight import NNsightError
from nnsight.plugin import LocalBodies, decode_message, encode_error

from .. import outputs
from ..adapters import adapt, run_dummy
from . import graphs
from .pipeline import Pipeline
from .stage import Stage


class Extension:
    """Becomes a base of the worker's class; `self` is the worker."""

    model_runner: Any

    def nnsight_begin(self, turn_seconds: float) -> None:
        """Stand by in the engine's steps, if that has not been done."""
        runner = self.model_runner
        if "nnsight" not in vars(runner):
            outputs.register()
            model, config = runner.get_model(), runner.vllm_config
            parallel = config.parallel_config
            in_stages = parallel.pipeline_parallel_size > 1
            if in_stages and getattr(self, "use_v2_model_runner", False):
                raise NNsightError(
                    "Blocks see a pipeline through vLLM's first model runner only. Set VLLM_USE_V2_MODEL_RUNNER=0, or spread "
                    "the model over a tensor-parallel group."
                )
            if in_stages and parallel.tensor_parallel_size > 1:
                raise NNsightError(
                    "Blocks see a model that is spread over a pipeline, or over a tensor-parallel group, and not over both. "
                    f"Start the engine with `tensor_parallel_size={parallel.world_size}` alone, or with "
                    f"`pipeline_parallel_size={parallel.world_size}` alone."
                )
            dummy = functools.partial(graphs.run_plainly, model, functools.partial(run_dummy, runner))
            pipeline = Pipeline(model, config, dummy) if in_stages else None
            stage = Stage(model, turn_seconds, dummy, pipeline)
            graphs.begin(stage.forwards, model, config)
            runner.nnsight = adapt(runner, stage)

    def nnsight_install(self, name: str, digest: str, data: bytes) -> bytes | None:
        """Take in a standing edit; return the error if that fails."""
        try:
            self.model_runner.nnsight.standing.install(name, digest, data)
        except Exception as error:  # it is the sender's, whichever it is
            return encode_error(error)
        return None

    def nnsight_uninstall(self, name: str) -> None:
        """Forget a standing edit."""
        self.model_runner.nnsight.standing.uninstall(name)

    def nnsight_failure(self, request: str) -> bytes | None:
        """Return what a standing edit raised in a request."""
        failure: bytes | None = self.model_runner.nnsight.failure(request)
        return failure

    def nnsight_open(self, trace: str, bodies: bytes | LocalBodies, heard: bool = False) -> bytes:
        """Take in the bodies of a trace; return why that cannot be, if it cannot: across processes, errors are texts."""
        try:
            self.model_runner.nnsight.open(trace, bodies, heard)
        except Exception as error:
            return encode_error(error)
        return b""

    def nnsight_heard(self) -> dict[str, str]:
        """Return what the bodies of each trace have printed since the last time, if anything."""
        printed: dict[str, str] = self.model_runner.nnsight.heard()
        return printed

    def nnsight_look(self, wanted: list[list[Any]]) -> list[bytes]:
        """Return what bodies have saved since the last time; see `Stage.look`."""
        found: list[bytes] = self.model_runner.nnsight.look([(trace, number) for trace, number in wanted])
        return found

    def nnsight_end(self, trace: str, number: int, result: bytes, telling: bool) -> bytes:
        """End the request of one body of a trace; see `Stage.finish_one`."""
        told: bytes = self.model_runner.nnsight.finish_one(trace, number, decode_message(result)[1], telling)
        return told

    def nnsight_finish(self, trace: str, results: Mapping[int, bytes]) -> tuple[list[bytes], str]:
        """End a trace; see `Stage.finish`."""
        decoded = {number: decode_message(data)[1] for number, data in results.items()}
        told: tuple[list[bytes], str] = self.model_runner.nnsight.finish(trace, decoded)
        return told

    def nnsight_hand_over(self, trace: str, results: Mapping[int, Any]) -> list[dict[str, Any] | bytes]:
        """End a trace of this very process; see `Stage.hand_over`."""
        found: list[dict[str, Any] | bytes] = self.model_runner.nnsight.hand_over(trace, results)
        return found

    def nnsight_drop(self, trace: str) -> None:
        """Give up a trace."""
        self.model_runner.nnsight.drop(trace)
