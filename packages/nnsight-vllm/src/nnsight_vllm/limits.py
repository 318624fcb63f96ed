"""What an engine cannot be if bodies are to look into its requests: it is refused before anything is loaded.

One idea: a body sees each token of its request once, in a forward that it can change. What computes tokens elsewhere, guesses
them ahead, or has no steps would leave bodies out without a word.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .errors import EngineOptionError

_INSTEAD = "Start an engine without it for what is traced"
#: Why an option is refused, where it is set to something.
_REFUSED = {
    "speculative_config": (
        "speculative decoding computes tokens that are thrown away again, and several in one step, so a body would see "
        f"steps that never were. {_INSTEAD}."
    ),
    "kv_transfer_config": (
        "what another engine has computed of a prompt passes no module here, so a body would see a part of it. "
        f"{_INSTEAD}."
    ),
    "ec_transfer_config": f"what another engine has encoded passes no module here. {_INSTEAD}.",
    "enable_dbo": f"two halves of a batch are computed at once in two threads, and rows are those of halves. {_INSTEAD}.",
    "scheduler_cls": "traced requests need the scheduler that `VLLM` brings along.",
    "worker_extension_cls": "bodies run in the extension of workers that `VLLM` brings along.",
}
#: Why a number above 1 is refused.
_ONE = {
    "data_parallel_size": (
        "each copy of the model would have its own engine, and a trace is sent to one. Start several models, or serve "
        "several servers, and share the inputs out among them."
    ),
    "decode_context_parallel_size": "the tokens of a request would lie on several devices.",
    "prefill_context_parallel_size": "the tokens of a request would lie on several devices.",
}


def check_options(options: Mapping[str, Any]) -> None:
    """Refuse options of an engine with which bodies would be left out.

    Raises:
        EngineOptionError: there is one.
    """
    for name, why in _REFUSED.items():
        if options.get(name):
            raise EngineOptionError(f"`{name}=` is not possible with `VLLM`: {why}")
    for name, why in _ONE.items():
        if (options.get(name) or 1) > 1:
            raise EngineOptionError(f"`{name}={options[name]}` is not possible with `VLLM`: {why}")


def check_config(config: Any) -> None:
    """Refuse a model that an engine would not generate with.

    Args:
        config: vLLM's, of the whole engine.

    Raises:
        EngineOptionError: it is one.
    """
    kind = config.model_config.runner_type
    if kind != "generate":
        raise EngineOptionError(
            f"vLLM runs this model for {kind}, and not to generate, so its requests have no steps in which tokens are drawn. "
            "Look into it with `LanguageModel`, or with `Task` for its own head."
        )
