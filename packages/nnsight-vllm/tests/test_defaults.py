"""What an engine is like where nobody says anything: as `vllm.LLM` starts it."""

from __future__ import annotations

from nnsight import VLLM
from nnsight_vllm.engine import left_to_others, options_of
from vllm import LLM

OPTIONS = {"dtype": "float32", "max_model_len": 256, "block_size": 32, "num_gpu_blocks_override": 80}


def test_what_nobody_says_is_as_in_vllms_own_llm(llama):
    plain = LLM(str(llama.folder), enforce_eager=True, **OPTIONS).llm_engine
    with VLLM(str(llama.folder), dispatch=True, **OPTIONS) as model:
        engine = model.__dict__["_engine"].engine
        mine, theirs = engine.vllm_config.scheduler_config, plain.vllm_config.scheduler_config
        assert mine.max_num_batched_tokens == theirs.max_num_batched_tokens > 2048
        assert mine.max_num_seqs == theirs.max_num_seqs
        assert engine.log_stats is plain.log_stats is False
    with left_to_others():
        plain.engine_core.shutdown()


def test_what_is_said_holds():
    assert options_of({"disable_log_stats": False})["disable_log_stats"] is False
