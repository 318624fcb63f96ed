"""Positions of rows of different lengths, which nnsight 0.7 leaves to the model, and the model does not count.

The one idea: 0.7 puts the rows of all invokes into one batch, padded on the left, and hands it to a method of the model; what
is sent of the model has its own, which counts positions over real tokens first. Where positions cannot be given, rows of
different lengths are refused there.

relies on: what runs a model is `model.interleave(method, *args, **kwargs)`, nnsight 0.7.0
"""

from __future__ import annotations

import inspect
from typing import Any

from ..stand_ins import Thing
from .stand_ins import Function

NAME = "interleave"
_BEGIN = """\
def interleave(method, *args, **kwargs):
    mask = kwargs.get("attention_mask")
    is_forward = getattr(method, "__name__", method) == "__call__"
    if is_forward and mask is not None and mask.dim() == 2 and not bool(mask.all()) and "position_ids" not in kwargs:
"""
_COUNT = """\
        kwargs["position_ids"] = (mask.long().cumsum(-1) - 1).clamp(min=0)
"""
_REFUSE = """\
        raise ValueError(
            "rows of different lengths do not share a forward of this model under nnsight 0.7, which pads them on the left, "
            "and this model takes no positions; trace them one by one"
        )
"""
_END = """\
    return type(model).interleave(model, method, *args, **kwargs)
"""
#: By these methods models know that they count positions themselves.
_COUNTING = ("create_position_ids_from_input_ids", "get_rope_index")


def method_of(model: Any, thing: Thing) -> Function | None:
    """Return the method that runs a model; None if that of 0.7 does it.

    Args:
        model: the model here.
        thing: what stands for it.
    """
    module = model._module
    if any(hasattr(part, name) for part in module.modules() for name in _COUNTING):
        return None
    takes = "position_ids" in inspect.signature(type(module).forward).parameters
    source = _BEGIN + (_COUNT if takes else _REFUSE) + _END
    return Function(source, NAME, "<nnsight-remote>", names={"model": thing})
