"""What a cache keeps of one visit of a module.

A tensor that is kept as it is can be changed in place afterwards, by the model (which adds the next part onto it) or by a
later line of a block. It is then no longer what passed, and an entry that held it would be wrong without a word. torch
counts the changes of a tensor; an entry compares, and refuses.
"""

from __future__ import annotations

from typing import Any

import torch

from .errors import ChangedValueError
from .sites import INPUT
from .structures import first, leaves


class Entry:
    """What one module gave and took at one visit."""

    __slots__ = ("_changed", "_inputs", "_output", "_path", "_versions")

    def __init__(self, path: str) -> None:
        self._path = path
        self._output: Any = None
        self._inputs: Any = None
        #: By whether it is an input, the tensors that were kept as they are, and how often each had been changed.
        self._versions: dict[bool, list[tuple[torch.Tensor, int]]] = {}
        self._changed: frozenset[bool] | None = None

    @property
    def output(self) -> Any:
        """The output, after interventions; None if outputs were not asked for.

        Raises:
            ChangedValueError: the run changed it in place after it had passed.
        """
        self._check(False)
        return self._output

    @property
    def inputs(self) -> Any:
        """The pair of positional and keyword arguments; None if inputs were not asked for.

        Raises:
            ChangedValueError: the run changed one of them in place after they had passed.
        """
        self._check(True)
        return self._inputs

    @property
    def input(self) -> Any:
        """The first input; None if inputs were not asked for."""
        inputs = self.inputs
        return None if inputs is None else first(*inputs)

    def keep(self, stage: str, value: Any) -> None:
        """Take the value of a site."""
        if stage is INPUT:
            self._inputs = value
        else:
            self._output = value
        tensors = [value] if type(value) is torch.Tensor else leaves(value)
        # Tensors of inference mode do not count their changes.
        self._versions[stage is INPUT] = [(one, one._version) for one in tensors if not one.is_inference()]

    def settle(self) -> None:
        """Find out for good what the run has changed."""
        self._changed = frozenset(kind for kind in self._versions if self._differs(kind))
        self._versions = {}

    def _differs(self, kind: bool) -> bool:
        return any(tensor._version != version for tensor, version in self._versions.get(kind, ()))

    def _check(self, kind: bool) -> None:
        if kind in self._changed if self._changed is not None else self._differs(kind):
            raise ChangedValueError(
                f"The {'input' if kind else 'output'} of `{self._path}` was changed in place after it had passed: the model "
                "goes on with the same tensor, or a later line of the block wrote into it. The cache kept the tensor as it "
                "was and has no other. Let it keep copies: `tracer.cache(copy=True)`."
            )

    def __repr__(self) -> str:
        return f"Entry(output={_shape(self._output)}, inputs={_shape(self._inputs)})"


class Visits(list[Entry]):
    """The visits of one module, when there were several: a list, which answers for its first visit as well."""

    @property
    def output(self) -> Any:
        """The output of the first visit."""
        return self[0].output

    @property
    def inputs(self) -> Any:
        """The inputs of the first visit."""
        return self[0].inputs

    @property
    def input(self) -> Any:
        """The first input of the first visit."""
        return self[0].input


def _shape(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return f"{type(value).__name__}{tuple(value.shape)}"
    return type(value).__name__
