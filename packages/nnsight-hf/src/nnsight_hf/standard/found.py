"""What was found out about a model: where the values of its standard names lie, and why a name has none."""

from __future__ import annotations

from dataclasses import dataclass, field

from nnsight.plugin import standard


@dataclass(frozen=True)
class Spot(standard.Spot):
    """Where hidden states lie.

    Attributes:
        flat: whether rows and positions lie in one dimension there.
    """

    flat: bool = False


@dataclass(frozen=True)
class Weights:
    """Where the weights over positions lie that attention multiplies values with.

    Attributes:
        path: the module that computes them, or the dropout that they go through.
        operations: the operation in its forward that gives them, then the one in that, and so on; none if the module does.
    """

    path: str
    operations: tuple[str, ...] = ()


#: What a value is: one spot, or several whose values are added up, in the order in which the model passes them.
Where = tuple[Spot, ...]


@dataclass
class Block(standard.Block):
    """What the names mean in one layer.

    Attributes:
        bare: whether it gives a tensor, and not a structure with one.
        without: the names that stand for a part which it has not got, so that nothing is missing.
        weights: where its attention probabilities lie.
    """

    where: dict[str, Where] = field(default_factory=dict)
    bare: bool = False
    without: set[str] = field(default_factory=set)
    weights: Weights | None = None


@dataclass
class Head:
    """How logits come from the last layer's output.

    Attributes:
        way: the modules that it goes through, each with the number by which its input is multiplied.
        factor: by what the last one's output is multiplied.
        cap: beyond which logits are squashed, as `cap * tanh(logits / cap)`; 0 if they are not.
    """

    way: list[tuple[str, float]]
    factor: float = 1.0
    cap: float = 0.0


@dataclass
class Resolution(standard.Resolution):
    """What the names mean in one model.

    Attributes:
        head: how logits come from the stream; None if that could not be found out.
        without: the absent names that stand for a part which the model has not got.
        order: the modules, by when they first end.
    """

    blocks: list[Block] = field(default_factory=list)
    head: Head | None = None
    without: set[str] = field(default_factory=set)
    order: list[str] = field(default_factory=list)

    @property
    def flat(self) -> bool:
        """Whether rows and positions lie in one dimension in some value."""
        return any(spot.flat for block in self.blocks for where in block.where.values() for spot in where)
