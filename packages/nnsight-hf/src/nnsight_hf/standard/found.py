"""What was found out about a model: where the values of its standard names lie, and why a name has none."""

from __future__ import annotations

from dataclasses import dataclass, field

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
        flat: whether rows and positions lie in one dimension there.
    """

    path: str
    site: str = "output"
    scale: float = 1.0
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
class Block:
    """What the names mean in one layer.

    Attributes:
        path: the layer.
        bare: whether it gives a tensor, and not a structure with one.
        where: the values that it has, by their names (`attentions_output`, ...).
        why: why it has no value of some name.
        without: the names that stand for a part which it has not got, so that nothing is missing.
        modules: the paths of its parts: `self_attn`, `mixer`, `mlp`.
        mixer: what mixes positions in it: `"attention"`, otherwise the class of the module; several joined by ` + `.
        weights: where its attention probabilities lie.
    """

    path: str
    bare: bool
    where: dict[str, Where] = field(default_factory=dict)
    why: dict[str, str] = field(default_factory=dict)
    without: set[str] = field(default_factory=set)
    modules: dict[str, str] = field(default_factory=dict)
    mixer: str = ""
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
class Resolution:
    """What the names mean in one model; paths are relative to it.

    Attributes:
        hidden: the size of the hidden states.
        embed_tokens, ln_final, lm_head: paths; None where there is none.
        blocks: the layers, in the order in which the stream goes through them.
        head: how logits come from the stream; None if that could not be found out.
        absent: for each name that no layer has, or no model like this, why.
        without: those among them that stand for a part which the model has not got.
        order: the modules, by when they first end.
    """

    hidden: int
    embed_tokens: str | None = None
    ln_final: str | None = None
    lm_head: str | None = None
    blocks: list[Block] = field(default_factory=list)
    head: Head | None = None
    absent: dict[str, str] = field(default_factory=dict)
    without: set[str] = field(default_factory=set)
    order: list[str] = field(default_factory=list)

    @property
    def layers(self) -> list[str]:
        """The paths of the layers."""
        return [block.path for block in self.blocks]

    @property
    def flat(self) -> bool:
        """Whether rows and positions lie in one dimension in some value."""
        return any(spot.flat for block in self.blocks for where in block.where.values() for spot in where)
