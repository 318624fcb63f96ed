"""Where the values of standard names lie in one model, as plain data: it travels with the blocks that use the names."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from nnsight.plugin import standard


@dataclass(frozen=True)
class Spot(standard.Spot):
    """Where hidden states lie.

    Attributes:
        summed: whether it is the sum of the two tensors that lie there: what a part gave, and the stream before it.
    """

    summed: bool = False


@dataclass
class Block(standard.Block):
    """What the names mean in one layer.

    Attributes:
        pair: whether it gives what its last part gave and the stream before that, or one tensor.
        row: whether it gives one row of all tokens [1, tokens, hidden], and not [tokens, hidden].
    """

    where: dict[str, Spot] = field(default_factory=dict)
    pair: bool = False
    row: bool = False


@dataclass
class Found(standard.Resolution):
    """What the names mean in one model."""

    blocks: list[Block] = field(default_factory=list)

    def plain(self) -> dict[str, Any]:
        """Return it as dictionaries."""
        return asdict(self)

    @classmethod
    def of(cls, plain: dict[str, Any]) -> Found:
        """Make it of what `plain` returned."""
        blocks = [
            Block(**{**one, "where": {name: Spot(**spot) for name, spot in one["where"].items()}})
            for one in plain["blocks"]
        ]
        return cls(**{**plain, "blocks": blocks})
