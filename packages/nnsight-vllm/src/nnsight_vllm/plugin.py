"""What this plugin offers, by name; nothing is imported until it is used."""

from __future__ import annotations

from nnsight.plugin import hookimpl


@hookimpl
def families() -> dict[str, str]:
    """The kinds of models."""
    return {"VLLM": "nnsight_vllm.model:VLLM"}


@hookimpl
def import_aliases() -> dict[str, str]:
    """The path that earlier releases had."""
    return {"nnsight.modeling.vllm": "nnsight_vllm.model"}


@hookimpl
def travels_by_reference() -> dict[str, str]:
    """What a model has at both ends."""
    return {"vllm.tokenizer": "nnsight_vllm.references:tokenizer"}


@hookimpl
def commands() -> dict[str, str]:
    """Subcommands of `nnsight`."""
    return {"vllm-serve": "nnsight_vllm.command:serve"}
