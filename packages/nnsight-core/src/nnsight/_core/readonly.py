"""A tensor that is a copy of something else, and says so when somebody edits it in place.

One idea: an edit of a copy would have no effect where it is meant to have one, so it is refused at its line. What is computed
with such a tensor is plain tensors; its views are like itself.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch

from .errors import NNsightError


class ReadOnly(torch.Tensor):
    """A copy that refuses edits in place.

    A subclass says in `refused` what is raised, and in `carried` what its views need for that.
    """

    #: The attributes that views of it have from it.
    carried: ClassVar[tuple[str, ...]] = ("_refusal",)

    _refusal: str

    @classmethod
    def of(cls, tensor: torch.Tensor, refusal: str) -> torch.Tensor:
        """Return a tensor as one that refuses edits.

        Args:
            tensor: the copy.
            refusal: why, and what to write instead.
        """
        made: ReadOnly = tensor.as_subclass(cls)
        made._refusal = refusal
        return made

    def refused(self, edit: str) -> NNsightError:
        """Return the error for an edit.

        Args:
            edit: the name of the function that would make it.
        """
        return NNsightError(f"`{edit}` would edit {self._refusal}")

    @property
    def plain(self) -> torch.Tensor:
        """The tensor itself, for those who read it only."""
        with torch._C.DisableTorchFunctionSubclass():
            return self.as_subclass(torch.Tensor)

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
            raise edited.refused(name)
        with torch._C.DisableTorchFunctionSubclass():
            result = func(*args, **kwargs)
        whole = next((arg for arg in args if isinstance(arg, cls)), None)
        if whole is not None and type(result) is torch.Tensor and _shares(result, whole):
            view = result.as_subclass(type(whole))
            for name in whole.carried:
                setattr(view, name, getattr(whole, name))
            return view
        return result


_EDITS = frozenset(("__setitem__", "__set__", "copy_", "set_"))
_HARMLESS = frozenset(("requires_grad_", "__invert__", "__index__", "__int__", "__init__"))


def _shares(one: torch.Tensor, other: torch.Tensor) -> bool:
    return bool(one.untyped_storage()._cdata == other.untyped_storage()._cdata)
