"""The rounds of a loop over steps, done where the model stands.

One idea: where the text of a loop (`plan.py`) tells that each of its rounds asks for one value and for nothing else, a round
needs no turn. It is what the body does with that value, and it is done on the model's side, while the body itself goes on
waiting in its loop. Of the rounds that were done for it a body hears when it has its next turn: at the end of the loop, or
before a round that is not like the others.
"""

from __future__ import annotations

from types import FunctionType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..blocks import Body, Names
    from .plan import First, Plan, Round

#: The name of what is given to the code of a round: one that no body has.
VALUE = ".value"


class Rounds:
    """The rounds of one body's loop over steps.

    Args:
        plan: of its block.
        body: the body.
        names: what it has bound.
    """

    __slots__ = (
        "_body",
        "_function",
        "_known",
        "_names",
        "_round",
        "_used",
        "are_one_value",
        "edits_only",
        "first",
        "is_brief",
        "is_plain",
        "parts",
        "saves",
    )

    def __init__(self, plan: Plan, body: Body, names: Names) -> None:
        #: What each asks for first, if that is known.
        self.first: First | None = plan.first
        #: Of a tuple, the parts that it can have in hand; None if that is not known.
        self.parts = plan.parts
        found = plan.round
        #: Whether each asks for one value, and for nothing else, so that it can be done here; for the rest see `Round`.
        self.are_one_value = found is not None
        self.edits_only = found is not None and found.edits_only
        self.is_plain = found is not None and found.is_plain
        self.saves = found is not None and found.saves
        self.is_brief = found is not None and found.is_brief
        self._round, self._used, self._body, self._names = found, plan.used, body, names
        self._known: dict[str, Any] | None = None
        self._function: Any = None

    def do(self, step: int, value: Any) -> None:
        """Do the round of a step.

        Args:
            step: its number.
            value: what the body asks for.
        """
        round_ = self._round
        assert round_ is not None
        known = self._known
        if known is None:
            known = self._look_up(round_)
        known[round_.counter] = step
        try:
            self._function(value)
        finally:
            for name in round_.binds:
                if name in known:
                    # Past what `Names` of some bodies note for their siblings: none of those waits for such a name.
                    dict.__setitem__(self._names, name, known[name])

    def forget(self) -> None:
        """Hear that the body has its turn: what its names stand for may be something else afterwards."""
        self._known = self._function = None

    def _look_up(self, round_: Round) -> dict[str, Any]:
        # Plain dicts, as the globals of a function and its builtins: the interpreter reads those without asking anybody.
        names, around = self._names, self._body._globals(self._names)
        known = self._known = {**around, "__builtins__": {**around["__builtins__"]}, **names}
        for name in self._used:
            if name not in known:
                try:
                    known[name] = names[name]
                except KeyError:  # raised where it is used, then, and only then
                    continue
        self._function = FunctionType(round_.code, known)
        return known
