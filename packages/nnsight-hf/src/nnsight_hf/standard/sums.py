"""Which values inside a block add up to what it does: they are searched for by their numbers.

A residual stream is a sum: what a block gives is what it takes, plus what its parts add. Whichever values inside add up
to that *are* the contributions, whatever their modules are called and whether norms or multipliers lie between. Rounding
is that of each element: a stream has dimensions that are a thousand times as large as others.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from nnsight_hf.standard.record import Record

#: How many values are added up at most.
MOST = 5


def equal(got: torch.Tensor, want: torch.Tensor) -> bool:
    """Say whether two values are the same to rounding, in direction and in norm."""
    if got.shape != want.shape:
        return False
    exact = 1e-4 if want.dtype is torch.float32 else 2e-2
    got, want = got.float(), want.float()
    return bool((got - want).norm() <= exact * want.norm().clamp(min=1e-6))


def ratio(value: torch.Tensor, of: torch.Tensor) -> float | None:
    """Return by what `value` must be multiplied to be `of`, or None if there is no such number."""
    if value.shape != of.shape:
        return None
    x, y = value.double().flatten(), of.double().flatten()
    factor = float(x @ y / (x @ x).clamp(min=1e-30))
    return factor if factor > 0 and equal((x * factor).to(of.dtype), of.flatten()) else None


def nearest(scale: float, numbers: Sequence[float], exact: float) -> float:
    """Return the number of a configuration (or its inverse) that a fitted scale is, or the scale itself."""
    for number in (1.0, *numbers):
        for known in (number, 1 / number):
            if abs(known / scale - 1) <= exact:
                return known
    return scale


def numbers_of(config: Any) -> list[float]:
    """Return the numbers that a configuration states: those that a model multiplies with are among them."""
    values = {**config.to_dict(), **config.get_text_config().to_dict()}.values()
    return [float(value) for value in values if type(value) in (int, float) and value]


@dataclass(frozen=True)
class Term:
    """A value that a block adds to the stream: the output of a module, times a number."""

    path: str
    scale: float


class Sum:
    """The search for what one block adds.

    Args:
        seen: a forward.
        block: the path of the block.
        numbers: what scales may be.
    """

    def __init__(self, seen: Record, block: str, numbers: Sequence[float]) -> None:
        self.seen = seen
        self.block = block
        self.numbers = numbers
        start, end = seen.input(block), seen.output(block)
        assert start is not None and end is not None, "it takes and gives hidden states"
        self.exact = 1e-4 if end.dtype is torch.float32 else 2e-2
        self.added = (end.double() - start.double()).flatten()
        self.values = self._values(end)
        rounding = torch.finfo(end.dtype).eps * (start.abs() + end.abs()).double().flatten()
        self.weight = 1 / (rounding + 1e-4 * self.added.norm() / max(1, self.added.numel()) ** 0.5).clamp(min=1e-30)

    def _values(self, end: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the distinct hidden states inside, each from the outermost module that gives them, in their order."""
        inside = [visit for path, visit in self.seen.visits.items() if path.startswith(self.block + ".")]
        found: dict[str, torch.Tensor] = {}
        for visit in sorted(inside, key=lambda visit: (visit.path.count("."), visit.end)):
            value = self.seen.output(visit.path) if self.seen.counts[visit.path] == 1 else None
            if value is not None and value.shape == end.shape:
                flat = value.double().flatten()
                if not any(torch.equal(flat, other) for other in found.values()):
                    found[visit.path] = flat
        return dict(sorted(found.items(), key=lambda item: self.seen.visits[item[0]].end))

    def terms(self, hint: Sequence[str] = (), wanted: Sequence[str] = ()) -> list[Term] | None:
        """Return the fewest values that add up to what the block adds, or None if none do.

        Args:
            hint: paths to try first, such as those of the block before.
            wanted: paths that are to be among them.
        """
        if not all(self._want(path) for path in wanted):
            return None
        if float((self.weight * self.added).square().mean().sqrt()) < 20:
            return None  # rounding is as large as what is added
        if hint and all(path in self.values for path in hint) and set(wanted) <= set(hint):
            found = self._fit(hint)
            if found is not None:
                return found
        for count in range(1, MOST + 1):
            fits = [found for paths in self._choices(count, set(wanted)) if (found := self._fit(paths))]
            if fits:
                return min(fits, key=self._oddity)
        return None

    def _want(self, path: str) -> bool:
        """Let a module stand for its value, which others may give too; say whether there is one."""
        value = self.seen.output(path)
        if value is None or value.numel() != self.added.numel():
            return False
        flat = value.double().flatten()
        kept = {one: other for one, other in self.values.items() if not torch.equal(flat, other)}
        self.values = dict(sorted({**kept, path: flat}.items(), key=lambda item: self.seen.visits[item[0]].end))
        return True

    def _choices(self, count: int, wanted: set[str]) -> Iterator[tuple[str, ...]]:
        for paths in itertools.islice(itertools.combinations(self.values, count), 3000):
            if wanted <= set(paths) and not any(
                a.startswith(b + ".") or b.startswith(a + ".") for a, b in itertools.combinations(paths, 2)
            ):
                yield paths

    def _oddity(self, terms: Sequence[Term]) -> tuple[int, int]:
        return sum(term.scale != 1 for term in terms), sum(term.path.count(".") for term in terms)

    def _fit(self, paths: Sequence[str]) -> list[Term] | None:
        matrix = torch.stack([self.values[path] * self.weight for path in paths], 1)
        wanted = self.added * self.weight
        gram = matrix.T @ matrix
        if torch.linalg.cond(gram) > 1e12:
            return None
        scales = torch.linalg.solve(gram, matrix.T @ wanted)
        if (scales < 1e-3).any() or not self._fits(matrix @ scales, wanted):
            return None
        exact = [nearest(float(scale), self.numbers, self.exact) for scale in scales]
        if not self._fits(matrix @ torch.tensor(exact, dtype=torch.double, device=matrix.device), wanted):
            exact = scales.tolist()
        return [Term(path, scale) for path, scale in zip(paths, exact)]

    @staticmethod
    def _fits(made: torch.Tensor, wanted: torch.Tensor) -> bool:
        return bool((made - wanted).square().mean().sqrt() <= 2)
