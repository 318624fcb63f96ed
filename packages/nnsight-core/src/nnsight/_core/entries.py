"""What a cache keeps of one visit of a module.

A tensor that is kept as it is can be changed in place afterwards, by the model (which adds the next part onto it) or by a
later line of a block. It is then no longer what passed, and an entry that held it would be wrong without a word. torch
counts the changes of a tensor; an entry compares, and refuses.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch

from .errors import ChangedValueError
from .structures import first, leaves

#: In place of a count: the value was changed before the run was over.
_CHANGED = -1


class Entry:
    """What one module gave and took at one visit."""

    # On the class, since a run makes many entries and most have an output only.
    _output: Any = None
    _inputs: Any = None
    #: How often the tensors had been changed when they were kept; None once nobody needs to know any more.
    _output_count: int | None = None
    _inputs_count: int | None = None

    def __init__(self, path: str) -> None:
        self._path = path

    @property
    def output(self) -> Any:
        """The output, after interventions; None if outputs were not asked for.

        Raises:
            ChangedValueError: the run changed it in place after it had passed.
        """
        if self._output_count is not None and _count(self._output) != self._output_count:
            raise self._changed("output")
        return self._output

    @property
    def inputs(self) -> Any:
        """The pair of positional and keyword arguments; None if inputs were not asked for.

        Raises:
            ChangedValueError: the run changed one of them in place after they had passed.
        """
        if self._inputs_count is not None and _count(self._inputs) != self._inputs_count:
            raise self._changed("input")
        return self._inputs

    @property
    def input(self) -> Any:
        """The first input; None if inputs were not asked for."""
        inputs = self.inputs
        return None if inputs is None else first(*inputs)

    def keep_output(self, value: Any) -> None:
        """Take what the module gave."""
        self._output = value
        self._output_count = _count(value)

    def keep_inputs(self, value: Any) -> None:
        """Take what the module was given."""
        self._inputs = value
        self._inputs_count = _count(value)

    def settle(self) -> None:
        """Find out for good what the run has changed: what happens from here on is the user's doing."""
        if self._output_count is not None:
            self._output_count = None if _count(self._output) == self._output_count else _CHANGED
        if self._inputs_count is not None:
            self._inputs_count = None if _count(self._inputs) == self._inputs_count else _CHANGED

    @classmethod
    def told(cls, path: str, output: Any, inputs: Any, changed: Collection[str]) -> Entry:
        """Return an entry of a run elsewhere, of which "output", "inputs" or both were changed."""
        entry = cls(path)
        entry._output, entry._inputs = output, inputs
        entry._output_count = _CHANGED if "output" in changed else None
        entry._inputs_count = _CHANGED if "inputs" in changed else None
        return entry

    def _changed(self, what: str) -> ChangedValueError:
        return ChangedValueError(
            f"The {what} of `{self._path}` was changed in place after it had passed: the model goes on with the same tensor, "
            "or a later line of the block wrote into it. The cache kept the tensor as it was and has no other. Let it keep "
            "copies: `tracer.cache(copy=True)`."
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


def _count(value: Any) -> int:
    """Return how often the tensors of a value have been changed in place, all together: it only ever grows."""
    try:
        if type(value) is torch.Tensor:
            return value._version
        return sum(tensor._version for tensor in leaves(value))
    except RuntimeError:
        return 0  # tensors of inference mode do not count
