"""What this plugin offers, by name; nothing is imported until it is used."""

from __future__ import annotations

from nnsight.plugin import hookimpl


@hookimpl
def families() -> dict[str, str]:
    """The kinds of models."""
    return {
        "LanguageModel": "nnsight_hf.language:LanguageModel",
        "TransformersModel": "nnsight_hf.tasks:TransformersModel",
        "VisionLanguageModel": "nnsight_hf.vision:VisionLanguageModel",
    }


@hookimpl
def import_aliases() -> dict[str, str]:
    """The path that earlier releases had."""
    return {
        "nnsight.modeling.language": "nnsight_hf.language",
        "nnsight.modeling.transformers": "nnsight_hf.tasks",
        "nnsight.modeling.vlm": "nnsight_hf.vision",
    }


@hookimpl
def travels_by_reference() -> dict[str, str]:
    """What a model has at both ends of a wire."""
    return {
        f"hf.{name}": f"nnsight_hf.references:{name}"
        for name in ("tokenizer", "processor", "config", "generation_config")
    }
