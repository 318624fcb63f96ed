"""Standard names: one vocabulary over all decoders, checked by identities.

`names.py` is the vocabulary; `resolve.py` finds out what it means in a model, with the sums of `identities.py` over the
numbers of `record.py`; `values.py` serves it, and `report.py` shows it.
"""

from nnsight_hf.standard.names import Layer, StandardNames
from nnsight_hf.standard.resolve import AbsentNameError, Resolution, resolve

__all__ = ["AbsentNameError", "Layer", "Resolution", "StandardNames", "resolve"]
