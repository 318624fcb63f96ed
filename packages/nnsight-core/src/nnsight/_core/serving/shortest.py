"""The shortest way through forwards that are alike, in each of which one body reads a part of one value and edits nothing.

One idea: that is the usual case of one request that is looked into among many that are not, and all that is left to be done
is to copy some rows and to run a line of the user's. What `Steady`, `Loan`, `ServedMediator` and `Rounds` do about it stands
here in one function, since each call on the way of a step costs a microsecond there (what it touches has left the
processor's cache since the last one). Whatever is not as it was goes their way.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from ..sites import Place

if TYPE_CHECKING:
    from .forwards import Forwards
    from .loan import Loan
    from .mediator import ServedMediator
    from .steady import Steady

Leave = Callable[[Place, Any, int], Any]


def shortest(forwards: Forwards, steady: Steady, place: Place, mediator: ServedMediator, loan: Loan) -> Leave | None:
    """Return what may stand for `steady.leave` from the next of these forwards on; None if it is not so simple.

    Args:
        forwards: the engine's.
        steady: these forwards.
        place: where something is asked for in each.
        mediator, loan: the one body that takes part, and what it is lent, which it has been once already.
    """
    rounds, part, length = mediator.rounds, loan.only_part(), loan.length
    if rounds is None or rounds.round is None or rounds.ready is None or part is None:
        return None
    done = rounds.round
    if not done.reads_only or not done.is_brief or done.saves:
        return None
    known, function, names = rounds.ready
    at, shape, dtype, cut, spare = part
    counter, binds, bind = done.counter, done.binds, dict.__setitem__
    plain, usual, finish, waiting = torch.Tensor, steady.leave, steady.finish, forwards.at_output

    def leave(left: Place, value: Any, visit: int) -> Any:
        if left is not place or not spare:
            return usual(left, value, visit)
        if length is None:
            rows = value
        elif type(value) is tuple and len(value) == length:
            rows = value[at]
        else:
            return usual(left, value, visit)
        if type(rows) is not plain or rows.shape != shape or rows.dtype is not dtype:
            return usual(left, value, visit)
        given: Any = spare.pop().copy_(rows if cut is None else rows[cut])
        if length is not None:
            parts = list(value)
            parts[at] = given
            given = tuple(parts)
        step = mediator.step
        assert step is not None
        known[counter] = step
        try:
            function(given)
        except BaseException as error:
            mediator.raised = error
        for name in binds:
            if name in known:
                bind(names, name, known[name])
        mediator.step = mediator.rounds_done = step + 1
        steady.met = 1
        del waiting[place]
        if mediator.raised is not None:
            steady.let_raise(mediator)
        if steady.changes == forwards.changes:
            finish()
        return value

    return leave
