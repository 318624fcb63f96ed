"""What is relied on inside vLLM is there, under its name and with its parameters: what a release moves is found here first.

One test for each `relies on:` in the sources. Whether it still means the same is what the tests of behaviour say.
"""

from __future__ import annotations

import inspect
import re
from importlib import import_module
from pathlib import Path

import pytest

import nnsight_vllm
from nnsight_vllm import adapters, taps


def found(name):
    """Return what a dotted name means: a module's attribute, or an attribute of that."""
    module, _, path = name.partition(":")
    value = import_module(module)
    for part in path.split("."):
        value = getattr(value, part)
    return value


def takes(name, *parameters):
    """Say that something can be called with these parameters, by name or in this order."""
    names = [parameter for parameter in inspect.signature(found(name)).parameters if parameter != "self"]
    missing = [parameter for parameter in parameters if parameter not in names]
    assert not missing, f"{name} takes {names}"
    return names


def source(name):
    return inspect.getsource(found(name))


def sets(name, *attributes):
    """Say that instances of a class get these attributes, when they are made or by a field or property."""
    cls = found(name)
    own = set(dir(cls))
    for base in cls.__mro__:
        own.update(getattr(base, "__annotations__", {}))
        init = inspect.unwrap(vars(base).get("__init__", base))
        # That of a dataclass has no source, and says no more than the annotations do.
        if inspect.isfunction(init) and not init.__code__.co_filename.startswith("<"):
            own.update(re.findall(r"self\.(\w+)(?:: .*)? = ", inspect.getsource(init)))
    assert not set(attributes) - own, f"{name} has not {sorted(set(attributes) - own)}"


SCHEDULER = "vllm.v1.core.sched.scheduler:Scheduler"
REQUEST = "vllm.v1.request:Request"
V1, V2 = "vllm.v1.worker.gpu_model_runner:GPUModelRunner", "vllm.v1.worker.gpu.model_runner:GPUModelRunner"
OUTPUT = "vllm.v1.core.sched.output"


def test_the_modules_of_the_two_model_runners():
    assert {V1.partition(":")[0], V2.partition(":")[0]} == set(adapters.RUNNERS)
    assert found(V1).__module__ == V1.partition(":")[0]


def test_worker_extension_cls_and_collective_rpc():
    takes("vllm.engine.arg_utils:EngineArgs", "worker_extension_cls", "scheduler_cls")
    takes("vllm.v1.engine.llm_engine:LLMEngine.collective_rpc", "method", "args")
    assert "worker_extension_cls" in source("vllm.v1.worker.worker_base:WorkerWrapperBase.init_worker")


def test_what_a_step_is_told():
    sets(
        f"{OUTPUT}:SchedulerOutput",
        "scheduled_new_reqs",
        "scheduled_cached_reqs",
        "num_scheduled_tokens",
        "total_num_scheduled_tokens",
    )
    sets(f"{OUTPUT}:SchedulerOutput", "finished_req_ids")
    sets(f"{OUTPUT}:CachedRequestData", "resumed_req_ids")
    sets(f"{OUTPUT}:NewRequestData", "req_id", "sampling_params", "num_computed_tokens", "prompt_token_ids")


def test_the_first_model_runner():
    assert takes(f"{V1}.execute_model", "scheduler_output")[0] == "scheduler_output"
    takes(f"{V1}._model_forward", "input_ids", "positions")
    assert "self._model_forward(" in source(f"{V1}.execute_model")
    assert "self.model.compute_logits(" in source(f"{V1}.execute_model")
    assert "self._sample(" in source(f"{V1}.sample_tokens")
    sets(V1, "execute_model_state", "input_batch", "get_model", "requests", "kv_caches")
    sets("vllm.v1.worker.gpu_input_batch:CachedRequestState", "block_ids")
    sets("vllm.v1.worker.gpu_input_batch:InputBatch", "req_ids")
    sets("vllm.v1.outputs:SamplerOutput", "sampled_token_ids")


