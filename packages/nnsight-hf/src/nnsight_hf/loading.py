"""Loading a model from a hub id, a local folder or an embedded name: its configuration, its tokenizer, its weights.

Each part is loaded by transformers' own Auto classes and by nothing cleverer. Without weights the module is built from
the configuration on the meta device, which takes no memory; when and how the weights replace it is the core's business.
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
_HUB_OPTIONS = (
    "cache_dir",
    "force_download",
    "local_files_only",
    "revision",
    "subfolder",
    "token",
    "trust_remote_code",
)

#: What a module that is built without weights needs to be like the loaded one.
_BUILD_OPTIONS = ("attn_implementation", "trust_remote_code", "dtype", "torch_dtype")


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


class Checkpoint:
    """Where a model's configuration and weights are, and how they are loaded: see `nnsight.plugin.Loadable`.

    Args:
        automodel: the Auto class that makes the module.
        source: what `from_pretrained` is given.
        config: a configuration, if not the checkpoint's own.
        options: passed to `from_pretrained`.
    """

    def __init__(
        self, automodel: Any, source: str, config: PretrainedConfig | None = None, options: dict[str, Any] | None = None
    ) -> None:
        self.automodel = automodel
        self.source = source
        self.options = dict(options or {})
        self.config = config or AutoConfig.from_pretrained(source, **hub_options(self.options))

    def build(self) -> torch.nn.Module:
        """Build the module on the meta device: the tree is there, the numbers are not."""
        options = {name: self.options[name] for name in _BUILD_OPTIONS if name in self.options}
        with torch.device("meta"):
            module: torch.nn.Module = self.automodel.from_config(self.config, **options)
        return module.eval()

    def load(self) -> torch.nn.Module:
        """Load the module with its weights."""
        module: torch.nn.Module = self.automodel.from_pretrained(self.source, config=self.config, **self.options)
        return module.eval()


def load_tokenizer(source: str, options: dict[str, Any], tokenizer_options: dict[str, Any]) -> Any:
    """Load a tokenizer that pads on the left, and with its end-of-text token if it has none for that, as is usual."""
    given = {"padding_side": "left", **hub_options(options), **tokenizer_options}
    tokenizer = AutoTokenizer.from_pretrained(source, **given)
    if getattr(tokenizer, "pad_token", None) is None and getattr(tokenizer, "eos_token", None) is not None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer
