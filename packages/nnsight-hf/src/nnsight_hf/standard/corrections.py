"""What a user says about the names of a model, where it is not found or they mean another module.

Nothing that is said is believed: it takes part in the same sums as what is found, and is refused if they do not come out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch

from nnsight import AbsentNameError
from nnsight_hf.standard.found import Resolution


@dataclass(frozen=True)
class Corrections:
    """What was said.

    Attributes:
        layers: the path of the list of layers, below the model.
        parts: for `attention`, `mixer` and `mlp`, the modules below a layer whose outputs are what that part adds.
    """

    layers: str | None = None
    parts: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @staticmethod
    def of(layers: str | None, **parts: str | Sequence[str] | None) -> Corrections:
        """Return what was said, one module or several for each part."""
        said = {name: (given,) if isinstance(given, str) else tuple(given) for name, given in parts.items() if given}
        return Corrections(layers, said)

    def check(self, module: torch.nn.Module) -> None:
        """Refuse what the model does not have at all."""
        paths = [path for path, _ in module.named_modules()]
        if self.layers is not None and self.layers not in paths:
            raise AbsentNameError(f"`layers={self.layers!r}`: the model has no module at that path")
        for name, pieces in self.parts.items():
            for piece in pieces:
                if not any(path.endswith("." + piece) for path in paths):
                    raise AbsentNameError(f"`{name}={piece!r}`: no layer has a module at that path below it")

    def confirm(self, made: Resolution, module: torch.nn.Module) -> None:
        """Refuse what is not so, by what was found with it."""
        if self.layers is not None and not made.blocks:
            raise AbsentNameError(f"`layers={self.layers!r}` are no layers: {made.absent['layers']}")
        said = ", ".join(f"{name}={' + '.join(pieces)}" for name, pieces in self.parts.items())
        paths = {path for path, _ in module.named_modules()}
        for part, pieces in self.parts.items():
            value = f"{part}s_output"
            for index, block in enumerate(made.blocks):
                if value not in block.where and any(f"{block.path}.{piece}" in paths for piece in pieces):
                    why = block.why.get(value, "it is no part of the sum")
                    raise AbsentNameError(
                        f"{said}: in layer {index} that is not so. `layers_input + mixers_output + mlps_output = "
                        f"layers_output` does not come out with it: {why}. Nothing was changed."
                    )
