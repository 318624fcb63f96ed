"""How the identities that the names stand for come out in a run, with the values that the names serve.

Directions alone would not tell a contribution from one that the model goes on to multiply: norms are compared too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from nnsight_hf.standard.record import tokens

if TYPE_CHECKING:
    from nnsight_hf.standard.names import StandardNames

SUM = "layers_input[i] + mixers_output[i] + mlps_output[i] = layers_output[i]"
CHAIN = "layers_output[i-1] = layers_input[i]"
SAME = "attentions_output[i] = mixers_output[i]"
END = "project_on_vocab(layers_output[-1]) = logits"


@dataclass(frozen=True)
class Identity:
    """One identity in one layer, as it came out.

    Attributes:
        name: the identity, written out.
        layer: the layer; None for the whole model.
        norm: the norm of the left side by that of the right.
        direction: the cosine between the two.
        error: the norm of their difference by that of the right side.
        holds: whether the difference is rounding.
    """

    name: str
    layer: int | None
    norm: float
    direction: float
    error: float
    holds: bool


class Identities(list[Identity]):
    """How all identities came out; printed as a table, first those that do not hold."""

    @property
    def hold(self) -> bool:
        """Whether all of them do."""
        return all(identity.holds for identity in self)

    def __str__(self) -> str:
        if not self:
            return "no identity can be measured: too many names are absent"
        width = max(len(identity.name) for identity in self)
        lines = [f"{'':2}{'identity':<{width}}  layer  norm     direction  error"]
        for one in sorted(self, key=lambda one: one.holds):
            layer = "" if one.layer is None else str(one.layer)
            mark = " " if one.holds else "✗"
            numbers = f"{one.norm:<7.5f}  {one.direction:<9.5f}  {one.error:.1e}"
            lines.append(f"{mark} {one.name:<{width}}  {layer:<5}  {numbers}")
        return "\n".join(lines)

    __repr__ = __str__


def compare(name: str, layer: int | None, left: torch.Tensor, right: torch.Tensor) -> Identity:
    """Compare the two sides of an identity."""
    exact = {torch.float32: 1e-4, torch.float64: 1e-4}.get(right.dtype, 2e-2)
    a, b = left.double().flatten(), right.double().flatten()
    if a.shape != b.shape:
        return Identity(name, layer, float("nan"), float("nan"), float("inf"), False)
    size, wanted = float(a.norm()), max(float(b.norm()), 1e-30)
    error = float((a - b).norm()) / wanted
    return Identity(name, layer, size / wanted, float(a @ b) / (max(size, 1e-30) * wanted), error, error <= exact)


def measure(names: StandardNames, given: tuple[Any, ...], kwargs: Any) -> Identities:
    """Run the model on an input, a few tokens if there is none, and compare both sides of each identity.

    Names that are absent have no identity: those that need them are left out.
    """
    count, found = len(names.resolution.blocks), Identities()
    values: dict[str, list[torch.Tensor | None]] = {}
    if not given and not kwargs:
        given = (tokens(names.model._module),)
    with torch.no_grad(), names.model.trace(*given, **kwargs):
        for at in range(count):
            read = _in_order(names, at)
            for name in read:
                values.setdefault(name, [None] * count)[at] = getattr(names, name)[at].clone()
        logits = names.logits.clone()
    for at in range(count):
        before, mixed, worked, attended, after = (
            values.get(name, [None] * count)[at]
            for name in ("layers_input", "mixers_output", "mlps_output", "attentions_output", "layers_output")
        )
        block = names.resolution.blocks[at]
        parts = [part for part in (mixed, worked) if part is not None]
        whole = all(name in block.where or name in block.without for name in ("mixers_output", "mlps_output"))
        if before is not None and after is not None and whole:
            found.append(compare(SUM, at, sum(parts, before), after))
        last = values.get("layers_output", [None] * count)[at - 1] if at else None
        if before is not None and last is not None:
            found.append(compare(CHAIN, at, last, before))
        if attended is not None and mixed is not None and block.mixer == "attention":
            found.append(compare(SAME, at, attended, mixed))
    last = values.get("layers_output", [None])[-1]
    if names.resolution.head is not None and last is not None:
        with torch.no_grad():
            # Positions that the model puts before the tokens have no logits.
            found.append(compare(END, None, names.project_on_vocab(last[:, -logits.shape[1] :]), logits))
    return found


def _in_order(names: StandardNames, at: int) -> list[str]:
    """Return the values that a layer has, in the order in which the model passes where they lie."""
    where = names.resolution.blocks[at].where
    chosen = ["layers_input", "mixers_output", "attentions_output", "mlps_output", "layers_output"]
    chosen = [name for name in chosen if at not in getattr(names, name).absent]
    order = {path: number for number, path in enumerate(names.resolution.order)}
    return sorted(
        chosen, key=lambda name: (name == "layers_output", name != "layers_input", order[where[name][-1].path])
    )
