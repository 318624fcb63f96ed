"""Every change that nnsight makes to torch or to builtin types, its reason and its undo.

`Tensor.backward`
    so that it can stand at the head of a `with`. A plain call goes straight to torch.
`.save()` on value types
    so that `x.save()` can be written for what bodies make. Mounted on the types themselves, never on `object`: there
    it would give a `save` to everything, and libraries that probe for one break. `CONFIG.APP.PYMOUNT = False` takes
    it off; `nnsight.save(x)` always works.

`Tensor.grad` is replaced while a backward block is open; that is in `backward.py`.
"""

from __future__ import annotations

import ctypes
import functools
import gc
import sys
from typing import Any

import torch

from .backward import Backward, check_gradients, plain_backward
from .blocks import is_with_head
from .config import CONFIG
from .saved import save

_frame = sys._getframe


# relies on: the parameters of torch.Tensor.backward, torch 2.4 to 2.13. Spelled out, they cost half of what
# `*args, **kwargs` would, and every plain call pays it.
@functools.wraps(plain_backward)
def _backward(
    self: torch.Tensor, gradient: Any = None, retain_graph: Any = None, create_graph: Any = False, inputs: Any = None
) -> Any:
    if is_with_head(_frame(1)):
        return Backward(self, (gradient, retain_graph, create_graph, inputs))
    if not self.requires_grad:
        check_gradients()
    return plain_backward(self, gradient, retain_graph, create_graph, inputs)


def patch_backward() -> None:
    """Let `tensor.backward(...)` be a context as well as a call."""
    torch.Tensor.backward = _backward  # type: ignore[method-assign]


def unpatch_backward() -> None:
    """Put torch's own method back."""
    torch.Tensor.backward = plain_backward  # type: ignore[method-assign]


def _value_types() -> list[type]:
    types = [torch.Tensor, torch.Size, torch.dtype, torch.device]
    types += [bool, int, float, complex, str, bytes, bytearray, list, dict, tuple, set, frozenset, range, slice]
    numpy = sys.modules.get("numpy")
    if numpy is not None:
        types += [numpy.ndarray, numpy.generic]
    return types


def _method(self: Any) -> Any:
    """Mark this value as part of the trace's result and return it; the same as `nnsight.save(value)`."""
    return save(self)


_method.__name__ = _method.__qualname__ = "save"
_mounted: list[type] = []


def _dict_of(cls: type) -> dict[str, Any]:
    # The mapping proxy of a builtin type's __dict__ refers to one object only: the dict itself.
    found: dict[str, Any] = gc.get_referents(cls.__dict__)[0]
    return found


def mount_save() -> None:
    """Give the value types their `.save()`."""
    for cls in _value_types():
        if "save" not in cls.__dict__:
            _dict_of(cls)["save"] = _method
            ctypes.pythonapi.PyType_Modified(ctypes.py_object(cls))
            _mounted.append(cls)


def unmount_save() -> None:
    """Take `.save()` off again."""
    while _mounted:
        cls = _mounted.pop()
        if cls.__dict__.get("save") is _method:
            del _dict_of(cls)["save"]
            ctypes.pythonapi.PyType_Modified(ctypes.py_object(cls))


def follow_config() -> None:
    """Mount `.save()` if the configuration says so, now and whenever it changes."""

    def follow(mounted: bool) -> None:
        if mounted:
            mount_save()
        else:
            unmount_save()

    CONFIG.APP.on_change("PYMOUNT", follow)
    follow(CONFIG.APP.PYMOUNT)
