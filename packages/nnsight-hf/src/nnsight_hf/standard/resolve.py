"""Find out what the standard names mean in a model, by looking at its modules and at what passes through them.

Structure proposes (the list of blocks, the embedding, the head), and sums decide (`sums.py`): `parts.py` finds the parts of
each layer, `head.py` the way to the logits. What cannot be given truthfully is noted with the reason, for the error that
asking for it raises. What the user says about a model (`corrections.py`) takes the place of what is searched for, and goes
through the same sums.
"""

from __future__ import annotations

from typing import Any

import torch

from nnsight import AbsentNameError
from nnsight_hf.standard.assigning import confirm
from nnsight_hf.standard.corrections import Corrections
from nnsight_hf.standard.found import Resolution
from nnsight_hf.standard.head import find_head
from nnsight_hf.standard.parts import Parts
from nnsight_hf.standard.record import Record, record
from nnsight_hf.standard.sums import equal, numbers_of


def resolve(module: Any, given: Corrections | None = None) -> Resolution:
    """Find out what the names mean in a model.

    Args:
        module: a causal language model of transformers, with its weights.
        given: what the user says of it.

    Raises:
        AbsentNameError: it is no decoder alone, or something that was said of it is not so.
    """
    if module.config.is_encoder_decoder:
        raise AbsentNameError("standard names are those of decoders, and this model has an encoder beside its decoder")
    given = given or Corrections()
    given.check(module)
    paths = {part: path for path, part in module.named_modules()}
    config = module.config.get_text_config()
    sizes = [getattr(config, name, None) for name in ("hidden_size", "n_embd", "d_model", "emb_dim")]
    hidden = next((size for size in sizes if isinstance(size, int)), 0)
    seen = record(module, hidden)
    made = Resolution(hidden, embed_tokens=paths.get(module.get_input_embeddings()), order=list(seen.visits))
    if made.embed_tokens not in seen.visits:
        made.absent["embed_tokens"] = "the model does not call its embedding as a module"
        made.embed_tokens = None
    _find_layers(made, module, seen, given)
    confirm(made, module)
    find_head(made, module, seen, paths.get(module.get_output_embeddings()))
    given.confirm(made, module)
    return made


def _find_layers(made: Resolution, module: torch.nn.Module, seen: Record, given: Corrections) -> None:
    lists, why = [], "no list of modules is gone through once, each giving [rows, positions, hidden]"
    for path, part in module.named_modules():
        if isinstance(part, torch.nn.ModuleList) and len(part) and given.layers in (None, path):
            inner = [f"{path}.{name}" for name, _ in part.named_children()]
            if all(seen.counts.get(one) == 1 and seen.output(one) is not None for one in inner):
                lists.append(inner)
            elif all(seen.counts.get(one, 0) > 1 for one in inner) and seen.output(inner[0]) is not None:
                why = f"the modules of `{path}` run several times in one forward, so a layer has no single value"
            elif all(one in seen.visits and any(t.dim() == 4 for t in seen.visits[one].outputs) for one in inner):
                why = f"`{path}` carries several streams side by side, not one vector for each token"
    if not lists:
        made.absent["layers"] = why
        return
    # The outermost and longest: experts and heads lie inside of a block.
    layers = min(lists, key=lambda inner: (inner[0].count("."), -len(inner)))
    parts = Parts(module, seen, numbers_of(module.config), given.parts)
    made.blocks = [parts.find(layer) for layer in layers]
    for before, after in zip(layers, layers[1:]):
        start, end = seen.input(after), seen.output(before)
        if start is None or end is None or not equal(start, end):
            made.absent["layers_input"] = f"`{after}` does not take what `{before}` gives"
            for block in made.blocks:  # there may be another stream beside this one, which the sum says nothing of
                block.without.clear()
                block.mixer = "" if block.mixer == "none" else block.mixer
