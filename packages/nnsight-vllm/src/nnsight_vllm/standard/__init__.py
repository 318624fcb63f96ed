"""Standard names of models that vLLM serves. Which names there are, and what they mean, says `nnsight.plugin.standard`.

    names.py   the view of a model
    values.py  how a value lies at its site: the stream as a sum of two, positions without rows
    found.py   where each value lies in one model, as plain data
    look.py    how that is found out: by what adds up, in a request of a few tokens
    sums.py    the search for what adds up
    asking.py  that request

A value has the shape that it has in a `LanguageModel` with one prompt.
"""

from __future__ import annotations

from nnsight import AbsentNameError

from .found import Found
from .names import StandardNames

__all__ = ["AbsentNameError", "Found", "StandardNames"]
