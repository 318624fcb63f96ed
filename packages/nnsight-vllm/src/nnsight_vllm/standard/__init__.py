"""Standard names: one vocabulary over all decoders, that of `LanguageModel.standard`, for models that vLLM serves.

    names.py   the vocabulary, as a view of a model
    layer.py   the values of layers, and one layer
    values.py  how a value lies at its site: the stream as a sum of two, positions without rows
    found.py   where each value lies in one model, as plain data
    look.py    how that is found out: by what adds up, in a request of a few tokens
    sums.py    the search for what adds up
    asking.py  that request

The names, what they mean and the shapes of their values are those of nnsight-hf, which is not needed here: what differs is
how the values lie, so the code has nothing in common.
"""

from __future__ import annotations

from .found import AbsentNameError, Found
from .names import StandardNames

__all__ = ["AbsentNameError", "Found", "StandardNames"]
