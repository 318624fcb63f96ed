"""The whole of a parameter of which each rank holds a part: a copy, which says so when somebody edits it in place."""

from __future__ import annotations

from typing import Any

import torch
from torch.distributed.tensor import DTensor

from nnsight import RanksError
from nnsight.plugin import ReadOnly


class WholeParameter(ReadOnly):
    """A parameter put together from the parts of all ranks.

    What is computed with it is plain tensors, and gradients reach the parameter. An edit in place would change the copy
    alone, so it is refused; `.data` and `.detach()` lead to the same copy.
    """

    carried = ("_path", "_parameter")

    _path: str
    _parameter: DTensor

    @classmethod
    def whole(cls, parameter: DTensor, path: str) -> torch.Tensor:
        """Return the whole of a parameter; every rank calls this."""
        whole: WholeParameter = parameter.full_tensor().as_subclass(cls)
        whole._path = path
        whole._parameter = parameter
        return whole

    @property
    def grad(self) -> torch.Tensor | None:
        """The whole gradient that the parameter has; every rank asks for it."""
        grad = self._parameter.grad
        return grad.full_tensor() if isinstance(grad, DTensor) else grad

    @grad.setter
    def grad(self, value: Any) -> None:
        raise self._unseen("its gradient was assigned")

    def refused(self, edit: str) -> RanksError:
        """Return the error for an edit."""
        return self._unseen(f"`{edit}` would edit it in place")

    def _unseen(self, what: str) -> RanksError:
        path = self._path
        return RanksError(
            f"`{path}` is spread over the ranks, and what you have is a copy of the whole: {what}, and the model would not "
            f"see that. Assign a new one on every rank, of which each takes its part: `{path} = torch.nn.Parameter(new)`."
        )
