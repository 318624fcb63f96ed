"""How the tokens of all requests lie in the values of a model.

vLLM's own models have them in the first dimension. Models that it runs with transformers' code see one row that holds all of
them, and there they lie in the second dimension, behind one of size 1. Which it is, is stated for a model, not guessed.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from nnsight.plugin import PlainLayout, Rows, put_together


class OneRow(PlainLayout):
    """All tokens as the positions of one row [1, tokens, ...]; or in the first dimension, as in what vLLM has put in."""

    def take(self, value: torch.Tensor, rows: Rows, path: str) -> torch.Tensor | None:
        """Return the tokens of one request as a view, or None if the value has none."""
        if not self._is_row(value):
            return super().take(value, rows, path)
        start, count = rows
        return value[:, start : start + count]

    def join(self, value: torch.Tensor, pieces: Mapping[Rows, torch.Tensor], path: str) -> torch.Tensor:
        """Return the value with the tokens of some requests replaced."""
        return put_together(value, pieces.items(), 1) if self._is_row(value) else super().join(value, pieces, path)

    def _is_row(self, value: torch.Tensor) -> bool:
        return value.dim() > 1 and value.shape[0] == 1 and value.shape[1] == self.total


def layout_of(module: torch.nn.Module) -> type[PlainLayout]:
    """Return how tokens lie in a model.

    relies on: models that run transformers' code are of `vllm.model_executor.models.transformers`, vLLM 0.30 to 0.33.
    """
    within = any(cls.__module__.startswith("vllm.model_executor.models.transformers") for cls in type(module).__mro__)
    return OneRow if within else PlainLayout
