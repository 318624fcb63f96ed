"""The ranks of a model that is spread over several processes, kept in step: each says what it does next, and all compare.

Values are put together from all ranks, so every rank must ask for the same. One that does not would leave the others
waiting for ever in a collective. So before the model goes on, each rank writes into a store that all share what its block
waits for, and reads what the others wrote: where they differ, every rank raises. A rank that raised something of its own
writes that, waits for nobody, and the others read it. What is compared and when is `sharded.py`.
"""

from __future__ import annotations

import atexit
import json
import math
import time
import weakref
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch

from .errors import RanksError

T = TypeVar("T")

#: How long a rank waits for the others, in seconds. One whose process has ended is not waited for.
PATIENCE = 600.0

#: What tells values apart: their shape, their sum and the sum of their magnitudes.
Print = tuple[list[int], float, float]


class Lockstep:
    """Where the ranks of one model meet.

    Args:
        store: a store that all of them share (`torch.distributed.Store`).
        rank: this process's number among them.
        size: how many they are.
        name: what keeps their entries apart from those of others, the same on every rank.
        patience: how long to wait for the others, in seconds.
    """

    def __init__(self, store: Any, rank: int, size: int, name: str, patience: float = PATIENCE) -> None:
        self.rank = rank
        self.size = size
        self.patience = patience
        self._store = store
        self._name = name
        #: Which run this is, and which meeting in it; after ranks have parted, the next run finds them in step again.
        self._run = 0
        self._count = 0
        self._written: list[str] = []
        atexit.register(_leave, weakref.ref(self))

    def begin(self) -> None:
        """Begin another run: what follows is compared with what the others do in theirs."""
        self._run += 1
        self._count = 0

    def meet(self, doing: str, where: str = "", values: Sequence[Print] = ()) -> None:
        """Say what this rank does, wait for what the others do, and compare.

        Args:
            doing: what it does, as a sentence about "rank 0" goes on.
            where: the line of the user's code, which need not be the same.
            values: what must have the same numbers on all ranks, but for rounding.

        Raises:
            RanksError: they differ, or somebody did not come.
        """
        self._write(doing, where, values)
        try:
            notes = [json.loads(text) for text in self._read()]
        finally:
            self._forget()
        told = [note["doing"] for note in notes]
        if len(set(told)) > 1:
            raise RanksError(_differ(notes))
        odd = [rank for rank, note in enumerate(notes) if not _agree(notes[0]["values"], note["values"])]
        if odd:
            raise RanksError(_differ_in_values(notes, odd[0]))

    def together(self, doing: str, what: Callable[[], T]) -> T:
        """Do something that all ranks do, when all have come to do it; see `meet`."""
        self.meet(doing)
        return what()

    def part(self, doing: str, where: str = "") -> None:
        """Say what this rank does, and wait for nobody: it leaves the run."""
        self._write(doing, where, ())
        self._count += 1

    def _key(self, rank: int) -> str:
        return f"{self._name}/{self._run}/{self._count}/{rank}"

    def _write(self, doing: str, where: str, values: Sequence[Print]) -> None:
        self._store.set(self._key(self.rank), json.dumps({"doing": doing, "where": where, "values": values}))

    def _read(self) -> list[bytes]:
        until = time.monotonic() + self.patience
        for rank in range(self.size):
            if rank != self.rank:
                self._wait_for(rank, until)
        return [self._store.get(self._key(rank)) for rank in range(self.size)]

    def _wait_for(self, rank: int, until: float) -> None:
        # Asked again and again, and not by the store's own wait: that one would not hear of a process that has ended.
        key, gone = self._key(rank), f"{self._name}/gone/{rank}"
        pause = 0.0
        while not self._store.check([key]):
            time.sleep(pause)
            pause = min(pause + 1e-5, 0.01)
            ended = pause > 0.001 and self._store.check([gone]) and not self._store.check([key])
            if ended or time.monotonic() > until:
                raise RanksError(_absent(rank, self.rank, json.loads(self._store.get(self._key(self.rank))), ended))

    def _forget(self) -> None:
        # Whoever has come here has read what was written before.
        for key in self._written:
            self._store.delete_key(key)
        self._written = [self._key(self.rank)]
        self._count += 1