def test_the_second_model_runner():
    pytest.importorskip("triton", reason="vLLM imports this runner where Triton is")
    assert takes(f"{V2}.execute_model", "scheduler_output", "dummy_run")[0] == "scheduler_output"
    assert "self.prepare_inputs(" in source(f"{V2}.execute_model")
    assert "self.sample(" in source(f"{V2}.sample_tokens")
    assert "self.model.compute_logits(" in source(f"{V2}.sample")
    assert inspect.signature(found(f"{V2}.sample")).return_annotation.__args__[0].__name__ == "SamplerOutput"
    sets(V2, "execute_model_state", "get_model", "req_states")
    assert "self.block_tables = " in source(f"{V2}.initialize_kv_cache")
    assert "self.kv_caches" in source(f"{V2}.initialize_kv_cache")
    sets("vllm.v1.worker.gpu.states:RequestState", "req_id_to_index")
    sets("vllm.v1.worker.gpu.block_table:BlockTables", "block_tables", "num_blocks")
    sets("vllm.v1.worker.gpu.input_batch:InputBatch", "req_ids", "num_scheduled_tokens", "num_tokens_after_padding")
    sets("vllm.v1.worker.gpu.sample.output:SamplerOutput", "sampled_token_ids")
    sets("vllm.v1.worker.gpu.async_utils:AsyncOutput", "model_runner_output")


def test_the_scheduler():
    sets(
        SCHEDULER,
        "requests",
        "running",
        "waiting",
        "max_num_scheduled_tokens",
        "max_num_running_reqs",
        "max_model_len",
        "kv_cache_config",
    )
    assert takes(f"{SCHEDULER}.update_from_output")[:2] == ["scheduler_output", "model_runner_output"]
    assert takes(f"{SCHEDULER}._update_request_with_output")[0] == "request"
    assert "self._update_request_with_output(" in source(f"{SCHEDULER}.update_from_output")
    sets(REQUEST, "request_id", "sampling_params", "num_prompt_tokens", "max_tokens", "num_computed_tokens")
    sets(REQUEST, "num_tokens_with_spec", "status", "is_finished")
    sets("vllm.v1.request:RequestStatus", "FINISHED_STOPPED")
    sets("vllm.v1.core.sched.request_queue:RequestQueue", "prepend_request", "remove_requests")
    sets("vllm.v1.kv_cache_interface:KVCacheConfig", "num_blocks", "kv_cache_groups")


def test_what_the_skeleton_is_built_with():
    assert isinstance(found("vllm.model_executor.layers.rotary_embedding:_ROPE_DICT"), dict)
    takes("vllm.model_executor.model_loader.utils:initialize_model", "vllm_config")
    world = takes("vllm.distributed.parallel_state:init_distributed_environment", "local_rank", "backend")
    assert world[:3] == ["world_size", "rank", "distributed_init_method"]
    sizes = takes("vllm.distributed.parallel_state:initialize_model_parallel")
    assert sizes[:2] == ["tensor_model_parallel_size", "pipeline_model_parallel_size"]
    takes("vllm.distributed.parallel_state:destroy_model_parallel")
    takes("vllm.distributed.parallel_state:destroy_distributed_environment")
    takes("vllm.v1.engine.core:cleanup_dist_env_and_memory")
    takes("vllm.distributed.parallel_state:init_model_parallel_group", "group_name")
    takes("vllm.utils.torch_utils:set_default_torch_dtype", "dtype")
    takes("vllm.config:set_current_vllm_config", "vllm_config")


def test_what_standard_names_are_found_by():
    attention = found("vllm.model_executor.layers.attention_layer_base:AttentionLayerBase")
    other = found("vllm.model_executor.layers.mamba.abstract:MambaBase")
    assert issubclass(other, attention)
    assert issubclass(found("vllm.model_executor.layers.attention.attention:Attention"), attention)
    assert issubclass(found("vllm.model_executor.layers.mamba.mamba_mixer2:MambaMixer2"), other)
    embeddings = "vllm.model_executor.layers.vocab_parallel_embedding"
    assert issubclass(found(f"{embeddings}:ParallelLMHead"), found(f"{embeddings}:VocabParallelEmbedding"))


def test_the_engine_in_this_process():
    engine = "vllm.v1.engine.llm_engine:LLMEngine"
    assert takes(f"{engine}.add_request")[:3] == ["request_id", "prompt", "params"]
    takes(f"{engine}.abort_request", "request_ids", "internal")
    takes(f"{engine}.from_engine_args", "engine_args")
    sets(engine, "step", "get_tokenizer", "output_processor", "vllm_config")
    sets("vllm.v1.engine.output_processor:OutputProcessor", "request_states")
    sets("vllm.v1.engine.output_processor:RequestState", "prompt_len")
    fields = found("vllm:SamplingParams").__struct_fields__
    assert {"extra_args", "skip_clone", "_all_stop_token_ids"} <= set(fields)
    # What of a request's own options is changed, and not replaced.
    changed = re.findall(
        r"self\.(\w+)\.(?:add|update|append|extend)\(", source("vllm:SamplingParams.update_from_generation_config")
    )
    assert set(changed) == {"_all_stop_token_ids"}


