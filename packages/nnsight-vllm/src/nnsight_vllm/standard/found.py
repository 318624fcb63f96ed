"""Where the values of standard names lie in one model, as plain data: it travels with the blocks that use the names."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from nnsight import NNsightError


class AbsentNameError(NNsightError, AttributeError):
    """A standard name that cannot be given truthfully in a model."""


@dataclass(frozen=True)
class Spot:
    """Where hidden states lie.

    Attributes:
        path: the module, below the model.
        site: `"output"`, or `"input"`.
        scale: by what the model multiplies what lies there before it adds it to the stream.
        summed: whether it is the sum of the two tensors that lie there: what a part gave, and the stream before it.
    """

    path: str
    site: str = "output"
    scale: float = 1.0
    summed: bool = False


@dataclass
class Block:
    """What the names mean in one layer.

    Attributes:
        path: the layer.
        pair: whether it gives what its last part gave and the stream before that, or one tensor.
        row: whether it gives one row of all tokens [1, tokens, hidden], and not [tokens, hidden].
        where: the values that it has, by their names (`attentions_output`, ...).
        why: why it has no value of some name.
        modules: the paths of its parts: `self_attn`, `mlp`.
    """

    path: str
    pair: bool = False
    row: bool = False
    where: dict[str, Spot] = field(default_factory=dict)
    why: dict[str, str] = field(default_factory=dict)
    modules: dict[str, str] = field(default_factory=dict)


@dataclass
class Found:
    """What the names mean in one model; paths are below it.

    Attributes:
        hidden: the size of the hidden states.
        embed_tokens, ln_final, lm_head: paths; None where there is none.
        blocks: the layers, in the order in which the stream goes through them.
        why: why there is no value of some name anywhere.
    """

    hidden: int
    embed_tokens: str | None = None
    ln_final: str | None = None
    lm_head: str | None = None
    blocks: list[Block] = field(default_factory=list)
    why: dict[str, str] = field(default_factory=dict)

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
