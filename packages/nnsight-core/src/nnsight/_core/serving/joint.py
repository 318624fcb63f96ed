"""A value where an engine stands, as one body at work for several requests gets it.

One idea: what `lent.py` does for the rows of one request is done once for those of all: one copy is lent, and carried back
where it was edited, or takes the place of what the engine has where the body assigned. Where that is not known to do (other
shapes, something else than rows), each request writes for itself, by the rules that hold for one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from torch.autograd import grad_mode

from ..batching import Layout, Rows
from ..sites import Place
from ..structures import tree_map, zip_map
from .together import Several, Together

T = TypeVar("T")

# relies on: torch.autograd.grad_mode's _enter_inference_mode and _exit_inference_mode, torch 2.4 to 2.13: they are gone
# through at each stop of each step, and the class around them costs more than copying the value.
_outside: Callable[[bool], Any] = grad_mode._enter_inference_mode
_back: Callable[[Any], None] = grad_mode._exit_inference_mode

#: Looks at whole numbers that a body has changed: the place, what the engine has there, what it is to have.
Check = Callable[[Place, torch.Tensor, torch.Tensor], None]


class Joint:
    """What lies at one place for several requests.

    Args:
        rows: theirs.
        value: what the engine has.
        layout, path: how rows lie in it, and where it is.
    """

    def __init__(self, rows: Several, value: Any, layout: Layout, path: str) -> None:
        self.rows = rows
        self.layout = layout
        self.path = path
        #: What the engine has, what was lent of it, and how often that had been edited then.
        self.lent: list[tuple[torch.Tensor, Together, list[int]]] = []
        layout.look(value, path)
        #: What the body gets: what was lent, or what it has put there.
        self.value = self._given = plainly(self._lend_parts, value)
        #: Whether what it has put there takes the place of what the engine has.
        self.replaced = False
        #: Whether anything that the engine has was to be changed.
        self.changed = False

    def _lend_parts(self, value: Any) -> Any:
        parts = self.rows.group.plan.parts
        if parts is None or type(value) is not tuple:
            return tree_map(self._lend, value)
        # The rest of it stays the engine's: the body never has it in hand.
        return tuple([tree_map(self._lend, one) if at in parts else one for at, one in enumerate(value)])

    def _lend(self, tensor: torch.Tensor) -> Together:
        rows, taken = self.rows, self._taken
        whole = self.layout.take(tensor, rows.spans[0] if rows.all is None else rows.all, self.path)
        if whole is None:
            made = Together(rows.group, rows.runs, each=[tensor.clone() for _ in rows.runs])
            self.lent.append((tensor, made, [one._version for one in made.parts()]))
            return made
        if rows.all is not None:
            whole = whole.clone()
        else:
            whole = torch.cat([taken(tensor, span) for span in rows.spans])
        counts = rows.counts
        if whole.size(0) != rows.total:  # several for each row, as the layout knows
            counts = tuple(taken(tensor, span).size(0) for span in rows.spans)
        made = Together(rows.group, rows.runs, whole, counts)
        self.lent.append((tensor, made, [whole._version]))
        return made

    def _taken(self, tensor: torch.Tensor, rows: Rows) -> torch.Tensor:
        found = self.layout.take(tensor, rows, self.path)
        assert found is not None, "only values that carry rows are asked"
        return found

    # -- writing -----------------------------------------------------------------------------------------------------

    def write(self, value: Any, alone: Callable[[Rows, Any], None], beside: bool) -> None:
        """Put a value there.

        Args:
            value: what the body assigned.
            alone: writes the rows of one request.
            beside: whether some request wrote for itself before.
        """
        group = self.rows.group
        if not beside and self._is_like(value):
            self.value, self.replaced = value, True
            return
        self.replaced = False
        failed: list[tuple[Any, Exception]] = []
        known = {
            id(copy): theirs
            for theirs, lent, versions in self.lent
            if lent.whole is None
            for copy, version in zip(lent.parts(), versions)
            if copy._version == version
        }
        for run, span in zip(self.rows.runs, self.rows.spans):
            if run.group is group:
                try:
                    alone(span, with_shared(self._part(value, run), known, self.layout, self.path))
                except Exception as error:
                    failed.append((run, error))
        if failed:
            group.leave_out(failed)
        runs = self.rows.runs
        self.value = tree_map(lambda tensor: Together(group, runs, each=[tensor] * len(runs)), value)

    def _is_like(self, value: Any) -> bool:
        alike: list[bool] = []

        def look(lent: Any, new: Any) -> Any:
            rows = isinstance(lent, Together) and lent.whole is not None
            if rows and isinstance(new, Together) and new.whole is not None and new.runs is self.rows.runs:
                same = new.whole.shape == lent.whole.shape and new.whole.dtype == lent.whole.dtype
                alike.append(same and new.counts == lent.counts and new.whole.device == lent.whole.device)
            else:
                alike.append(new is lent)
            return lent

        try:
            zip_map(look, self._given, value)
        except ValueError:
            return False
        return all(alike)

    def _part(self, value: Any, run: Any) -> Any:
        if isinstance(value, Together):
            return value.of(run)
        try:
            return zip_map(lambda _, new: new.of(run) if isinstance(new, Together) else new, value, value)
        except ValueError:
            return value

    # -- when the engine goes on -------------------------------------------------------------------------------------

    def carry_back(self, place: Place, check: Check) -> bool:
        """Take what was edited in place into what the engine has; say whether that could be done.

        Args:
            place: where that lies.
            check: looks at whole numbers that were changed. Who gave such as cannot be goes on no further.
        """
        for theirs, lent, now, versions in self._pairs():
            if lent.whole is None:
                if [one._version for one in lent.parts()] != versions:
                    return False
            elif now is not lent or [lent.whole._version] != versions:
                self.changed = True
                if counts(theirs):
                    self._look(theirs, now, place, check)
                if now is lent:
                    self._put(theirs, lent.whole, lent.counts)
                    versions[:] = [lent.whole._version]
        return True

    def _pairs(self) -> list[tuple[torch.Tensor, Together, Together, list[int]]]:
        """Return what the engine has, what was lent of it, what stands there now, and what the versions were."""
        current: list[Together] = [lent for _, lent, _ in self.lent]
        if self.replaced:
            current.clear()
            zip_map(
                lambda lent, new: current.append(new) if isinstance(lent, Together) else None, self._given, self.value
            )
        return [(theirs, lent, now, versions) for (theirs, lent, versions), now in zip(self.lent, current)]

    def _look(self, theirs: torch.Tensor, now: Together, place: Place, check: Check) -> None:
        for run, span, part in zip(self.rows.runs, self.rows.spans, now.parts()):
            there = self._taken(theirs, span)
            try:
                check(place, there, part)
            except Exception as error:
                part.copy_(there)
                self.rows.group.drop(run, error)

    def put_into(self, value: Any) -> Any:
        """Return what the engine has, with what the body has put there in its place."""
        pairs = iter(self._pairs())

        def put(theirs: torch.Tensor) -> torch.Tensor:
            _, lent, now, _ = next(pairs)
            if now.whole is None:
                return theirs
            made = theirs.clone()
            self._put(made, now.whole, now.counts)
            return made

        return tree_map(put, value)

    def _put(self, tensor: torch.Tensor, whole: torch.Tensor, counts: tuple[int, ...]) -> None:
        if self.rows.all is not None:
            self._taken(tensor, self.rows.all).copy_(whole)
            return
        for span, part in zip(self.rows.spans, torch.split(whole, list(counts))):
            self._taken(tensor, span).copy_(part)


def with_shared(value: Any, known: Mapping[int, torch.Tensor], layout: Layout, path: str) -> Any:
    """Return a value with copies of what has no rows replaced by what the engine has: `known`, by the ids of the copies."""

    def back(tensor: torch.Tensor) -> torch.Tensor:
        theirs = known.get(id(tensor))
        return tensor if theirs is None or layout.take(theirs, (0, 1), path) is not None else theirs

    return tree_map(back, value) if known else value


def plainly(make: Callable[..., T], *args: Any) -> T:
    """Return what a function makes of tensors, without gradient, so that they are none of inference mode."""
    if not torch.is_inference_mode_enabled():
        with torch.no_grad():
            return make(*args)
    mode = _outside(False)
    try:
        return make(*args)
    finally:
        _back(mode)


def copied(value: Any) -> Any:
    """Return a value with copies of its tensors, none of which is one of inference mode."""
    return plainly(tree_map, torch.Tensor.clone, value)


def counts(tensor: torch.Tensor) -> bool:
    """Say whether a tensor holds whole numbers."""
    return not (tensor.is_floating_point() or tensor.is_complex() or tensor.dtype is torch.bool)