def test_the_engine_in_processes_of_its_own():
    engine = "vllm.v1.engine.async_llm:AsyncLLM"
    takes(f"{engine}.generate", "prompt", "sampling_params", "request_id", "lora_request", "priority")
    takes(f"{engine}.collective_rpc", "method", "args")
    takes(f"{engine}.from_engine_args", "engine_args")
    sets(engine, "output_handler", "errored", "input_processor", "vllm_config", "shutdown", "_run_output_handler")
    sets("vllm.v1.engine.input_processor:InputProcessor", "process_inputs", "process_inputs_async")
    assert issubclass(found("vllm.v1.engine.exceptions:EngineGenerateError"), Exception)


def test_a_scheduler_that_is_a_step_ahead():
    assert issubclass(found("vllm.v1.core.sched.async_scheduler:AsyncScheduler"), found(SCHEDULER))
    sets(REQUEST, "num_output_placeholders")
    assert "num_output_placeholders" in source(f"{SCHEDULER}.schedule")
    sets("vllm.v1.worker.gpu_model_runner:AsyncGPUModelRunnerOutput", "_model_runner_output")


def test_the_process_of_an_engine():
    assert 'else "EngineCore"' in source("vllm.v1.engine.utils:CoreEngineProcManager.__init__")


def test_stop_strings():
    takes("vllm.v1.engine.detokenizer:IncrementalDetokenizer.from_new_request", "tokenizer", "request")
    assert takes("vllm.v1.engine.detokenizer:IncrementalDetokenizer.update") == ["new_token_ids", "stop_terminated"]


def test_where_vllm_cuts_what_it_compiles():
    config = "vllm.config.compilation:CompilationConfig"
    assert "vllm::unified_attention_with_output" in found(f"{config}._attention_ops")
    settled = source(f"{config}.set_splitting_ops_for_v1")
    for operation in taps._WRITING:
        assert operation in settled
    sets(config, "splitting_ops", "cudagraph_mode", "mode")
    assert "splitting_ops" in source("vllm.compilation.partition_rules:should_split")
    assert "additional_config" in source("vllm.config.vllm:VllmConfig.compute_hash")
    takes("vllm.config:CUDAGraphMode.has_full_cudagraphs")
    sets("vllm.config:CUDAGraphMode", "NONE", "PIECEWISE")
    sets("vllm.config:CompilationMode", "VLLM_COMPILE", "STOCK_TORCH_COMPILE")


def test_what_vllm_compiles_and_how_weights_come_before_that():
    decorators = inspect.getsource(import_module("vllm.compilation.decorators"))
    assert "if self.do_not_compile or torch.compiler.is_compiling():" in decorators
    assert "TorchCompileWithNoGuardsWrapper.__init__" in decorators
    loading = "vllm.model_executor.model_loader"
    takes(f"{loading}:register_model_loader", "load_format")
    takes(f"{loading}:get_model_loader", "load_config")
    takes(f"{loading}:BaseModelLoader.load_model", "vllm_config", "model_config", "prefix")
    takes(f"{loading}:BaseModelLoader.load_weights", "model", "model_config")
    takes(f"{loading}:BaseModelLoader.download_model", "model_config")
    sets("vllm.config.load:LoadConfig", "load_format")


def test_how_vllms_own_llm_starts_an_engine():
    made = source("vllm.entrypoints.llm:LLM.__init__")
    assert 'kwargs["disable_log_stats"] = True' in made and "usage_context=UsageContext.LLM_CLASS" in made
    for kind in ("llm_engine:LLMEngine", "async_llm:AsyncLLM"):
        takes(f"vllm.v1.engine.{kind}.from_engine_args", "engine_args", "usage_context")


def test_a_run_of_no_request():
    takes(f"{V1}._dummy_run", "num_tokens")


def test_every_reliance_says_on_which_versions():
    for path in Path(nnsight_vllm.__file__).parent.rglob("*.py"):
        for said in path.read_text().split("relies on:")[1:]:
            assert re.search(r"vLLM 0\.\d+ to 0\.\d+|torch 2\.\d+ to 2\.\d+", said.split('"""')[0]), (
                f"{path.name} does not say for which versions"
            )
