"""The identities by which names are found and checked: sums of hidden states, compared with their norms.

A residual stream is a sum: what a block gives is what it takes, plus what its attention adds, plus what its feed-forward
part adds. Whichever values inside a block add up to that *are* the contributions, whatever their modules are called and
whether norms or multipliers lie between; so they are searched for by their numbers.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from nnsight_hf.standard.record import Record

#: How modules that mix positions are called, and those that work on each position by itself.
ATTENTION = re.compile(r"att|rel_attn|norm_attn")
FEED_FORWARD = re.compile(r"mlp|ffn?$|ffn|feed_?forward|moe|experts|fc\d|intermediate|channel")


def equal(got: torch.Tensor, want: torch.Tensor) -> bool:
    """Say whether two values are the same to rounding, in direction and in norm."""
    if got.shape != want.shape:
        return False
    got, want = got.float(), want.float()
    exact = 1e-4 if want.dtype is torch.float32 else 2e-2
    scale = want.norm().clamp(min=1e-6)
    return bool((got - want).norm() <= exact * scale)


@dataclass(frozen=True)
class Parts:
    """Which values of a block add up to what it does.

    Attributes:
        attention: the path of the module whose output is what attention adds; None if there is none.
        feed_forward: likewise for the feed-forward part.
        scale: by what both are multiplied before they are added.
        why: what is missing and why, where one of them is None.
    """

    attention: str | None
    feed_forward: str | None
    scale: float = 1.0
    why: str = ""


def parts(record: Record, block: str, hint: Parts | None = None, near: str = "") -> Parts:
    """Find the values of a block that add up to the difference between its output and its input.

    Args:
        record: a forward.
        block: the path of the block.
        hint: what was found for another block, whose path is `near`; it is tried first.
    """
    start, end = record.input(block), record.output(block)
    if start is None or end is None or start.shape != end.shape:
        return Parts(None, None, why="the block does not take and give hidden states")
    added = end.float() - start.float()
    if hint is not None and hint.attention and hint.feed_forward:
        moved = [block + path[len(near) :] for path in (hint.attention, hint.feed_forward)]
        scale = _sums(record, moved, added)
        if scale is not None:
            return Parts(moved[0], moved[1], scale)
    inside = _inside(record, block)
    for first, second in _pairs(inside):
        scale = _sums(record, (first, second), added)
        if scale is not None:
            if record.visits[first].order > record.visits[second].order:
                first, second = second, first
            swap = bool(_is(FEED_FORWARD, first, block) and _is(ATTENTION, second, block))
            attention, feed_forward = (second, first) if swap else (first, second)
            if not (_is(ATTENTION, attention, block) or _attends(record, block)):
                why = f"the block has no attention: what it adds first comes from `{attention}`"
                return Parts(None, feed_forward, scale, why)
            return Parts(attention, feed_forward, scale)
    for path in inside:
        scale = _sums(record, (path,), added)
        if scale is not None:
            if _is(ATTENTION, path, block):
                return Parts(path, None, scale, "the block has attention only")
            if _is(FEED_FORWARD, path, block):
                return Parts(None, path, scale, "the block has a feed-forward part only")
            return Parts(None, None, why=f"all that the block adds comes from `{path}`, which is no attention")
    if _normalised(record, block, inside, end):
        return Parts(None, None, why="the block normalises the sum, so what it gives is not a sum of contributions")
    return Parts(None, None, why="no two values in the block add up to the difference between its output and its input")


def _inside(record: Record, block: str) -> list[str]:
    """Return the modules of a block that give hidden states once, the outermost and earliest first."""
    shape = record.output(block)
    found = []
    for path in record.visits:
        given = record.output(path) if path.startswith(block + ".") and record.counts[path] == 1 else None
        if given is not None and shape is not None and given.shape == shape.shape:
            found.append(path)
    return sorted(found, key=lambda path: (path.count("."), record.visits[path].order))


def _pairs(paths: Sequence[str]) -> Iterator[tuple[str, str]]:
    pairs = [
        (first, second)
        for at, first in enumerate(paths)
        for second in paths[at + 1 :]
        if not (first.startswith(second + ".") or second.startswith(first + "."))
    ]
    return iter(sorted(pairs, key=lambda pair: pair[0].count(".") + pair[1].count(".")))


def _sums(record: Record, paths: Sequence[str], added: torch.Tensor) -> float | None:
    """Return by what the outputs of these modules must be multiplied to add up, or None if they do not."""
    outputs = [record.output(path) for path in paths]
    if any(output is None or output.shape != added.shape for output in outputs):
        return None
    total = torch.stack([output.float() for output in outputs if output is not None]).sum(0)
    if equal(total, added):
        return 1.0
    square = float((total * total).sum())
    scale = float((total * added).sum()) / square if square else 0.0
    return scale if scale > 1e-3 and equal(total * scale, added) else None


def _is(kind: re.Pattern[str], path: str, block: str) -> bool:
    return kind.search(path[len(block) + 1 :].split(".")[0].lower()) is not None


def _attends(record: Record, block: str) -> bool:
    """Say whether weights over positions are computed in a block, under whatever name."""
    return any(path.startswith(block + ".") for path in record.attending)


def _normalised(record: Record, block: str, inside: Sequence[str], end: torch.Tensor) -> bool:
    return any("norm" in path.lower() and equal(record.output(path), end) for path in inside)  # type: ignore[arg-type]
