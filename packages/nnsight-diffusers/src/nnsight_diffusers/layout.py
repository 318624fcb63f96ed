"""How the rows of several invokes lie in the values of a pipeline's run.

Each module of the pipeline states it anew whenever it is called, since the same module may be called with other rows: a
text encoder with one for each prompt, a denoiser with one for each image and part. Between the modules lie the values of
the scheduler and the result, in which each row has as many entries as images are made of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import numpy
import torch

from nnsight import RowsError
from nnsight.plugin import PlainLayout, Rows, put_together
from nnsight_diffusers.batch import Batch
from nnsight_diffusers.shapes import Facts


@dataclass(frozen=True)
class Statement:
    """How rows lie while a module runs.

    Attributes:
        size: how many rows the module was called with.
        each: how many of them belong to a row of an invoke, side by side; 0 where it cannot be told.
        facts: how they lie in the values below; empty where that was not found out.
    """

    size: int
    each: int
    facts: Facts


class PipelineLayout(PlainLayout):
    """Rows as the modules of the pipeline state them.

    Args:
        batch: the invokes of the run.
        path: the path of the model.
    """

    def __init__(self, batch: Batch, path: str) -> None:
        super().__init__(batch.total, (batch.images,))
        self._batch = batch
        self._path = path
        self._stated: dict[str, Statement] = {}

    def state(self, path: str, statement: Statement) -> None:
        """Hear how rows lie from now on in the values of a module and all below it."""
        self._stated[path] = statement

    def whole(self, value: Any, rows: Rows, path: str) -> Any:
        """Return an invoke's part of what the pipeline returns, whose images may be a list; None for anything else."""
        if path not in ("result", self._path) or isinstance(value, torch.Tensor):
            return None
        return _part(value, self._batch.made, slice(*(at * self._batch.images for at in (rows[0], sum(rows)))))

    def take(self, value: torch.Tensor, rows: Rows, path: str) -> torch.Tensor | None:
        """Return the rows as a view, or None for a value without rows.

        Raises:
            RowsError: the pipeline calls this module with some rows at a time, and nothing says whose.
        """
        found = self._where(value, path)
        if found is None:
            return None
        dim, each = found
        return value.narrow(dim, rows[0] * each, rows[1] * each)

    def join(self, value: torch.Tensor, pieces: Mapping[Rows, torch.Tensor], path: str) -> torch.Tensor:
        """Concatenate the pieces with the rows between them: one copy of the batch, however many pieces."""
        found = self._where(value, path)
        assert found is not None, "only values that carry rows have pieces"
        dim, each = found
        return put_together(
            value, (((start * each, count * each), piece) for (start, count), piece in pieces.items()), dim
        )

    def _where(self, value: torch.Tensor, path: str) -> tuple[int, int] | None:
        """Return along which dimension rows lie, and how many entries each row of an invoke has there."""
        if not value.dim() or isinstance(value, torch.nn.Parameter):
            return None
        statement = self._statement(path)
        if statement is None:
            each = self._multiple(value)
            return None if each is None else (0, each)
        if not statement.each:
            raise RowsError(
                f"`{path}`: the pipeline calls this module with {statement.size} rows, where the invokes have {self.total}, "
                "so whose they are cannot be told. Ask in a prompt-less invoke (`with tracer.invoke():`), or trace each "
                "input alone."
            )
        for pattern in statement.facts.get(path, ()):
            entries = pattern.entries(value.shape, statement.size)
            if entries == 0:
                return None
            if entries is not None and pattern.rows is not None:
                return pattern.rows, statement.each * entries
        # Of a shape that was not met, such as an operation's: rows lie first in it, if there are as many.
        return (0, statement.each) if value.shape[0] == statement.size else None

    def _statement(self, path: str) -> Statement | None:
        at = path
        while at not in self._stated:
            at, dot, _ = at.rpartition(".")
            if not dot:
                return None
        return self._stated[at]


def _part(value: Any, made: int, own: slice) -> Any:
    """Return the images that are an invoke's own, of whatever a pipeline returns them in."""
    if isinstance(value, (torch.Tensor, numpy.ndarray)):
        return value[own] if value.ndim and value.shape[0] == made else value
    if isinstance(value, list):
        return value[own] if len(value) == made else value
    if isinstance(value, tuple):
        return tuple(_part(part, made, own) for part in value)
    if is_dataclass(value) and not isinstance(value, type):
        made_of: Any = type(value)
        return made_of(**{field.name: _part(getattr(value, field.name), made, own) for field in fields(value)})
    return value
