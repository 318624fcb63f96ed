"""Standard names of models of transformers, checked by identities. Which names there are says `nnsight.plugin.standard`.

`resolve.py` finds out what they mean in a model, by what passes in a small run (`record.py`), and notes it in `found.py`;
`names.py` is the view of a model, `values.py` what serves it, and `identities.py` measures it.
"""

from nnsight import AbsentNameError
from nnsight.plugin import standard
from nnsight_hf.standard.corrections import Corrections
from nnsight_hf.standard.found import Resolution
from nnsight_hf.standard.identities import Identities, Identity
from nnsight_hf.standard.names import StandardNames
from nnsight_hf.standard.resolve import resolve

Layer = standard.Layer

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
