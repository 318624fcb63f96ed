"""How a value of a standard name lies at its site in an engine, and how it is shown: [1, positions, hidden].

A request is one row, and an engine has the positions of all requests in one dimension, or in one row (`worker/layout.py`).
A layer with fused residuals gives what its last part gave and the stream before that part, which the next norm adds up: the
stream is their sum.
"""

from __future__ import annotations

from typing import Any

import torch

from nnsight.plugin import leaves, standard, tree_map

from .found import Spot


class States(standard.Value):
    """Hidden states [1, positions, hidden] under one name.

    Args:
        name: how messages call them.
        envoy: the module at which they lie.
        spot: how they lie there.
        hidden: their size.
    """

    def __init__(self, name: str, envoy: Any, spot: Spot, hidden: int) -> None:
        self._name, self._spot, self._hidden = name, spot, hidden
        super().__init__(name, envoy, self._read, self._write, spot.site, spot.shown(envoy._path))

    def _states(self, value: Any) -> list[torch.Tensor]:
        found = [one for one in leaves(value) if one.is_floating_point() and one.shape[-1:] == (self._hidden,)]
        found = [one for one in found if one.dim() == 2 or (one.dim() == 3 and one.shape[0] == 1)]
        if not found:
            raise ValueError(f"`{self._name}`: there is no such tensor at its site in this run")
        return found if self._spot.summed else found[:1]

    def _read(self, envoy: Any, value: Any) -> torch.Tensor:
        found, scale = self._states(value), self._spot.scale
        shown = found[0] if len(found) == 1 else found[0] + found[1]
        shown = shown if scale == 1.0 else shown * scale
        return shown if shown.dim() == 3 else shown[None]

    def _write(self, envoy: Any, value: Any, new: Any) -> Any:
        found, scale = self._states(value), self._spot.scale
        flat = found[0].dim() == 2
        put = standard.tensor_for(self._name, new, (1, *found[0].shape) if flat else found[0].shape)
        put = put[0] if flat else put
        put = put if scale == 1.0 else put / scale
        # Of a sum, all is put where the stream lies: what would be taken from it and added again would be rounded twice.
        puts = [torch.zeros_like(found[0]), put] if len(found) == 2 else [put]
        by = {id(old): one for old, one in zip(found, puts)}
        return tree_map(lambda leaf: by.get(id(leaf), leaf), value)


class Logits(standard.Value):
    """The logits of a step [1, 1, tokens].

    Args:
        envoy: where they pass.
    """

    def __init__(self, envoy: Any) -> None:
        super().__init__("logits", envoy, self._read, self._write)

    def _read(self, envoy: Any, value: Any) -> torch.Tensor:
        shown: torch.Tensor = value[None]
        return shown

    def _write(self, envoy: Any, value: Any, new: Any) -> Any:
        return standard.tensor_for("logits", new, (1, *value.shape))[0]
