"""Find out what the standard names mean in a model, by looking at its modules and at what passes through them.

Structure proposes (the list of blocks, the embedding, the head), the identities of `identities.py` decide. What cannot be
given truthfully is noted with the reason, for the error that asking for it raises.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from nnsight import NNsightError
from nnsight_hf.standard.identities import ATTENTION, FEED_FORWARD, Parts, equal, parts
from nnsight_hf.standard.record import Record, record

Tensors = Callable[[torch.Tensor], torch.Tensor]


class AbsentNameError(NNsightError, AttributeError):
    """A standard name that cannot be given truthfully in a model."""


@dataclass
class Resolution:
    """What the names mean in one model; paths are relative to it.

    Attributes:
        hidden: the size of the hidden states.
        embed_tokens, layers, ln_final, lm_head: paths; None where there is none.
        attention, mlp: for each layer, the paths of the modules so called.
        parts: for each layer, which values are its contributions.
        bare: for each layer, whether it gives a tensor and not a structure.
        cap: beyond which the logits are squashed; 0 if they are not.
        logit_scale: by what the head's output is multiplied.
        between: the modules between `ln_final` and `lm_head`, in their order.
        absent: for each name that cannot be given, why.
    """

    hidden: int
    embed_tokens: str | None = None
    layers: list[str] = field(default_factory=list)
    ln_final: str | None = None
    lm_head: str | None = None
    attention: list[str | None] = field(default_factory=list)
    mlp: list[str | None] = field(default_factory=list)
    parts: list[Parts] = field(default_factory=list)
    bare: list[bool] = field(default_factory=list)
    cap: float = 0.0
    logit_scale: float = 1.0
    between: list[str] = field(default_factory=list)
    absent: dict[str, str] = field(default_factory=dict)


def resolve(module: Any) -> Resolution:
    """Find out what the names mean in a model.

    Args:
        module: a causal language model of transformers, with its weights.

    Raises:
        AbsentNameError: it is no decoder alone.
    """
    if module.config.is_encoder_decoder:
        raise AbsentNameError("standard names are those of decoders, and this model has an encoder beside its decoder")
    paths = {part: path for path, part in module.named_modules()}
    embedding = module.get_input_embeddings()
    config = module.config.get_text_config()
    sizes = [getattr(config, name, None) for name in ("hidden_size", "n_embd", "d_model", "emb_dim")]
    hidden = next((size for size in sizes if isinstance(size, int)), 0)
    seen = record(module, hidden)
    made = Resolution(hidden, embed_tokens=paths.get(embedding))
    if made.embed_tokens not in seen.visits:
        made.absent["embed_tokens"] = "the model does not call its embedding as a module"
        made.embed_tokens = None
    _find_layers(made, module, seen)
    _find_head(made, module, seen, paths.get(module.get_output_embeddings()))
    return made


def _find_layers(made: Resolution, module: torch.nn.Module, seen: Record) -> None:
    lists = []
    for path, part in module.named_modules():
        if isinstance(part, torch.nn.ModuleList) and len(part):
            inner = [f"{path}.{name}" for name, _ in part.named_children()]
            if all(seen.counts.get(one) == 1 and seen.output(one) is not None for one in inner):
                lists.append(inner)
    if not lists:
        made.absent["layers"] = "no list of modules is gone through once, each giving [rows, positions, hidden]"
        return
    # The outermost and longest: experts and heads lie inside of a block.
    layers = min(lists, key=lambda inner: (inner[0].count("."), -len(inner)))
    for before, after in zip(layers, layers[1:]):
        start = seen.input(after)
        if start is None or not equal(start, seen.output(before)):  # type: ignore[arg-type]  # it is in the list
            made.absent["layers_input"] = f"`{after}` does not take what `{before}` gives"
    made.layers = layers
    made.bare = [seen.visits[layer].bare for layer in layers]
    for layer in layers:
        made.attention.append(_child(module, seen, layer, ATTENTION))
        made.mlp.append(_child(module, seen, layer, FEED_FORWARD))
        known = next((found for found in made.parts if found.attention and found.feed_forward), None)
        near = layers[made.parts.index(known)] if known is not None else ""
        made.parts.append(parts(seen, layer, known, near))


def _child(module: torch.nn.Module, seen: Record, layer: str, kind: Any) -> str | None:
    """Return the part of a block that is so called and runs, if there is one only."""
    found = []
    for name, _ in module.get_submodule(layer).named_children():
        path = f"{layer}.{name}"
        if kind.search(name.lower()) and "norm" not in name.lower() and seen.input(path) is not None:
            found.append(path)
    giving = [path for path in found if seen.output(path) is not None and "dropout" not in path]
    return giving[0] if len(giving) == 1 else None


def _find_head(made: Resolution, module: Any, seen: Record, head: str | None) -> None:
    logits = next(iter(seen.visits[""].outputs), None)
    if head is None or head not in seen.visits or logits is None:
        made.absent["lm_head"] = "the model has no output embedding that is called as a module"
        return
    given = seen.visits[head].outputs[0]
    config = module.config.get_text_config()
    caps = [
        getattr(config, name, None) for name in ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")
    ]
    cap = next((value for value in caps if value), 0.0)
    scale = float((given.float() * logits.float()).sum() / given.float().square().sum()) if logits.numel() else 1.0
    # The cap first: small logits are hardly squashed, and would pass for the head's own.
    if cap and equal(torch.tanh(given.float() / cap) * cap, logits.float()):
        made.lm_head, made.cap = head, float(cap)
    elif equal(given, logits):
        made.lm_head = head
    elif equal(given.float() * scale, logits.float()):
        made.lm_head, made.logit_scale = head, scale
    else:
        made.absent["lm_head"] = f"what `{head}` gives is not the logits, nor a multiple of them"
        return
    _find_norm(made, module, seen, head)


def _find_norm(made: Resolution, module: torch.nn.Module, seen: Record, head: str) -> None:
    """Find the way from the last block to the head: a norm, and whatever comes between it and the head."""
    if not made.layers:
        made.absent["ln_final"] = made.absent["layers"]
        return
    last = made.layers[-1]
    at, wanted = seen.output(last), seen.input(head)
    wanted = seen.visits[head].inputs[0] if wanted is None and seen.visits[head].inputs else wanted
    outside = sorted(
        (path for path, visit in seen.visits.items() if visit.order > seen.visits[last].order and _leaf(module, path)),
        key=lambda path: seen.visits[path].order,
    )
    way: list[str] = []
    for path in outside:
        taken, given = seen.visits[path].inputs, seen.visits[path].outputs
        if path != head and at is not None and taken and given and equal(taken[0], at):
            way.append(path)
            at = given[0]
    if at is None or wanted is None or not equal(at, wanted):
        made.absent["ln_final"] = f"what `{last}` gives does not reach `{head}` through modules alone"
    elif not way:
        made.absent["ln_final"] = f"`{head}` takes what `{last}` gives: there is no norm between them"
    elif "norm" in way[0].lower() or "ln" in way[0].lower() or "Norm" in type(module.get_submodule(way[0])).__name__:
        made.ln_final, made.between = way[0], way[1:]
    else:
        made.absent["ln_final"] = f"between `{last}` and `{head}` lies `{way[0]}`, which is no norm"
        made.between = way


def _leaf(module: torch.nn.Module, path: str) -> bool:
    part = module.get_submodule(path)
    return path != "" and not any(True for _ in part.children())
