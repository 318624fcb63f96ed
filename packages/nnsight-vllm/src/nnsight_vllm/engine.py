"""The engine in this process: requests go in together, and what their bodies saved comes out."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from nnsight.plugin import Prepared, decode_error, decode_results, encode_message, inspect_bytes

from . import outputs
from .worker.stage import KEY


class SyncEngine:
    """`vllm.LLM`, started when it is first needed.

    Args:
        options: of the engine.
    """

    def __init__(self, options: Mapping[str, Any]) -> None:
        self.options = dict(options)
        self.llm: Any = None

    @property
    def started(self) -> bool:
        """Whether it runs."""
        return self.llm is not None

    def start(self) -> None:
        """Load the model."""
        if self.llm is None:
            from vllm import LLM

            own = {
                "worker_extension_cls": "nnsight_vllm.worker.extension.Extension",
                "scheduler_cls": "nnsight_vllm.scheduling.TracedScheduler",
            }
            outputs.register()
            llm = LLM(**{**self.options, **own})
            llm.collective_rpc("nnsight_begin")
            self.llm = llm

    @property
    def tokenizer(self) -> Any:
        """Its tokenizer."""
        self.start()
        return self.llm.get_tokenizer()

    def serve(self, bodies: bytes, inputs: Sequence[Prepared]) -> list[Mapping[str, Any]]:
        """Serve the requests of one trace; see `nnsight.plugin.Engine`."""
        self.start()
        trace = uuid.uuid4().hex
        requests, params, others = [], [], []
        for number, ((prompt, sampling), more, _) in enumerate(inputs):
            sampling = sampling.clone()
            sampling.extra_args = {**(sampling.extra_args or {}), KEY: [trace, number]}
            # What a body changes is in the cache of this request alone, and it sees forwards that a cache would skip.
            requests.append({**prompt, "cache_salt": f"{trace}/{number}"})
            params.append(sampling)
            others.append(more)
        self.llm.collective_rpc("nnsight_open", args=(trace, bodies))
        try:
            lora = [more.get("lora_request") for more in others]
            results = self.llm.generate(
                requests, params, use_tqdm=False, lora_request=lora if any(lora) else None
            )
        except BaseException:
            self.llm.collective_rpc("nnsight_drop", args=(trace,))
            raise
        told = {number: encode_message("result", outputs.bare(result)) for number, result in enumerate(results)}
        answers = self.llm.collective_rpc("nnsight_finish", args=(trace, told))[0]
        for answer in answers:
            if inspect_bytes(answer)["kind"] == "error":
                raise decode_error(answer)
        return [decode_results(answer) for answer in answers]
