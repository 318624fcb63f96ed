"""Weights that lie in another process: they have a shape, and say where they are when somebody computes with them."""

from __future__ import annotations

from typing import Any

import torch

from nnsight import ElsewhereError

#: What may be asked of them: what is known of them here.
_KNOWN = ("shape", "dtype", "ndim", "requires_grad", "is_meta", "layout", "grad", "device")
_GETTERS = {getattr(torch.Tensor, name).__get__ for name in _KNOWN}
_ASKED = {torch.Tensor.size, torch.Tensor.dim, torch.Tensor.numel, torch.Tensor.__len__}


class Absent(torch.Tensor):
    """A weight of another stage of the pipeline."""

    place: str

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Answer what is known without numbers, and refuse the rest."""
        if func in _GETTERS or func in _ASKED:
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **(kwargs or {}))
        mine = next((one for one in torch.utils._pytree.tree_leaves((args, kwargs)) if isinstance(one, Absent)), None)
        raise ElsewhereError(
            f"`{mine.place if mine is not None else 'a weight'}` lies in another stage of the pipeline, and its numbers are "
            "not here. A block can use the weights of the last stage, after the last value that it reads of the others."
        )


def let_be_absent(module: torch.nn.Module, path: str) -> None:
    """Replace the weights of a module, and of all in it, by ones that say where they are."""
    for name, part in module.named_modules():
        for held in (part._parameters, part._buffers):
            for own, tensor in held.items():
                if tensor is not None and not isinstance(tensor, Absent):  # one module may be in several places
                    absent = torch.Tensor._make_subclass(Absent, tensor.detach(), False)
                    absent.place = ".".join(filter(None, (path, name, own)))
                    held[own] = absent
