"""Who computes weights over positions, whatever it is called, and where in its code they can be read and replaced.

While a model runs, every softmax over as many keys as there are tokens is noted with the module that runs. What is made of
its result (a cast, a dropout) is followed up to where it is multiplied with the values: the last of these that is a call
in the text of a forward, or of a function that it calls, is the operation whose output the weights are. A fused kernel
has no such place.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from nnsight import SourceError
from nnsight.plugin import leaves, operations_of
from nnsight_hf.standard.found import Weights

#: How many tokens the small forward reads, in how many rows.
ROWS, TOKENS = 2, 6

_FUSED = ("scaled_dot_product_attention", "flex_attention")
_PRODUCTS = ("matmul", "__matmul__", "bmm", "einsum", "baddbmm")


@dataclass
class _Line:
    """What becomes of one softmax.

    Attributes:
        place: where the weights lie that values were multiplied with; None as long as none were, or if that has no place.
        places: for each tensor made of it, by its id, the last place before it where weights are whole.
        held: those tensors, so that no other gets the id of one.
    """

    place: Weights | None = None
    places: dict[int, Weights | None] = field(default_factory=dict)
    held: list[torch.Tensor] = field(default_factory=list)


class Attending(TorchFunctionMode):
    """Notes which module is running when weights over positions are computed, and follows them.

    Args:
        parts: the modules of the model, by path.
        running: gives the path of the module that runs.
    """

    def __init__(self, parts: Mapping[str, torch.nn.Module], running: Callable[[], str | None]) -> None:
        super().__init__()
        self._parts = parts
        self._running = running
        self._fused: set[str] = set()
        self._lines: dict[str, list[_Line]] = {}

    def found(self) -> dict[str, list[Weights | None]]:
        """Return the modules that computed weights, and for each softmax where its weights lie, or None."""
        made: dict[str, list[Weights | None]] = {path: [] for path in self._fused}
        for path, lines in self._lines.items():
            made.setdefault(path, []).extend(line.place for line in lines)
        return made

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name, path = getattr(func, "__name__", ""), self._running()
        if path is None:
            return result
        if name in _FUSED:
            self._fused.add(path)
        elif name == "softmax" and _is_weights(result):
            self._lines.setdefault(path, []).append(_Line())
            self._keep(self._lines[path][-1], result, self._place(path, name))
        else:
            for tensor in (one for one in leaves(args) if isinstance(result, torch.Tensor)):
                for line in (one for lines in self._lines.values() for one in lines if id(tensor) in one.places):
                    before = line.places[id(tensor)]
                    if name in _PRODUCTS:
                        line.place = line.place or before
                    elif tensor is args[0]:
                        whole = result.dim() == 4 and _is_weights(result)
                        self._keep(line, result, (self._place(path, name) if whole else None) or before)
        return result

    def _keep(self, line: _Line, tensor: torch.Tensor, place: Weights | None) -> None:
        line.held.append(tensor)
        line.places[id(tensor)] = place if tensor.dim() == 4 or line.places else None

    def _place(self, path: str, called: str) -> Weights | None:
        """Return where the call that is being made stands: in which forward, and through which operations in it."""
        part = self._parts[path]
        if not any(True for _ in part.parameters()) and not any(True for _ in part.children()) and "." in path:
            return Weights(path)  # a dropout, or a softmax that is a module
        way: list[str] = []
        frame: FrameType | None = sys._getframe(2)
        while frame is not None:
            if "/torch/" not in frame.f_code.co_filename.replace("\\", "/"):
                name = _operation(frame, part, called, inner=not way)
                if name is None:
                    return None
                way.insert(0, name)
                called = frame.f_code.co_name
                if called == "forward" and frame.f_locals.get("self") is part:
                    return Weights(path, tuple(way))
            frame = frame.f_back
        return None


def _is_weights(tensor: torch.Tensor) -> bool:
    """Say whether a tensor is [rows, heads, positions, positions], or has rows and heads in one dimension.

    There may be one more key where a sink takes part, and more positions where the model puts some before the tokens.
    """
    shape = tensor.shape
    each = len(shape) == 4 or (len(shape) == 3 and shape[0] > ROWS)
    return each and shape[-2] >= TOKENS and shape[-1] in (shape[-2], shape[-2] + 1)


def _operation(frame: FrameType, part: Any, called: str, inner: bool) -> str | None:
    """Return the name of the operation that a frame is at, or None: an index, an operator, a line with several."""
    name = frame.f_code.co_name
    function = getattr(part, name, None) if "self" in frame.f_locals else frame.f_globals.get(name)
    if function is None:
        return None
    try:
        known = operations_of(function)
    except SourceError:
        return None
    here = [operation for operation in known if operation.lineno <= frame.f_lineno <= operation.end_lineno]
    same = [operation for operation in here if operation.callee.split(".")[-1] == called]
    if not same and not inner:  # a function under another name, such as that of a local variable
        same = [operation for operation in here if operation.callee.isidentifier()]
    return same[0].name if len(same) == 1 else None
