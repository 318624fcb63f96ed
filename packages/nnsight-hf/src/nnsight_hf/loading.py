"""Loading a model from a hub id, a local folder or an embedded name: its configuration, its tokenizer, its weights.

Each part is loaded by transformers' own Auto classes and by nothing cleverer. Without weights the module is built from
the configuration on the meta device, which takes no memory; the weights come later and replace the module.
"""

from __future__ import annotations

import os
from typing import Any

import torch
from transformers import AutoConfig, AutoTokenizer, PretrainedConfig

from nnsight_hf import toy

#: Models that travel in this package, by the name that loads them.
EMBEDDED = {"nnsight/toy-landmarks": toy.path}

#: What `from_pretrained` of a configuration and a tokenizer take too, and not only that of a model.
_HUB_OPTIONS = ("cache_dir", "force_download", "local_files_only", "revision", "subfolder", "token", "trust_remote_code")


def locate(name: str | os.PathLike[str]) -> str:
    """Return what `from_pretrained` is to be given for a model's name."""
    given = os.fspath(name)
    if not given:
        raise ValueError("a model's name is empty: give a hub id, a local folder, or a loaded module")
    embedded = EMBEDDED.get(given)
    return str(embedded()) if embedded is not None else given


def hub_options(options: dict[str, Any]) -> dict[str, Any]:
    """Return those options of a model that say where its files are."""
    return {name: options[name] for name in _HUB_OPTIONS if name in options}


def load_config(source: str, options: dict[str, Any]) -> PretrainedConfig:
    """Load a configuration."""
    config: PretrainedConfig = AutoConfig.from_pretrained(source, **hub_options(options))
    return config


def load_tokenizer(source: str, options: dict[str, Any], tokenizer_options: dict[str, Any]) -> Any:
    """Load a tokenizer that pads on the left, so that the last token of every row is its last position."""
    given = {"padding_side": "left", **hub_options(options), **tokenizer_options}
    return prepare_tokenizer(AutoTokenizer.from_pretrained(source, **given))


def prepare_tokenizer(tokenizer: Any) -> Any:
    """Give a tokenizer that has no padding token its end-of-text token for it, as is usual."""
    if getattr(tokenizer, "pad_token", None) is None and getattr(tokenizer, "eos_token", None) is not None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def build_without_weights(automodel: Any, config: PretrainedConfig, options: dict[str, Any]) -> torch.nn.Module:
    """Build the module on the meta device: the tree is there, the numbers are not."""
    passed = {k: v for k, v in options.items() if k in ("attn_implementation", "trust_remote_code", "dtype", "torch_dtype")}
    with torch.device("meta"):
        module: torch.nn.Module = automodel.from_config(config, **passed)
    return module.eval()


def load_weights(automodel: Any, source: str, config: PretrainedConfig, options: dict[str, Any]) -> torch.nn.Module:
    """Load the module with its weights."""
    module: torch.nn.Module = automodel.from_pretrained(source, config=config, **options)
    return module.eval()
