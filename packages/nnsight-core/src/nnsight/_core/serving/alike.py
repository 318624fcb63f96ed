"""Which bodies of a trace are alike: made of one block, with the same values around them.

One idea: what is alike can be done once for all (`group.py`), as far as the text lets it (`plan.py`). Values are the same if
they are one object, or plain and equal. A block whose names others of the trace wait for, or that may have to wait for
theirs, is left alone.
"""

from __future__ import annotations

import builtins
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..blocks import Block, Body
from ..invoke import Invoke
from ..wire.bodies import bound_first
from .group import Membership
from .plan import Plan, has_loop, plan_of
from .rounds import Rounds

if TYPE_CHECKING:
    from ..active import Answers


class Alike:
    """The bodies of a trace, by what they have in common.

    Args:
        invokes: the trace's, whose bodies they are.
    """

    def __init__(self, invokes: Sequence[Invoke]) -> None:
        self._invokes = invokes
        self._counts: dict[Block, int] = {}
        for invoke in invokes:
            if invoke.body is not None:
                self._counts[invoke.body.block] = self._counts.get(invoke.body.block, 0) + 1
        #: What is done together of each block, and of which bodies: the values that they have in common.
        self._plans: dict[Block, list[tuple[Body, Plan | None]]] = {}

    def membership(self, number: int, stack: tuple[Answers, ...]) -> Membership | None:
        """Return what a body has in common with others; None if nothing, or if it is to be left alone."""
        body = self._invokes[number].body
        if body is None or self._counts[body.block] < 2:
            return None
        plan, like = self._plan_of(body)
        return None if plan is None else Membership(like, plan, self._invokes[number], stack)

    def rounds(self, number: int, tracer: str | None) -> Rounds | None:
        """Return what each round of a body's loop over steps asks for and does, as far as that is known; see `Plan`.

        Args:
            number: of the body.
            tracer: the name by which it binds the trace.
        """
        body, names = self._invokes[number].body, self._invokes[number].names
        if body is None or names is None or not has_loop(body.block):
            return None
        plan, _ = self._plan_of(body, tracer)
        return None if plan is None else Rounds(plan, body, names)

    def _plan_of(self, body: Body, tracer: str | None = None) -> tuple[Plan | None, Body]:
        """Return the plan of a body, and the one that it was made for, with which this one has in common what it needs."""
        known = self._plans.setdefault(body.block, [])
        for like, plan in known:
            if plan is None or _have_in_common(like, body, plan.used):
                return plan, like
        if len(known) >= _MOST:
            return None, body
        known.append((body, plan := self._plan(body, tracer)))
        return plan, body

    def _plan(self, body: Body, tracer: str | None) -> Plan | None:
        others = [block for block in self._counts if block is not body.block]
        if any(not body.block.binds.isdisjoint(block.reads - bound_first(block)) for block in others):
            return None

        def lookup(name: str) -> Any:
            for names in (body.outer, body.real, vars(builtins)):
                if name in names:
                    return names[name]
            raise KeyError(name)

        foreign = frozenset[str]().union(*(block.binds for block in others))
        return plan_of(body.block, lookup, foreign, tracer)


#: How many groups a block is looked at for: where each body has values of its own, that is no use.
_MOST = 8


def _have_in_common(one: Body, other: Body, names: frozenset[str]) -> bool:
    """Say whether names stand for the same around two bodies of one block."""
    if one.real is not other.real:
        return False
    mine, theirs = one.outer, other.outer
    # Most are of a loop, and travelled as one.
    return mine is theirs or all(
        (name in mine) == (name in theirs) and _token(mine.get(name)) == _token(theirs.get(name)) for name in names
    )


def _token(value: Any) -> object:
    """Return what tells a value from others."""
    kind = type(value)
    if kind in (bool, int, str, bytes, type(None)):
        return kind, value
    return (kind, repr(value)) if kind is float else id(value)
