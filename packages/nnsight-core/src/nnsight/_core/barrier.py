"""A barrier: invokes wait for one another, at the site where the last of them arrives."""

from __future__ import annotations

from . import complaints
from .active import active
from .errors import BarrierError, InvokeError
from .mediator import BodyMediator


class Barrier:
    """A meeting point for `parties` invokes, made by `tracer.barrier(n)` and called by each of them.

    Everybody who calls it waits until all have; then all go on while the model still stands where the last one came
    from, so that a value bound before the barrier can be used at the same site after it. It can be used again.

    Raises:
        BarrierError: the run ended before everybody had arrived; the message says who had.
    """

    def __init__(self, parties: int) -> None:
        if not isinstance(parties, int) or parties < 1:
            raise ValueError(f"a barrier is for at least one invoke, not for {parties!r}")
        self.parties = parties
        self._arrived: list[BodyMediator] = []
        self._round = 0

    def __call__(self) -> None:
        stack = active.get()
        mediator = stack[-1] if stack else None
        if not isinstance(mediator, BodyMediator):
            raise InvokeError(
                "A barrier is called inside an invoke: `with tracer.invoke(...): ...; barrier()`. There is nobody to "
                "wait for anywhere else."
            )
        self._arrived.append(mediator)
        if len(self._arrived) == self.parties:
            self._arrived.clear()
            self._round += 1
            return
        now = self._round
        mediator.wait_until(lambda: self._round != now)
        if self._round == now:
            raise BarrierError(complaints.barrier([m.name for m in self._arrived], self.parties))
