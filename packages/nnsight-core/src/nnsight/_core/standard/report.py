"""What the standard names mean in one model, as a text: where each lies, and why one is absent."""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING

from .values import PerLayer
from .vocabulary import VALUES

if TYPE_CHECKING:
    from .names import StandardNames

_MODULES = ("embed_tokens", "ln_final", "lm_head")


def absent_in(names: StandardNames) -> dict[str, str]:
    """Return the names that cannot be given, each with the reason; `attentions_output[1]` where one layer lacks it."""
    found: dict[str, str] = dict(names.resolution.absent)
    for name in VALUES:
        if name == "attention_probabilities":
            continue  # whether they are there is a choice of the user's
        values: PerLayer = getattr(names, name)
        missing = values.absent
        if len(missing) == len(values) and len(set(missing.values())) == 1:
            found.setdefault(name, missing[0])
        else:
            found.update({f"{name}[{at}]": why for at, why in missing.items()})
    return found


def listing(names: StandardNames) -> str:
    """Return the table that `print(model.standard)` shows."""
    resolution = names.resolution
    rows = [(name, getattr(resolution, name)) for name in _MODULES if getattr(resolution, name) is not None]
    if resolution.blocks:
        rows.insert(1, ("layers", f"{resolution.layers[0]} ... {resolution.layers[-1]}"))
        for kind, group in groupby(enumerate(names.mixers), key=lambda pair: pair[1]):
            other = f"not by attention, but by {kind}" if "attention" not in kind.split(" + ") else f"by {kind}"
            what = {"": "it is not known how", "none": "not at all", "attention": "by attention"}.get(kind, other)
            rows.append((f"mixers[{_span([at for at, _ in group])}]", f"positions are mixed {what}"))
    for name in VALUES:
        values: PerLayer = getattr(names, name)
        shown = [(_generic(value.shown), at) for at, value in enumerate(values.values) if not isinstance(value, str)]
        for path, alike in groupby(shown, key=lambda pair: pair[0]):
            rows.append((f"{name}[{_span([at for _, at in alike])}]", path))
    width = max(len(name) for name, _ in rows) if rows else 0
    lines = [f"Standard names of {type(names.model._module).__name__}", ""]
    lines += [f"  {name.ljust(width)}  {path}" for name, path in rows]
    missing = absent_in(names)
    if missing:
        lines += ["", "absent:"] + [f"  {name}: {why}" for name, why in missing.items()]
    return "\n".join(lines)


def _generic(path: str) -> str:
    return ".".join("i" if piece.isdigit() else piece for piece in path.split("."))


def _span(indices: list[int]) -> str:
    return str(indices[0]) if len(indices) == 1 else f"{indices[0]}..{indices[-1]}"
