"""`trace(..., scan=True, validate=True)`: try the run, and the block, on fake tensors before the real ones."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType
from typing import TYPE_CHECKING, Any

from .batching import Batchable
from .blocks import capture
from .scan import ScanTracer
from .trace import Tracer

if TYPE_CHECKING:
    from .tree import Node


class ValidatingTracer(Tracer):
    """A trace that is scanned first."""

    def __init__(
        self,
        node: Node,
        family: Batchable,
        inputs: tuple[Any, ...],
        kwargs: dict[str, Any],
        method: str | Callable[..., Any] | None,
        validate: bool,
    ) -> None:
        super().__init__(node, family, inputs, kwargs, method)
        self._validate = validate

    def __enter__(self) -> Tracer:
        self._try(sys._getframe(1))
        return super().__enter__()

    def _try(self, frame: FrameType) -> None:
        scan = ScanTracer(self._node, self._family, self._inputs, self._kwargs, self._method)
        if not self._validate:
            if self._family._has_input(self._inputs, self._kwargs):
                with scan:
                    pass
            return
        body = capture(frame)
        names = body.names()
        # The block runs again for real: what it appends to lists and the like must not stay from the trial.
        names.outer = {
            name: value.copy() if type(value) in (list, dict, set) else value for name, value in names.outer.items()
        }
        with scan as tracer:
            body.assign(names, tracer)
            body.run(names)
