"""What is timed on language models of transformers: the same text of a block is run by ours and by the peer.

Here the ratios are of whole times: "bare" is what one would write without nnsight.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import gpt2
from models import Subject

_LAYER = 6


def _wrapped(subject: Subject) -> Any:
    from nnsight import LanguageModel

    return LanguageModel(subject.net, tokenizer=gpt2.tokenizer())


def _generate(subject: Subject, count: int, contender: str) -> dict[str, Callable[[], Any]]:
    model, net, ids = _wrapped(subject), subject.net, subject.x[:, :16]
    options = {"max_new_tokens": count, "do_sample": False}
    mask, steering = torch.ones_like(ids), torch.full((net.config.n_embd,), 0.5)

    def bare() -> Tensor:
        return net.generate(ids, attention_mask=mask, **options)

    def hooks() -> Tensor:
        handle = net.transformer.h[_LAYER].register_forward_hook(lambda module, args, output: output + steering)
        try:
            return bare()
        finally:
            handle.remove()

    def block() -> Tensor:
        with model.generate(ids, **options) as tracer:
            for _ in tracer.iter[:count]:
                model.transformer.h[_LAYER].output = model.transformer.h[_LAYER].output + steering
            tokens = tracer.result.save()
        return tokens

    return {"bare": bare, "hooks": hooks, contender: block}


def _cache(subject: Subject, count: int, contender: str) -> dict[str, Callable[[], Any]]:
    model, net, ids = _wrapped(subject), subject.net, subject.x[:, :count]

    def bare() -> list[Tensor]:
        # The last that transformers gives has been through the final norm, so it is not compared.
        return list(net(ids, output_hidden_states=True).hidden_states[1:-1])

    def block() -> list[Tensor]:
        with model.trace(ids) as tracer:
            kept = tracer.cache(modules=list(model.transformer.h))
        return [kept[f"model.transformer.h.{number}"].output for number in range(len(net.transformer.h) - 1)]

    return {"bare": bare, contender: block}


def _prompts(subject: Subject, count: int, contender: str) -> dict[str, Callable[[], Any]]:
    model, net, words = _wrapped(subject), subject.net, gpt2.tokenizer()
    texts = gpt2.prompts(count, net.config.vocab_size)

    def bare() -> list[Tensor]:
        kept: list[Tensor] = []

        def keep(module: Any, args: Any, output: Tensor) -> None:
            kept.extend(output[row, -1] for row in range(count))

        batch = words(texts, padding=True, return_tensors="pt")
        mask = batch["attention_mask"]
        handle = net.transformer.h[_LAYER].register_forward_hook(keep)
        try:
            net(batch["input_ids"], attention_mask=mask, position_ids=(mask.cumsum(-1) - 1).clamp(min=0))
        finally:
            handle.remove()
        return kept

    def block() -> list[Tensor]:
        kept: list[Tensor] = []
        with model.trace() as tracer:
            for text in texts:
                with tracer.invoke(text):
                    kept.append(model.transformer.h[_LAYER].output[0, -1])
        return kept

    return {"bare": bare, contender: block}


#: By the name of the work.
MAKERS: dict[str, Callable[[Subject, int, str], dict[str, Callable[[], Any]]]] = {
    "generate, one layer edited": _generate,
    "cache layers, tokens": _cache,
    "prompts, one invoke each": _prompts,
}
