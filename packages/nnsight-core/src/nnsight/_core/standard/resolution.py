"""What the standard names mean in one model, as plain data: a family makes it, and may keep it or send it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Spot:
    """Where hidden states lie. A family may subclass it, and note more; one whose values need other words has its own.

    Attributes:
        path: the module, below the model.
        site: `"output"`, or `"input"`.
        scale: by what the model multiplies what lies there before it adds it to the stream.
    """

    path: str
    site: str = "output"
    scale: float = 1.0

    def shown(self, path: str) -> str:
        """Say where it lies, for people.

        Args:
            path: the module's whole path.
        """
        return f"{path}.{self.site}" + ("" if self.scale == 1.0 else f" * {self.scale:g}")


@dataclass
class Block:
    """What the names mean in one layer. A family may subclass it, and note more.

    Attributes:
        path: the layer, below the model.
        where: the values that it has, by their names (`attentions_output`, ...): whatever the family needs to serve them.
        why: why it has no value of some name.
        modules: the paths of its parts: `self_attn`, `mixer`, `mlp`.
        mixer: what mixes positions in it: `"attention"`, otherwise the class of the module; several joined by ` + `;
            empty where it is not known, `"none"` where nothing does.
    """

    path: str
    where: dict[str, Any] = field(default_factory=dict)
    why: dict[str, str] = field(default_factory=dict)
    modules: dict[str, str] = field(default_factory=dict)
    mixer: str = ""


@dataclass
class Resolution:
    """What the names mean in one model; paths are below it. A family may subclass it, and note more.

    Attributes:
        hidden: the size of the hidden states.
        embed_tokens, ln_final, lm_head: paths; None where there is none.
        blocks: the layers, in the order in which the stream goes through them.
        absent: for each name that no layer has, or no model like this, why.
    """

    hidden: int
    embed_tokens: str | None = None
    ln_final: str | None = None
    lm_head: str | None = None
    blocks: list[Any] = field(default_factory=list)
    absent: dict[str, str] = field(default_factory=dict)

    @property
    def layers(self) -> list[str]:
        """The paths of the layers."""
        return [block.path for block in self.blocks]
