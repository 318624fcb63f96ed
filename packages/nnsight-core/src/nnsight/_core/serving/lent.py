"""A value where an engine stands, as the bodies of several requests get it.

One idea: **bodies are lent copies.** An engine uses its memory again, and fused operations write over what they were
given. So a body gets a copy of its rows; what it edited there is carried back before the engine goes on, and what it keeps
is never written over. A copy is a tensor like any other, not one of inference mode, so torch counts its edits.
"""

from __future__ import annotations

from typing import Any

import torch

from ..batching import Layout, Rows
from ..errors import InvokeError, RanksError, RowsError
from ..here import Here, narrow
from ..sites import Place
from ..structures import leaves, tree_map, zip_map
from .joint import Check, Joint, copied, counts, plainly, with_shared
from .together import Several


class Lent(Here):
    """Where an engine stands, with what it lends."""

    __slots__ = ("changed", "edited", "joints", "lent", "refusal", "several", "versions", "whole")

    def __init__(
        self, place: Place, stage: str, value: Any, visit: int, layout: Layout | None, several: bool = False
    ) -> None:
        super().__init__(place, stage, value, visit, layout)
        #: For the rows of each request: what the engine has, the copy, and how often that had been edited when it was made.
        self.lent: dict[Rows, list[tuple[torch.Tensor, torch.Tensor, int]]] = {}
        #: A copy of all rows, of which each request gets its own, once several may ask; if each gets a copy for itself, None.
        self.whole: Any = None
        #: How often that had been edited when it was made.
        self.versions: list[int] = []
        self.several = several
        #: The rows of those whose edits were carried back into what the engine has.
        self.edited: set[Rows] = set()
        #: Whether anything that the engine has was to be changed.
        self.changed = False
        #: Why nobody can be shown what lies here.
        self.refusal = ""
        #: What is lent to several requests that one body is at work for.
        self.joints: dict[Several, Joint] = {}
        self.roughen()

    def _lend_whole(self) -> None:
        self.several = False
        if self._is_small():
            self.whole = copied(self.value)
            self.versions = [one._version for one in leaves(self.whole)]

    def _is_small(self) -> bool:
        # Of large values a request is not to keep the rows of others in memory; what has no rows is everybody's own.
        layout, path = self._stated(), self.place.path
        layout.look(self.value, path)
        tensors = leaves(self.value)
        size = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        return size <= _SMALL and all(layout.take(tensor, (0, 1), path) is not None for tensor in tensors)

    def read(self, rows: Any) -> Any:
        """Return a copy of the rows of one request, the same at each reading; or of several, see `joint.py`."""
        if self.refusal:
            raise RanksError(self.refusal)
        if isinstance(rows, Several):
            return self._joint(rows).value
        if rows is None:
            raise self._refuse_all()
        if self.backs:
            self._carry()
        if rows in self.pieces:
            return self.pieces[rows]
        if rows not in self.views:
            if self.several:
                self._lend_whole()
            if self.whole is not None:
                mine = self.views[rows] = narrow(self.whole, rows, self._stated(), self.place.path)
                return mine
            lent = self.lent[rows] = []

            def lend(theirs: torch.Tensor) -> torch.Tensor:
                mine = theirs.clone()
                lent.append((theirs, mine, mine._version))
                return mine

            theirs = narrow(self.value, rows, self._stated(), self.place.path)
            self.views[rows] = plainly(tree_map, lend, theirs)
        return self.views[rows]

    def write(self, rows: Any, value: Any) -> None:
        """Replace the rows of one request, or of several."""
        if self.refusal:
            raise RanksError(self.refusal)
        if isinstance(rows, Several):
            self._joint(rows).write(value, self.write, not self.pieces.keys().isdisjoint(rows.spans))
            return
        if rows is None:
            raise self._refuse_all()
        # What has no rows was lent as a copy, and is put back as it was by who replaces what is beside it.
        known = {id(mine): theirs for theirs, mine, version in self.lent.get(rows, ()) if mine._version == version}
        super().write(rows, with_shared(value, known, self._stated(), self.place.path))

    def carry_back(self, rows: Any, check: Check) -> None:
        """Take what the bodies of one request edited in place, or wrote, into what the engine has.

        Args:
            rows: where those of the request lie.
            check: looks at whole numbers that bodies have changed, before the model gets them.

        Raises:
            RowsError: they edited what has no rows, and so belongs to all requests, or what they wrote is no such value.
        """
        if self.backs:
            self._carry()
        if isinstance(rows, Several):
            return self._carry_together(rows, check)
        if rows in self.pieces:
            self.changed = True
            try:
                self._fit(rows, check)
            except BaseException:
                del self.pieces[rows]
                self.spans.remove(rows)
                raise
            return
        layout, path = self._stated(), self.place.path
        if self.whole is not None and rows in self.views and self._is_whole_edited():
            self.changed = True
            pairs = list(zip(leaves(narrow(self.value, rows, layout, path)), leaves(self.views[rows])))
            try:
                for theirs, mine in pairs:
                    self._check_edited(theirs, mine, check)
            except BaseException:
                for (theirs, _), mine in zip(pairs, leaves(narrow(self.whole, rows, layout, path))):
                    mine.copy_(theirs)
                raise
        for at, (theirs, mine, version) in enumerate(self.lent.get(rows, ())):
            if mine._version == version:
                continue
            self.changed = True
            if not _has_rows(self.value, at, layout, rows, path):
                raise self._refuse_shared("edit it in place")
            self._check_edited(theirs, mine, check)
            theirs.copy_(mine)
            self.edited.add(rows)
            self.lent[rows][at] = theirs, mine, mine._version

    def _check_edited(self, theirs: torch.Tensor, mine: torch.Tensor, check: Check) -> None:
        if theirs.shape != mine.shape:
            raise RowsError(
                f"{self._site()} has shape {tuple(theirs.shape)} in this invoke, and was given the shape "
                f"{tuple(mine.shape)} in place. A value keeps its shape, here as when it is assigned."
            )
        if counts(theirs):
            check(self.place, theirs, mine)

    def _fit(self, rows: Rows, check: Check) -> None:
        """Make what was written as the engine has it; it may have been edited since."""
        layout, path = self._stated(), self.place.path
        self._check(rows, self.pieces[rows])

        def fit(old: Any, new: Any) -> Any:
            mine = layout.take(old, rows, path) if isinstance(old, torch.Tensor) else None
            if mine is None:
                return new
            if counts(mine):
                check(self.place, mine, new)
            return new.to(device=mine.device, dtype=mine.dtype)

        self.pieces[rows] = zip_map(fit, self.value, self.pieces[rows])

    def _check(self, rows: Rows, value: Any) -> None:
        super()._check(rows, value)
        zip_map(self._check_kind, self.value, value)

    def _check_kind(self, old: Any, new: Any) -> Any:
        if isinstance(old, torch.Tensor) and isinstance(new, torch.Tensor):
            if new.is_meta and not old.is_meta:
                raise RowsError(f"a tensor without numbers (on the meta device) was written to {self._site()}")
            if new.layout is not old.layout:
                raise RowsError(f"{self._site()} holds a {old.layout} tensor, and a {new.layout} one was written to it")
            if new.is_complex() and not old.is_complex():
                raise RowsError(f"{self._site()} holds real numbers, and complex ones were written to it")
        return new

    def join(self) -> None:
        """Make `value` what the requests have made of it."""
        if self.whole is not None:
            self._carry_whole()
        for joint in self.joints.values():
            if joint.replaced:
                self.value = joint.put_into(self.value)
        if self.pieces:
            self.value = self._joined()
            self._clear_pieces()

    def _is_whole_edited(self) -> bool:
        return any(one._version != before for one, before in zip(leaves(self.whole), self.versions))

    def _carry_whole(self) -> None:
        layout, path = self._stated(), self.place.path
        for theirs, mine, before in zip(leaves(self.value), leaves(self.whole), self.versions):
            if mine._version == before:
                continue
            if not self.joints:
                theirs.copy_(mine)  # where nobody edited, these are the numbers that are there
            else:
                for rows in self.views:
                    there, here = layout.take(theirs, rows, path), layout.take(mine, rows, path)
                    assert there is not None and here is not None, "what is lent as a whole has rows"
                    there.copy_(here)

    def _carry_together(self, rows: Several, check: Check) -> None:
        joint, written = self.joints.get(rows), False
        for run, span in zip(rows.runs, rows.spans):
            if span in self.pieces:
                written = True
                try:
                    self.carry_back(span, check)
                except Exception as error:
                    rows.group.drop(run, error)
        if joint is not None and not written:
            done = joint.carry_back(self.place, check)
            self.changed |= joint.changed
            if not done:
                raise self._refuse_shared("edit it in place")

    def _joint(self, rows: Several) -> Joint:
        joint = self.joints.get(rows)
        if joint is None:
            joint = self.joints[rows] = Joint(rows, self.value, self._stated(), self.place.path)
        return joint

    def _refuse_all(self) -> InvokeError:
        return InvokeError(
            f"{self._site()} was asked for by an invoke without an input. An engine serves each input as a request of its "
            "own, beside those of others, so there is no whole batch: ask in the invoke of each input."
        )


#: How many bytes a value may have for the rows of several requests to be copied together: there the call costs more.
_SMALL = 1 << 17


def _has_rows(value: Any, at: int, layout: Layout, rows: Rows, path: str) -> bool:
    return layout.take(leaves(value)[at], rows, path) is not None
