"""Standard names: one vocabulary over all decoders. Which names there are and what they mean is said here, and nowhere else.

    vocabulary.py  the values of a layer: what each is, and its shape
    resolution.py  what the names mean in one model, as plain data
    values.py      what serves a value, and the values of all layers under one name
    layer.py       one layer
    names.py       the view of a model under all names: `model.standard`
    report.py      what the names mean in one model, as a text

A family says where the names lie in its models (a `Resolution`), and subclasses `StandardNames` to say how what lies there
becomes a value. How it finds that out is its own affair.
"""

from __future__ import annotations

from .layer import Layer
from .names import StandardNames
from .report import absent_in, listing
from .resolution import Block, Resolution, Spot
from .values import PerLayer, Value, tensor_for
from .vocabulary import PARTS, VALUES, Meaning

__all__ = [
    "PARTS",
    "VALUES",
    "Block",
    "Layer",
    "Meaning",
    "PerLayer",
    "Resolution",
    "Spot",
    "StandardNames",
    "Value",
    "absent_in",
    "listing",
    "tensor_for",
]
