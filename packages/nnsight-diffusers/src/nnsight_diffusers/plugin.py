"""What this plugin offers, by name; nothing is imported until it is used."""

from __future__ import annotations

from nnsight.plugin import hookimpl


@hookimpl
def families() -> dict[str, str]:
    """The kinds of models."""
    return {"DiffusionModel": "nnsight_diffusers.model:DiffusionModel"}


@hookimpl
def import_aliases() -> dict[str, str]:
    """The path that earlier releases had."""
    return {"nnsight.modeling.diffusion": "nnsight_diffusers.model"}
