"""What the standard names mean in one model, as a text: which module each is, and why one is absent."""

from __future__ import annotations

from itertools import groupby
from typing import Any

from nnsight_hf.standard.values import PerLayer

_MODULES = ("embed_tokens", "ln_final", "lm_head")
_PER_LAYER = ("layers_input", "layers_output", "attentions_input", "attentions_output", "mlps_input", "mlps_output")


def absent(names: Any) -> dict[str, str]:
    """Return the names that cannot be given, each with the reason; `attentions_output[1]` where one layer lacks it."""
    found: dict[str, str] = dict(names.resolution.absent)
    for name in _PER_LAYER:
        values: PerLayer = getattr(names, name)
        missing = [(at, values._why[at]) for at, prop in enumerate(values._props) if prop is None]
        if len(missing) == len(values) and missing:
            found.setdefault(name, missing[0][1])
        else:
            found.update({f"{name}[{at}]": why for at, why in missing})
    return found


def listing(names: Any) -> str:
    """Return the table that `print(model.standard)` shows."""
    resolution = names.resolution
    rows = [(name, getattr(resolution, name)) for name in _MODULES if getattr(resolution, name) is not None]
    if resolution.layers:
        rows.insert(1, ("layers", f"{resolution.layers[0]} ... {resolution.layers[-1]}"))
    for name in _PER_LAYER:
        values: PerLayer = getattr(names, name)
        paths = [envoy._path if prop is not None else "" for envoy, prop in zip(values._envoys, values._props)]
        shown = [(_generic(path), at) for at, path in enumerate(paths) if path]
        for path, group in groupby(shown, key=lambda pair: pair[0]):
            rows.append((f"{name}[{_span([at for _, at in group])}]", path))
    width = max(len(name) for name, _ in rows)
    lines = [f"Standard names of {type(names.model._module).__name__}", ""]
    lines += [f"  {name.ljust(width)}  {path}" for name, path in rows]
    missing = absent(names)
    if missing:
        lines += ["", "absent:"] + [f"  {name}: {why}" for name, why in missing.items()]
    return "\n".join(lines)


def _generic(path: str) -> str:
    return ".".join("i" if piece.isdigit() else piece for piece in path.split("."))


def _span(indices: list[int]) -> str:
    return str(indices[0]) if len(indices) == 1 else f"{indices[0]}..{indices[-1]}"
