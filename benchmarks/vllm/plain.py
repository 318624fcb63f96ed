"""What is measured against: vLLM as it is, and transformers; and the engine of ours beside them, with the same weights."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers

REQUESTS, TOKENS, LONG = 32, 64, 512
_VOCABULARY = 96
#: How often a long prompt is run in a round.
_AGAIN = 10


class Setting:
    """Two engines, a model of transformers, and the prompts.

    Args:
        folder: where the checkpoint is written.
    """

    def __init__(self, folder: Path) -> None:
        from nnsight import VLLM
        from vllm import LLM

        self.transformers = _checkpoint(folder)
        options: dict[str, Any] = {
            "dtype": "float32",
            "max_model_len": 1024,
            "max_num_batched_tokens": 2048,
            "max_num_seqs": REQUESTS,
            "block_size": 32,
            "num_gpu_blocks_override": 400,
            "enforce_eager": True,
            "skip_tokenizer_init": True,
        }
        self.engine = LLM(model=str(folder), **options).llm_engine
        self.model = VLLM(str(folder), dispatch=True, **options)
        draw = random.Random(0)
        self.prompts = [[draw.randrange(4, _VOCABULARY) for _ in range(16)] for _ in range(REQUESTS)]
        self.long = [draw.randrange(4, _VOCABULARY) for _ in range(LONG)]
        self.vector = torch.randn(_checkpoint_config().hidden_size, generator=torch.Generator().manual_seed(0))
        self._count = 0

    @property
    def sampling(self) -> dict[str, Any]:
        """How tokens are drawn, the same for all."""
        return {"temperature": 0, "max_tokens": TOKENS, "ignore_eos": True, "detokenize": False}

    def add(self, engine: Any, prompt: list[int]) -> None:
        """Give a request to an engine of vLLM's."""
        from vllm.sampling_params import RequestOutputKind

        from vllm import SamplingParams

        params = SamplingParams(output_kind=RequestOutputKind.FINAL_ONLY, **self.sampling)
        self._count += 1
        engine.add_request(f"plain-{self._count}", {"prompt_token_ids": prompt}, params)

    def vllm(self, engine: Any = None) -> list[list[int]]:
        """Run all requests without nnsight, and return their tokens."""
        engine = self.engine if engine is None else engine
        for prompt in self.prompts:
            self.add(engine, prompt)
        done = []
        while engine.has_unfinished_requests():
            done += [output for output in engine.step() if output.finished]
        done.sort(key=lambda output: int(output.request_id.split("-")[1]))
        return [list(output.outputs[0].token_ids) for output in done]

    @property
    def served(self) -> Any:
        """vLLM's engine behind the model of ours."""
        return self.model.__dict__["_engine"].engine

    def hooked(self, hook: Callable[[torch.nn.Module, Any, Any], None]) -> list[list[int]]:
        """Run all requests in the engine of ours without a trace, with a hook on a layer, and return their tokens."""
        (model,) = self.served.collective_rpc(lambda worker: worker.get_model())
        handle = model.model.layers[1].register_forward_hook(hook)
        try:
            return self.vllm(self.served)
        finally:
            handle.remove()

    def beside_vllm(self, work: Callable[[], object]) -> tuple[float, float]:
        """Run all requests without nnsight and `work` on the engine of ours, a step of one after a step of the other.

        Returns:
            The seconds of processor time that `work` took, and that it took without nnsight.
        """
        clock, step = time.process_time, self.served.step
        start = clock()
        for prompt in self.prompts:
            self.add(self.engine, prompt)
        plain = clock() - start

        def both() -> Any:
            nonlocal plain
            start = clock()
            self.engine.step()
            plain += clock() - start
            return step()

        self.served.step = both
        start, before = clock(), plain
        try:
            work()
        finally:
            del self.served.step
        mine = clock() - start - (plain - before)
        start = clock()
        while self.engine.has_unfinished_requests():
            self.engine.step()
        return mine, plain + clock() - start

    def beside_transformers(self, work: Callable[[], object]) -> tuple[float, float]:
        """Run the long prompt in transformers and `work`, one after the other, some times; return what `beside_vllm` does."""
        clock, mine, plain = time.process_time, 0.0, 0.0
        for _ in range(_AGAIN):
            start = clock()
            self.hidden_states()
            between = clock()
            work()
            plain, mine = plain + between - start, mine + clock() - between
        return mine, plain

    def hidden_states(self) -> tuple[torch.Tensor, ...]:
        """Run the long prompt in transformers, and return what all layers gave, each [1, tokens, size]."""
        with torch.no_grad():
            found = self.transformers(torch.tensor([self.long]), output_hidden_states=True).hidden_states
        return tuple(found)


def _checkpoint_config() -> Any:
    return transformers.LlamaConfig(
        vocab_size=_VOCABULARY,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )


def _checkpoint(folder: Path) -> Any:
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(_checkpoint_config()).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(3)  # so that tokens differ
    model.save_pretrained(folder)
    return model
