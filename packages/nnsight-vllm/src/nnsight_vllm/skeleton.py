"""The modules of a model as vLLM builds them, without weights: what is explored before an engine is started.

One idea: vLLM's own classes build it, on the meta device and for one process, so that its tree is the engine's, and sizes are
those of the whole model whatever it will be spread over. Nothing of it is left behind in the process: an engine that starts
here later starts as if it were the first.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from vllm.config import VllmConfig, set_current_vllm_config
from vllm.distributed import parallel_state
from vllm.engine.arg_utils import EngineArgs
from vllm.model_executor.layers import rotary_embedding
from vllm.model_executor.model_loader.utils import initialize_model
from vllm.tokenizers import cached_tokenizer_from_config
from vllm.utils.torch_utils import set_default_torch_dtype

from . import quiet
from .limits import check_config

#: What spreads a model over processes.
_SPREAD = (
    *("tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size", "distributed_executor_backend"),
    "cluster_seconds",
)


def build(options: Mapping[str, Any]) -> torch.nn.Module:
    """Build the modules of the model that an engine with these options would load."""
    alone = _alone(options)
    alone.pop("compilation_config", None)
    alone["enforce_eager"] = True  # nothing is computed here
    with quiet.silence():
        try:
            return _built(alone, torch.device("meta"))
        except NotImplementedError:
            # It asks for numbers while it is built (the slopes of ALiBi), which are none on the meta device.
            return _built(alone, _weightless())


def _built(options: Mapping[str, Any], without_weights: AbstractContextManager[Any]) -> torch.nn.Module:
    config: VllmConfig = EngineArgs(**options).create_engine_config()
    check_config(config)
    with (
        set_current_vllm_config(config),
        _one_process(config),
        _own_rotations(),
        set_default_torch_dtype(config.model_config.dtype),
        without_weights,
    ):
        model = initialize_model(vllm_config=config)
    _leave_groups(model)
    return model


def _leave_groups(model: torch.nn.Module) -> None:
    """Let modules forget the groups of processes that they were built in.

    Nothing is computed here, and a fork of this process that frees a group waits for threads that it does not have.
    """
    for module in model.modules():
        for name in [name for name, value in vars(module).items() if isinstance(value, torch.distributed.ProcessGroup)]:
            delattr(module, name)


@contextmanager
def _weightless() -> Iterator[None]:
    """Let parameters lose their numbers as soon as modules have them."""
    plain = torch.nn.Module.register_parameter

    def register(module: torch.nn.Module, name: str, parameter: torch.nn.Parameter | None) -> None:
        plain(module, name, parameter)
        if parameter is not None:
            made = torch.nn.Parameter(torch.empty_like(parameter.data, device="meta"), parameter.requires_grad)
            vars(made).update(vars(parameter))
            module._parameters[name] = made

    torch.nn.Module.register_parameter = register  # type: ignore[assignment,method-assign]
    try:
        yield
    finally:
        torch.nn.Module.register_parameter = plain  # type: ignore[method-assign]


def whole(config: VllmConfig) -> torch.nn.Module:
    """Build the modules of the whole model in the process of one stage of a pipeline.

    relies on: layers ask `parallel_state._PP` which of them are theirs, and note themselves in the configuration's
    `static_forward_context`; vLLM 0.30 to 0.32.
    """
    own = copy.copy(config)
    own.compilation_config = copy.copy(config.compilation_config)
    own.compilation_config.static_forward_context = {}
    before = parallel_state._PP
    parallel_state._PP = SimpleNamespace(world_size=1, rank_in_group=0, is_first_rank=True, is_last_rank=True)
    try:
        with (
            set_current_vllm_config(own),
            _own_rotations(),
            set_default_torch_dtype(own.model_config.dtype),
            torch.device("meta"),
        ):
            return initialize_model(vllm_config=own)
    finally:
        parallel_state._PP = before


def _alone(options: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if name not in _SPREAD}


def tokenizer(options: Mapping[str, Any]) -> Any:
    """Load the tokenizer that an engine with these options would have; None if it would have none."""
    config = EngineArgs(**_alone(options)).create_model_config()
    return None if config.skip_tokenizer_init else cached_tokenizer_from_config(config)


@contextmanager
def _own_rotations() -> Iterator[None]:
    """Keep rotary embeddings without numbers from the models that are built here later.

    relies on: `rotary_embedding._ROPE_DICT` holds those that were made, for all models, vLLM 0.30 to 0.33.
    """
    known = rotary_embedding._ROPE_DICT
    before = dict(known)
    known.clear()
    try:
        yield
    finally:
        known.clear()
        known.update(before)


@contextmanager
def _one_process(config: VllmConfig) -> Iterator[None]:
    """Be the only process of a model, as far as vLLM's modules ask when they are built.

    relies on: `parallel_state._EP` is the group that mixtures of experts ask for, made with the first model of a process if
    that is one, by `init_model_parallel_group`, vLLM 0.30 to 0.33.
    """
    if torch.distributed.is_initialized():  # by an engine that runs here already
        if parallel_state._EP is None and config.model_config.is_moe and torch.distributed.get_world_size() == 1:
            # It stays: the engine of this model asks for it, too.
            parallel_state._EP = parallel_state.init_model_parallel_group(
                [[0]], 0, torch.distributed.get_backend(), group_name="ep"
            )
        yield
        return
    with tempfile.TemporaryDirectory(prefix="nnsight-") as folder:
        parallel_state.init_distributed_environment(
            1, 0, f"file://{Path(folder, 'store')}", local_rank=0, backend="gloo"
        )
        try:
            parallel_state.initialize_model_parallel(1, 1)
            yield
        finally:
            parallel_state.destroy_model_parallel()
            parallel_state.destroy_distributed_environment()
