"""Edits: bodies that are stored on a model and replayed in each of its runs.

An edit runs before the bodies of a trace, sees the whole batch, and is replayed in every step of a generation unless it
walks the steps itself. `model.edit()` gives a new reference to the model with one more edit; the module is shared.
"""

from __future__ import annotations

import copy
import itertools
import sys
from typing import TYPE_CHECKING, Any

from .blocks import Body, capture, skip, skipped

if TYPE_CHECKING:
    from .interleaver import Interleaver
    from .mediator import BodyMediator
    from .tree import Node

_numbers = itertools.count(1)


class Edit:
    """One stored body.

    Attributes:
        name: how it is called in listings and messages.
        source: its text.
        every_step: whether it is replayed in each step of a generation, or in the first one only.
    """

    def __init__(self, body: Body, edited: Node, name: str | None, every_step: bool = True) -> None:
        self.body = body
        self.every_step = every_step
        self.edited = edited
        self.name = name or f"edit {next(_numbers)} (line {body.lineno})"
        self.source = body.source

    def begin_in(self, run: Interleaver, order: int) -> BodyMediator:
        """Make the mediator that replays this edit in a run."""

        def replay() -> None:
            names = self.body.names()
            self.body.assign(names, self.edited)
            self.body.run(names)

        mediator = run.add_body(replay, None, self.name, order)
        mediator.tree = self.edited._root._rig()
        mediator.step = run.step
        if self.every_step:
            mediator.again = lambda run: self._replay(run, order)
        return mediator

    def _replay(self, run: Interleaver, order: int) -> None:
        mediator = self.begin_in(run, order)
        mediator.again = None
        mediator.begin()

    def __deepcopy__(self, memo: dict[int, Any]) -> Edit:
        # A copy of a model is edited as the model was. What the block captured is shared, but for the model itself.
        mine = {
            name: copy.deepcopy(value, memo) if hasattr(value, "_place") else value
            for name, value in self.body.outer.items()
        }
        body = Body(self.body.block, mine, self.body.real)
        return Edit(body, copy.deepcopy(self.edited, memo), self.name, self.every_step)

    def __repr__(self) -> str:
        return f"<{self.name}: {self.body.filename}:{self.body.lineno}>"


class Edits(list[Edit]):
    """The edits of a model, in the order in which they are replayed."""

    def begin_in(self, run: Interleaver) -> None:
        """Give each edit its mediator in a run, before all other bodies."""
        for order, edit in enumerate(self, start=-len(self)):
            edit.begin_in(run, order)

    def find(self, edit: Edit | str) -> Edit:
        """Return an edit by its name or itself, or raise KeyError."""
        for mine in self:
            if mine is edit or mine.name == edit:
                return mine
        raise KeyError(f"this model has no edit {edit!r}; it has {', '.join(mine.name for mine in self) or 'none'}")


class EditContext:
    """What `model.edit()` returns: the block under it becomes an edit."""

    def __init__(self, node: Node, inplace: bool, name: str | None) -> None:
        self._node = node
        self._inplace = inplace
        self._name = name

    def __enter__(self) -> Any:
        frame = sys._getframe(1)
        self._body = capture(frame)
        self._frame = frame
        skip(frame)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> bool:
        frame, body = self._frame, self._body
        del self._frame
        if not skipped(error):
            return False
        root = self._node._root
        edited: Node = self._node
        if not self._inplace:
            root = root._derive()
            edited = root._walk(self._node._relative()) if self._node._parent is not None else root
        root.__dict__["_edits"].append(Edit(body, edited, self._name))
        body.bind(frame, edited)
        return True