def _leave(reference: weakref.ref[Lockstep]) -> None:
    lockstep = reference()
    if lockstep is not None:
        try:
            lockstep._store.set(f"{lockstep._name}/gone/{lockstep.rank}", "")
        except RuntimeError:
            pass  # whoever kept the store is gone too, and everybody sees that


def fingerprint(tensor: torch.Tensor) -> Print:
    """Return what tells a tensor from others by its numbers, cheap and the same for equal ones."""
    shape, numbers = outline(tensor)
    total, magnitude = numbers.tolist()
    return shape, total, magnitude


def outline(tensor: torch.Tensor) -> tuple[list[int], torch.Tensor]:
    """Return what a fingerprint is made of, as numbers that need not have been computed yet."""
    shape = list(tensor.shape)
    if tensor.is_meta or not tensor.numel():
        return shape, torch.zeros(2, dtype=torch.float64)
    flat = tensor.detach().reshape(-1)
    flat = torch.view_as_real(flat).reshape(-1) if flat.is_complex() else flat
    total = magnitude = torch.zeros((), dtype=torch.float64, device=flat.device)
    for piece in torch.split(flat, 1 << 20):  # a parameter need not be there twice in this precision
        numbers = piece.to(torch.float64)
        # Weighed by place, so that the same numbers in another order are something else.
        total = total + torch.dot(numbers, torch.linspace(1, 2, len(numbers), dtype=torch.float64, device=flat.device))
        magnitude = magnitude + numbers.abs().sum()
    return shape, torch.stack((total, magnitude))


def same(one: Print, other: Print, tolerance: float = 1e-4) -> bool:
    """Say whether two fingerprints are of equal tensors, but for rounding."""
    if list(one[0]) != list(other[0]):
        return False
    room = tolerance * max(abs(one[2]), abs(other[2])) if math.isfinite(one[2]) else 0.0
    return all(a == b or abs(a - b) <= room or (math.isnan(a) and math.isnan(b)) for a, b in zip(one[1:], other[1:]))


def _agree(one: Sequence[Print], other: Sequence[Print]) -> bool:
    return len(one) == len(other) and all(same(a, b) for a, b in zip(one, other))


def _told(rank: int, note: dict[str, Any]) -> str:
    return f"rank {rank} {note['doing']}" + (f" ({note['where']})" if note["where"] else "")


def _differ(notes: list[dict[str, Any]]) -> str:
    said: dict[str, int] = {}
    for rank, note in enumerate(notes):
        said.setdefault(note["doing"], rank)
    told = "; ".join(_told(rank, notes[rank]) for rank in said.values())
    if any(doing.startswith("raised ") for doing in said):
        return f"The ranks have parted: {told}. The run is given up on every rank."
    return (
        f"The ranks do not do the same: {told}. Values are put together from all ranks, so every rank must run the same "
        "block. Ask for the value on each of them, and choose afterwards: `value = ...output`, then `if rank == 0: "
        "print(value)`."
    )


def _differ_in_values(notes: list[dict[str, Any]], odd: int) -> str:
    shapes = [[tuple(shape) for shape, *_ in notes[rank]["values"]] for rank in (0, odd)]
    what = f"values of shapes {shapes[0]} and {shapes[1]}" if shapes[0] != shapes[1] else "different numbers"
    where = f" ({notes[0]['where']})" if notes[0]["where"] else ""
    return (
        f"The ranks do not do the same: rank 0 {notes[0]['doing']}{where}, and so does rank {odd}, but they gave the model "
        f"{what}: inputs, and what a block assigns or edits, must be "
        "equal on every rank. Random numbers are if each rank calls `torch.manual_seed` with the same seed."
    )


def _absent(rank: int, mine: int, note: dict[str, Any], gone: bool) -> str:
    why = "its process has ended" if gone else "it did not come in time"
    return (
        f"R{_told(mine, note)[1:]} and waits for rank {rank} to do the same, but {why}. Every rank must open the same "
        "traces, read the same parameters and call the same modules, in the same order."
    )
