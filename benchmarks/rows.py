"""The rows of the table: what is timed on which model, and what must be reached."""

from __future__ import annotations

import math
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Timed:
    """The times of one row.

    Attributes:
        bare: the plain forward, in microseconds.
        overheads: what each contender adds to it.
        errors: how far each overhead may be off: the standard error of the median.
    """

    bare: float
    overheads: dict[str, float]
    errors: dict[str, float]

    def ratio(self, over: str) -> tuple[float, float, float] | None:
        """Return our overhead as a multiple of another's, and the least and most that it may be by its errors."""
        if over not in self.overheads or "ours" not in self.overheads:
            return None
        ours, theirs = self.overheads["ours"], self.overheads[over]
        off, most = self.errors["ours"], theirs + self.errors[over]
        least = theirs - self.errors[over]
        if least <= 0 or most <= 0:
            return (math.nan, 0.0, math.inf)
        return ours / theirs, max(ours - off, 0.0) / most, max(ours + off, 0.0) / least

    def whole(self, over: str) -> tuple[float, float, float] | None:
        """Return our whole time as a multiple of another's, and the least and most that it may be by its errors."""
        if over not in self.overheads or "ours" not in self.overheads:
            return None
        ours, theirs = self.bare + self.overheads["ours"], self.bare + self.overheads[over]
        off = math.hypot(self.errors["ours"] / ours, self.errors[over] / theirs)
        return ours / theirs, ours / theirs * (1 - off), ours / theirs * (1 + off)


@dataclass(frozen=True)
class Target:
    """A bound on a figure that is computed from a row's times.

    Args:
        text: how the table spells it.
        over: the contender to compare with; "bare" stands for the plain forward, "" for nothing.
        at_most: the bound on the ratio of our overhead to theirs; with "bare" on the ratio of the whole times; with ""
            on our overhead in microseconds.
        whole: bound the ratio of the whole times, with any contender.
    """

    text: str
    over: str
    at_most: float
    whole: bool = False

    def figure(self, timed: Timed) -> tuple[float, float, float] | None:
        """Return the figure that is bounded, and the least and most that it may be; None if somebody did not run."""
        if self.whole:
            return timed.whole(self.over)
        if self.over and self.over != "bare":
            return timed.ratio(self.over)
        ours, off = timed.overheads["ours"], timed.errors["ours"]
        least, most = ours - off, ours + off
        if not self.over:
            return ours, least, most
        return 1 + ours / timed.bare, 1 + least / timed.bare, 1 + most / timed.bare

    def is_reached(self, timed: Timed) -> bool | None:
        """Say whether the bound is kept; None if the times are too noisy to tell, or somebody did not run."""
        figure = self.figure(timed)
        if figure is None or figure[1] <= self.at_most < figure[2]:
            return None
        return figure[2] <= self.at_most


@dataclass(frozen=True)
class Row:
    """One row: a piece of work on a model.

    Args:
        work: the work, by its name in `cases.py`.
        model: the model, by its name in `models.py`.
        count: how many reads, invokes or steps it has.
        targets: what must be reached.
        fresh: build the model anew in each round: the place of a model in memory shows where nothing else differs.
        slow: a call takes seconds: fewer rounds, and one call of each case in a round.
    """

    work: str
    model: str
    count: int = 0
    targets: list[Target] = field(default_factory=list)
    fresh: bool = False
    slow: bool = False

    @property
    def name(self) -> str:
        """How the table and `--only` call it."""
        return f"{self.work} {self.count}" if self.count else self.work


def _peer(at_most: float) -> Target:
    return Target(f"at most {at_most:g} of the peer", "peer", at_most)


def _hooks(at_most: float) -> Target:
    return Target(f"at most {at_most:g} of raw hooks", "hooks", at_most)


def _within(microseconds: float) -> Target:
    return Target(f"under {microseconds:g} us more", "", microseconds)


def _plain(at_most: float, what: str) -> Target:
    return Target(f"at most {at_most:g} of {what}, whole times", "bare", at_most)


_IDLE = Target("1, within noise (0.03)", "bare", 1.03)
_BELOW_PEER = Target("below 1 of the peer, whole times", "peer", 1.0, whole=True)
_IN_PLACE = Target("at most 1.5 of edits in place", "in place", 1.5)


def _usual(model: str) -> list[Row]:
    return [
        Row("empty trace", model, targets=[_peer(0.1)]),
        Row("read", model, 1, [_peer(0.25)]),
        Row("read", model, 12, [_hooks(1.0), _peer(0.25)]),
        Row("read and replace", model, 12, [_hooks(1.0), _peer(0.25)]),
        Row("cache all", model, targets=[_hooks(1.0), _peer(0.25)]),
        Row("wrapped, idle", model, targets=[_IDLE], fresh=True),
    ]


def _texts(model: str, slow: bool) -> list[Row]:
    generate = [_plain(1.02, "plain `generate`"), _BELOW_PEER]
    return [
        Row("generate, one layer edited", model, 64, generate, slow=slow),
        Row("cache layers, tokens", model, 512, [_plain(1.05, "`output_hidden_states=True`")], slow=slow),
        Row("prompts, one invoke each", model, 32, [_plain(1.05, "a hook on a batch made by hand")], slow=slow),
    ]


ROWS = [
    *_usual("MLP"),
    *[Row("invokes", "MLP", count, [_peer(0.5)]) for count in (1, 8, 32, 128)],
    Row("assigning invokes", "3 identities", 64, [_IN_PLACE]),
    Row("plain backward", "MLP", targets=[_within(2.0)]),
    *_usual("96 identities"),
    Row("read", "96 identities", 96, [_hooks(1.0), _peer(0.25)]),
    *_usual("GPT-2-shaped"),
    Row("generation, steps", "GPT-2-shaped", 8, [_peer(0.25)]),
    *_texts("GPT-2", slow=True),
    *_texts("GPT-2, narrow", slow=False),
    Row("denoise, output read", "Stable Diffusion", 20, [_plain(1.02, "a forward hook"), _BELOW_PEER]),
]
