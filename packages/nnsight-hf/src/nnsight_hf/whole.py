"""The whole of a parameter of which each rank holds a part: a copy, which says so when somebody edits it in place."""

from __future__ import annotations

from typing import Any

import torch
from torch.distributed.tensor import DTensor

from nnsight import RanksError


class WholeParameter(torch.Tensor):
    """A parameter put together from the parts of all ranks.

    What is computed with it is plain tensors, and gradients reach the parameter. An edit in place would change the copy
    alone, so it is refused.
    """

    _path: str
    _parameter: DTensor

    @classmethod
    def of(cls, parameter: DTensor, path: str) -> torch.Tensor:
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
        raise _refusal(self._path, "its gradient was assigned")

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Refuse edits in place; hand everything else to torch."""
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        edited = args[0] if args and isinstance(args[0], cls) else kwargs.get("out")
        in_place = (
            name in _EDITS or (name.endswith("_") and not name.endswith("__")) or (name[:3] == "__i" and len(name) > 6)
        )
        if isinstance(edited, cls) and name not in _HARMLESS and (in_place or "out" in kwargs):
            raise _refusal(edited._path, f"`{name}` would edit it in place")
        with torch._C.DisableTorchFunctionSubclass():
            result = func(*args, **kwargs)
        # A view, `.data` and `.detach()` lead to the same copy.
        whole = next((arg for arg in args if isinstance(arg, cls)), None)
        if whole is not None and type(result) is torch.Tensor and _shares(result, whole):
            view: WholeParameter = result.as_subclass(cls)
            view._path, view._parameter = whole._path, whole._parameter
            return view
        return result


_EDITS = frozenset(("__setitem__", "__set__", "copy_", "set_"))
_HARMLESS = frozenset(("requires_grad_", "__invert__", "__index__", "__int__", "__init__"))


def _shares(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.untyped_storage()._cdata == other.untyped_storage()._cdata


def _refusal(path: str, what: str) -> RanksError:
    return RanksError(
        f"`{path}` is spread over the ranks, and what you have is a copy of the whole: {what}, and the model would not see "
        f"that. Assign a new one on every rank, of which each takes its part: `{path} = torch.nn.Parameter(new)`."
    )
