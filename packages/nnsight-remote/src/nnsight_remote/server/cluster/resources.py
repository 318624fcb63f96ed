"""`Resources`: what a model is given of a cluster, and how that is written on a command line.

The one idea: the names are Ray's. `num_cpus`, `num_gpus` and `memory` are what Ray knows itself; any other name is one that
the cluster's owner gave to some of its nodes, such as `a100`, or that Ray gives to each, such as `node:10.0.0.7`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

Resources = Mapping[str, float]
_KNOWN = ("num_cpus", "num_gpus", "memory")
_UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


def parse_resources(words: Iterable[str], models: Iterable[str]) -> dict[str, dict[str, float]]:
    """Read `["num_gpus=1", "large:num_gpus=4"]` by model; the empty name stands for all. Raise ValueError.

    Names of resources, too, may contain a colon: what stands before one is a model where there is a model of this name.
    """
    found: dict[str, dict[str, float]] = {}
    names = sorted(models, key=len, reverse=True)
    for word in words:
        key, equals, text = word.rpartition("=")
        unit = _UNITS.get(text[-1:].upper(), 1)
        try:
            number = float(text if unit == 1 else text[:-1]) * unit
        except ValueError:
            number = -1.0
        model = next((name for name in names if key.startswith(f"{name}:")), "")
        name = key[len(model) + 1 :] if model else key
        if not (equals and name and 0 <= number < math.inf):
            raise ValueError(
                f"a resource is written NAME=NUMBER or MODEL:NAME=NUMBER, as in num_gpus=1 or memory=32G, not {word!r}"
            )
        found.setdefault(model, {})[name] = number
    return found


def as_options(resources: Resources) -> dict[str, Any]:
    """Write them as the arguments of `ray.remote`."""
    known = {name: value for name, value in resources.items() if name in _KNOWN}
    own = {name: value for name, value in resources.items() if name not in _KNOWN}
    return {**known, **({"resources": own} if own else {})}


def in_words(resources: Resources) -> str:
    """Write them for a person."""
    return ", ".join(f"{name}={_short(name, value)}" for name, value in sorted(resources.items())) or "nothing"


def _short(name: str, value: float) -> str:
    return f"{value / (1 << 30):.4g}G" if "memory" in name else f"{value:g}"
