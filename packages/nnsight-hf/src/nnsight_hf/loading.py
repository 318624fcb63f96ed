"""Loading a model from a hub id, a local folder, an embedded name or a configuration: its tokenizer, its weights.

Each part is loaded by transformers' own Auto classes and by nothing cleverer. Without weights the module is built from
the configuration on the meta device, which takes no memory; when and how the weights replace it is the core's business.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from transformers import AutoConfig, AutoTokenizer, PretrainedConfig

from nnsight import NNsightWarning
from nnsight.plugin import Loadable
from nnsight_hf import progress, toy

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
        config: the checkpoint's configuration, or another one.
        options: passed to `from_pretrained`.
    """

    def __init__(self, automodel: Any, source: str, config: PretrainedConfig, options: dict[str, Any]) -> None:
        self.automodel = automodel
        self.source = source
        self.options = options
        self.config = config

    def build(self) -> torch.nn.Module:
        """Build the module on the meta device: the tree is there, the numbers are not."""
        options = {name: self.options[name] for name in _BUILD_OPTIONS if name in self.options}
        with torch.device("meta"):
            module: torch.nn.Module = self.automodel.from_config(self.config, **options)
        return module.eval()

    def load(self) -> torch.nn.Module:
        """Load the module with its weights."""
        options = self.options
        if options.get("tp_plan") is not None:
            from nnsight_hf.parallel import restated  # torch.distributed takes a while to import

            options = restated(options)
        with progress.patient():
            module: torch.nn.Module = self.automodel.from_pretrained(self.source, config=self.config, **options)
        return module.eval()


class Untrained:
    """A model that begins with new weights, made by its own initialisation from a configuration.

    Args:
        automodel: the Auto class that makes the module.
        config: the configuration.
        options: passed to `from_config`.
    """

    def __init__(self, automodel: Any, config: PretrainedConfig, options: dict[str, Any]) -> None:
        self.automodel = automodel
        self.config = config
        self.options = options

    def build(self) -> torch.nn.Module:
        """Build the module on the meta device."""
        with torch.device("meta"):
            return self.load()

    def load(self) -> torch.nn.Module:
        """Build the module with new weights, drawn with torch's generator."""
        module: torch.nn.Module = self.automodel.from_config(self.config, **self.options)
        return module.eval()


@dataclass
class Origin:
    """Where a model comes from.

    Attributes:
        source: the module, or what loads it.
        config: its configuration; None for a module that has none.
        name: as the user named it; None for a module or a configuration.
        where: what `from_pretrained` is given; None for a module or a configuration.
        options: the options for loading.
    """

    source: torch.nn.Module | Loadable
    config: PretrainedConfig | None
    name: str | None
    where: str | None
    options: dict[str, Any]


#: Says which Auto class makes the module of a configuration.
Choice = Callable[[PretrainedConfig], Any]


def find(
    model: Any, config: PretrainedConfig | None, automodel: Any, choose: Choice, options: dict[str, Any]
) -> Origin:
    """Find out where a model comes from.

    Args:
        model: a hub id, a local folder, the name of an embedded model, a configuration, or a loaded module.
        config: a configuration, if not the model's own.
        automodel: the Auto class to load with, itself or by name; None to let `choose` say.
        choose: says which Auto class fits a configuration.
        options: passed to `from_pretrained`.

    Raises:
        TypeError: the model is none of these.
    """
    if isinstance(model, torch.nn.Module):
        _warn_of_options(options)
        return Origin(model, getattr(model, "config", None) or config, None, None, options)
    if isinstance(model, PretrainedConfig):
        return Origin(Untrained(_loader(automodel, choose, model), model, options), model, None, None, options)
    if not isinstance(model, (str, os.PathLike)):
        raise TypeError(
            "a model is a hub id, a local folder, a configuration or a torch.nn.Module, not " + type(model).__name__
        )
    name = os.fspath(model)
    where = locate(name)
    config = config or AutoConfig.from_pretrained(where, **hub_options(options))
    loader = _loader(automodel, choose, config)
    return Origin(Checkpoint(loader, where, config, options), config, name, where, options)


def _loader(automodel: Any, choose: Choice, config: PretrainedConfig) -> Any:
    if automodel is None:
        return choose(config)
    return getattr(transformers, automodel) if isinstance(automodel, str) else automodel


def _warn_of_options(options: dict[str, Any]) -> None:
    """Say that a module which is loaded already stays as it is, whatever options for loading came with it."""
    ignored = [name for name in options if name != "trust_remote_code"]
    if ignored:
        warnings.warn(
            f"the module is loaded already, so these options for loading change nothing: {', '.join(ignored)}",
            NNsightWarning,
            stacklevel=4,
        )


def load_tokenizer(source: str, options: dict[str, Any], tokenizer_options: dict[str, Any]) -> Any:
    """Load a tokenizer that pads on the left, and with its end-of-text token if it has none for that, as is usual."""
    given = {"padding_side": "left", **hub_options(options), **tokenizer_options}
    tokenizer = AutoTokenizer.from_pretrained(source, **given)
    let_pad(tokenizer)
    return tokenizer


def let_pad(tokenizer: Any) -> None:
    """Let a tokenizer without a token for padding use its end-of-text token."""
    if getattr(tokenizer, "pad_token", None) is None and getattr(tokenizer, "eos_token", None) is not None:
        tokenizer.pad_token = tokenizer.eos_token
