"""The loss of each invoke of a batch: what its own rows would give alone.

A model returns one number for all rows. An invoke's own is computed from its rows of the logits and labels by cross
entropy, in the form (each position predicting its own label, or the next position's) that gives the model's number for
all rows. A loss that neither gives (a part for the balance of experts, say) stays what it is, and is shared.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor

from nnsight.plugin import Rows


@dataclass
class Found:
    """A loss that a run has shown, and what it was made of.

    Attributes:
        loss: the model's, of all rows.
        logits: [rows, positions, tokens].
        shift: by how many positions labels are ahead; None if the loss is of another kind.
        own: those that were given out.
    """

    loss: torch.Tensor
    logits: torch.Tensor
    shift: int | None
    own: dict[Rows, torch.Tensor] = field(default_factory=dict)


class Losses:
    """The losses of a run with labels.

    Args:
        labels: token ids, -100 where none counts: [rows, positions].
    """

    def __init__(self, labels: torch.Tensor) -> None:
        self._labels = labels
        self._found: dict[int, Found] = {}

    def look(self, value: Any) -> None:
        """Take note of the loss in what a model returns."""
        loss, logits = getattr(value, "loss", None), getattr(value, "logits", None)
        if not isinstance(loss, torch.Tensor) or not isinstance(logits, torch.Tensor) or id(loss) in self._found:
            return
        if not loss.dim() and logits.shape[:-1] == self._labels.shape:
            self._found[id(loss)] = Found(loss, logits, self._shift(loss, logits))

    def own(self, loss: torch.Tensor, rows: Rows) -> torch.Tensor | None:
        """Return the loss of some rows; None if this is no loss, or one of another kind."""
        found = self._found.get(id(loss))
        if found is None or found.shift is None:
            return None
        if rows not in found.own:
            part = slice(rows[0], rows[0] + rows[1])
            found.own[rows] = _entropy(found.logits[part], self._labels[part], found.shift, loss.dtype)
        return found.own[rows]

    def _shift(self, loss: torch.Tensor, logits: torch.Tensor) -> int | None:
        # Small parts of another kind are small: what is left to rounding is no more than its own precision needs.
        rounding = 5e-5 if loss.dtype is torch.float32 else 2e-2
        with torch.no_grad():
            for shift in (1, 0):
                made = _entropy(logits, self._labels, shift, loss.dtype)
                # Fakes have no numbers to compare, and any form has the right shape.
                if isinstance(made, FakeTensor) or torch.allclose(made, loss, rtol=rounding, equal_nan=True):
                    return shift
        return None


def _entropy(logits: torch.Tensor, labels: torch.Tensor, shift: int, dtype: torch.dtype) -> torch.Tensor:
    predicted = logits[:, : logits.shape[1] - shift].to(dtype)
    return torch.nn.functional.cross_entropy(predicted.flatten(0, 1), labels[:, shift:].flatten().to(logits.device))
