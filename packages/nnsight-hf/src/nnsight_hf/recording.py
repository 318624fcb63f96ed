"""The hidden states and attentions that a model gives beside its output, also where it was restored and not made."""

from __future__ import annotations

import torch
from transformers import PreTrainedModel, modeling_utils


def register(module: torch.nn.Module) -> None:
    """Let the models in a module record what they were asked for.

    transformers keeps a table of what the models of a class can record, and adds to it in their constructor. One that was
    unpickled, or came over a wire, has not passed there, and answers `output_hidden_states=True` with None.
    """
    # relies on: _CAN_RECORD_REGISTRY, a dict by the classes' str, transformers 5.15 to 5.23. Its own `[...] =` takes a
    # string in some of them and a model in others.
    table = modeling_utils._CAN_RECORD_REGISTRY
    for part in module.modules():
        if isinstance(part, PreTrainedModel):
            dict.__setitem__(table, str(type(part)), part._can_record_outputs)
