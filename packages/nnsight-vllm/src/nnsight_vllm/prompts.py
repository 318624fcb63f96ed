"""What a request is made of: a prompt as vLLM takes it, and how tokens are drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from vllm import SamplingParams

#: What may be said of a request besides how its tokens are drawn.
OF_REQUESTS = ("lora_request", "priority")


def prompt_of(given: Any, **more: Any) -> dict[str, Any]:
    """Return one prompt as vLLM takes it.

    Args:
        given: text, token ids (a list or a tensor [tokens] or [1, tokens]), what a tokenizer returned for one text, or a
            prompt as vLLM takes it already.
        more: an `attention_mask`, beside ids: what it leaves out is no part of the prompt.
    """
    mask = more.pop("attention_mask", None)
    if more:
        raise TypeError(f"a prompt of vLLM has no {', '.join(map(repr, more))}")
    if isinstance(given, str):
        if mask is not None:
            raise TypeError("an attention mask belongs to token ids, and this prompt is text")
        return {"prompt": given}
    if isinstance(given, Mapping) and "input_ids" in given:
        mask = given.get("attention_mask") if mask is None else mask
        return {"prompt_token_ids": _ids(given["input_ids"], mask)}
    if isinstance(given, Mapping):
        return dict(given)
    return {"prompt_token_ids": _ids(given, mask)}


def are_several(given: Any) -> bool:
    """Say whether these are several prompts, and not the token ids of one."""
    return isinstance(given, (list, tuple)) and bool(given) and not isinstance(given[0], int)


def _ids(given: Any, mask: Any) -> list[int]:
    ids, kept = _flat(given, "token ids"), None if mask is None else _flat(mask, "an attention mask")
    if kept is not None:
        if len(kept) != len(ids):
            raise ValueError(f"there are {len(ids)} token ids, and the attention mask is for {len(kept)}")
        ids = [token for token, keep in zip(ids, kept) if keep]
    if not ids:
        raise ValueError("a prompt has at least one token, and this one has none")
    return ids


def _flat(given: Any, what: str) -> list[int]:
    values = given.tolist() if isinstance(given, torch.Tensor) else given
    if isinstance(values, Sequence) and len(values) == 1 and isinstance(values[0], Sequence):
        values = values[0]
    if not isinstance(values, Sequence) or not all(isinstance(value, int) for value in values):
        if isinstance(values, Sequence) and len(values) > 1 and not isinstance(values[0], int):
            raise ValueError(
                f"a request has one prompt, and this input has {len(values)}. Give each an invoke of its own: "
                "`with model.trace() as tracer:` and, inside, `with tracer.invoke(prompt):`"
            )
        raise TypeError(f"{what} are integers, not {type(given).__name__}")
    return list(values)


def sampling(options: Mapping[str, Any]) -> SamplingParams:
    """Return how tokens are drawn, as these options say."""
    options = dict(options)
    params = options.pop("sampling_params", None)
    unknown = [name for name in options if name not in SamplingParams.__struct_fields__ or name.startswith("_")]
    if unknown:
        raise TypeError(
            f"vLLM has no option {unknown[0]!r} for a request; there are {', '.join(_public())}, and {', '.join(OF_REQUESTS)}"
        )
    if params is None:
        return SamplingParams(**options)
    params = params.clone()
    for name, value in options.items():
        setattr(params, name, value)
    return params


def _public() -> list[str]:
    return [name for name in SamplingParams.__struct_fields__ if not name.startswith("_")]
