"""The ranks of an engine, kept in step: all run all bodies, and what these do next is compared before the model goes on.

One idea: what is put together of all ranks' parts, all ranks must ask for. So after bodies had their turns, while the model
stands at the same place everywhere, the ranks tell one another what each of those bodies waits for, in one small message for
all of them. A run that does not do the same on every rank (a body raised, or took too long, on one of them) is over on all
of them, before it could leave the others waiting; all other runs go on. What runs gave the model is compared once a forward,
at its end.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Protocol

import torch

from ..errors import RanksError
from ..lockstep import outline, same
from ..sites import site_name

if TYPE_CHECKING:
    from .mediator import ServedMediator
    from .request import ServedRun

_FAILED = "raised "


class Peers(Protocol):
    """How an engine's ranks talk to one another."""

    rank: int

    def compare(self, message: str) -> list[str] | None:
        """Tell the others a message; return what all told, by rank, or None if that is the same. Every rank calls it."""


class Agreement:
    """Which runs do the same on all ranks.

    Args:
        peers: how ranks talk to one another.
    """

    def __init__(self, peers: Peers) -> None:
        self.peers = peers
        #: The number of each run: the same on all ranks, since all of them hear of requests in one order.
        self._numbers: dict[ServedRun, int] = {}
        self._count = 0
        #: The runs whose bodies had turns since ranks were compared last.
        self.due: dict[ServedRun, None] = {}
        #: What runs gave the model in the forward that is on: shapes, and numbers that may still have to be computed.
        self._given: dict[ServedRun, list[tuple[list[int], torch.Tensor]]] = {}

    def admit(self, run: ServedRun) -> None:
        """Hear of a run, in the order in which all ranks do."""
        self._numbers[run] = self._count
        self._count += 1

    def seed(self, run: ServedRun, order: int) -> int:
        """Return a number for one body of a run, the same on all ranks."""
        return (self._numbers.get(run, 0) << 16) + order

    def forget(self, run: ServedRun) -> None:
        """Hear that a run is over."""
        self._numbers.pop(run, None)
        self._given.pop(run, None)

    def gave(self, run: ServedRun, tensors: Iterable[torch.Tensor]) -> None:
        """Hear what a run gave the model where it stands."""
        given = [outline(tensor) for tensor in tensors]
        if given:
            self._given.setdefault(run, []).extend(given)

    def reach(self) -> None:
        """Compare what runs do next, and end those that do not do the same on all ranks."""
        if self.due:
            due, self.due = self.due, {}
            self._compare({run: _next(run) for run in due}, lambda one, other: bool(one == other), _parted)

    def reach_values(self) -> None:
        """Compare what runs gave the model, and end those that gave different numbers on different ranks."""
        if self._given:
            given, self._given = self._given, {}
            numbers = iter(torch.stack([pair for pairs in given.values() for _, pair in pairs]).tolist())
            prints = {run: [[shape, *next(numbers)] for shape, _ in pairs] for run, pairs in given.items()}
            self._compare(prints, _alike, _differed)

    def _compare(
        self, mine: Mapping[ServedRun, Any], equal: Callable[[Any, Any], bool], why: Callable[[list[Any], int], str]
    ) -> None:
        told = self.peers.compare(json.dumps({str(self._numbers[run]): said for run, said in mine.items()}))
        if told is None:
            return
        by_rank = [json.loads(text) for text in told]
        for run, number in list(self._numbers.items()):
            said = [one.get(str(number)) for one in by_rank]
            over = all(isinstance(one, str) and one.startswith(_FAILED) for one in said)  # of itself, on every rank
            if not over and not all(equal(said[0], other) for other in said[1:]):
                run.fail(RanksError(why(said, self.peers.rank)))


def _next(run: ServedRun) -> str:
    """Say what the bodies of a run do next, in words that do not differ between ranks unless that does."""
    if run.failure is not None:
        text = f"{type(run.failure).__name__}: {run.failure}"
        return _FAILED + (text if len(text) < 300 else text[:300] + "...")
    if run.stopped:
        return "stops"
    here = run.here
    skips = ["skips the module"] if run.scheduled and here is not None and run.rows in (here.skipped or ()) else []
    waits = [_waits(body) for body in run.bodies if not body.done]
    return "; ".join(skips + waits) if skips or waits else "has come to its end"


def _waits(mediator: Any) -> str:
    served: ServedMediator = mediator
    if served.asked is not None:
        return served.asked.doing
    if served in served.run.step_waiters:
        return f"waits for step {served.step}"
    if served.ready is not None:
        return "waits for another invoke"
    if served.place is None:
        return "waits"
    step = f" of step {served.step}" if served.step is not None else ""
    return f"waits for {site_name(served.place.path, served.stage)}{step}"


def _alike(one: Any, other: Any) -> bool:
    return (
        one is not None
        and other is not None
        and len(one) == len(other)
        and all(same(tuple(a), tuple(b)) for a, b in zip(one, other))
    )


def _parted(said: list[Any], rank: int) -> str:
    first: dict[str, int] = {}
    for number, one in enumerate(said):
        first.setdefault(one or "has not come so far", number)
    told = "; ".join(f"on rank {number} it {one}" for one, number in first.items())
    return (
        f"The body does not do the same on all ranks of the engine: {told}. It is given up on all of them. Values are put "
        "together from the parts of all ranks, so a body must ask for the same values on each, in the same order: it "
        "cannot depend on what differs between processes (the rank, the time, numbers drawn from the system)."
    )


def _differed(said: list[Any], rank: int) -> str:
    return (
        "The body gave the model different numbers on the ranks of the engine, which would then compute different things: "
        "it is given up. What a body assigns or edits cannot depend on what differs between processes (the rank, the "
        "time, numbers that `random` or numpy draw). Draw random numbers with torch: they are the same on all ranks."
    )
