"""Standard names: one vocabulary over all decoders, checked by identities.

`names.py` is the vocabulary, `layer.py` one layer under it; `resolve.py` finds out what it means in a model, by what passes
in a small run (`record.py`), and notes it in `found.py`; `values.py` serves it, `report.py` shows it, `identities.py`
measures it.
"""

from nnsight_hf.standard.corrections import Corrections
from nnsight_hf.standard.found import AbsentNameError, Resolution
from nnsight_hf.standard.identities import Identities, Identity
from nnsight_hf.standard.layer import Layer
from nnsight_hf.standard.names import StandardNames
from nnsight_hf.standard.resolve import resolve

__all__ = [
    "AbsentNameError",
    "Corrections",
    "Identities",
    "Identity",
    "Layer",
    "Resolution",
    "StandardNames",
    "resolve",
]
