"""Loading a model from a hub id, a local folder, an embedded name or a configuration: its tokenizer, its weights.

Each part is loaded by transformers' own Auto classes and by nothing cleverer. Without weights the module is built from
the configuration on the meta device, which takes no memory; when and how the weights replace it is the core's business.
"""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from transformers import AutoConfig, AutoTokenizer, PretrainedConfig

from nnsight import LoadError, NNsightWarning
from nnsight_hf import adapters as adapters_
from nnsight_hf import identity, progress, quantization, toy
from nnsight_hf.adapters import Adapter

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
        new_weights: which weights may be new where the checkpoint has none, or has them in another shape: all, none, or
            those whose names begin so.
        adapters: what is put into the module when it is built and when it is loaded; the first is active.
    """

    def __init__(
        self,
        automodel: Any,
        source: str,
        config: PretrainedConfig,
        options: dict[str, Any],
        new_weights: bool | Sequence[str] = False,
        adapters: Sequence[Adapter] = (),
    ) -> None:
        self.automodel = automodel
        self.source = source
        self.options = options
        self.config = config
        self.new_weights = new_weights
        self.adapters = list(adapters)

    def build(self) -> torch.nn.Module:
        """Build the module on the meta device: the tree is there, the numbers are not."""
        options = {name: self.options[name] for name in _BUILD_OPTIONS if name in self.options}
        options = {name: value for name, value in options.items() if value != "auto"}  # the configuration says it
        with torch.device("meta"):
            module: torch.nn.Module = self.automodel.from_config(self.config, **options)
        for adapter in self.adapters:
            adapters_.sketch(module, adapter)
        return module.eval()

    def load(self) -> torch.nn.Module:
        """Load the module with its weights.

        Raises:
            LoadError: they are not all there, or cannot be read, or an adapter's are not.
        """
        quantization.refuse_silent_dequantization(self.config, self.options)
        module = self._read().eval()
        quantization.check(module, self.options)
        for adapter in self.adapters:
            adapters_.put(module, adapter)
        if len(self.adapters) > 1:
            module.set_adapter(self.adapters[0].name)
        return module

    def _read(self) -> Any:
        stated = self.options
        if stated.get("tp_plan") is not None:
            from nnsight_hf.parallel import restated  # torch.distributed takes a while to import

            stated = restated(stated)
        # Shapes that differ are told below, with the names that transformers leaves to its log.
        options = {**stated, "output_loading_info": True, "ignore_mismatched_sizes": True}
        try:
            with progress.patient():
                given = self.automodel.from_pretrained(self.source, config=self.config, **options)
        except (SafetensorError, RuntimeError, EOFError) as error:
            if isinstance(error, torch.cuda.OutOfMemoryError):
                raise
            raise LoadError(self._unreadable(error)) from error
        module, info = given
        self._refuse_new(module, info)
        return module

    def _unreadable(self, error: Exception) -> str:
        folder = Path(self.source, self.options.get("subfolder") or "")
        bad = identity.broken(folder) if folder.is_dir() else []
        return (
            f"the weights of {self.source} cannot be loaded: {error}. "
            + (f"Damaged: {', '.join(bad)}. " if bad else "")
            + "Nothing has changed: the tree can still be explored, and `model.dispatch()` tries again."
        )

    def _refuse_new(self, module: torch.nn.Module, info: Mapping[str, Any]) -> None:
        """Raise if weights were drawn anew because the checkpoint does not have them, and nobody asked for that."""
        missing = [name for name in info["missing_keys"] if not self._may_be_new(name)]
        wrong = [entry for entry in info["mismatched_keys"] if not self._may_be_new(entry[0])]
        if self.options.get("ignore_mismatched_sizes"):
            wrong = []
        said = ([f"does not have {adapters_.some(missing)}"] if missing else []) + (
            [f"has in another shape {adapters_.shapes(wrong)}"] if wrong else []
        )
        if not said:
            return
        begins = sorted({name.split(".")[0] for name in (*missing, *(entry[0] for entry in wrong))})
        spare = f" It has, and {type(module).__name__} has no place for, {adapters_.some(info['unexpected_keys'])}."
        raise LoadError(
            f"{self.source} {' and '.join(said)}: {type(module).__name__} would run with random numbers there."
            + (spare if info["unexpected_keys"] else "")
            + f" Load it as what it is (`automodel=`, `config=`), or say that they may be new: new_weights={begins}."
        )

    def _may_be_new(self, name: str) -> bool:
        if isinstance(self.new_weights, bool):
            return self.new_weights
        return any(name == start or name.startswith(f"{start}.") for start in self.new_weights)

    def identity(self) -> str | None:
        """Return what is loaded as a string, the same for the same model: see `identity.py`."""
        known = identity.of_checkpoint(self.source, hub_options(self.options))
        return None if known is None else known + self._variant()

    def _variant(self) -> str:
        asked = self.options.get("quantization_config")
        dtype = self.options.get("dtype", self.options.get("torch_dtype"))
        said = "" if dtype in (None, "auto") else f"+dtype:{str(dtype).removeprefix('torch.')}"
        if asked is not None:
            told = asked if isinstance(asked, dict) else asked.to_dict()
            digest = hashlib.sha256(json.dumps(told, sort_keys=True, default=str).encode()).hexdigest()[:16]
            said += f"+quantization:{digest}"
        return said


class Untrained:
    """A model that begins with new weights, made by its own initialisation from a configuration.

    Args:
        automodel: the Auto class that makes the module.
        config: the configuration.
        options: passed to `from_config`.
        adapters: as for `Checkpoint`.
    """

    def __init__(
        self, automodel: Any, config: PretrainedConfig, options: dict[str, Any], adapters: Sequence[Adapter] = ()
    ) -> None:
        if options.get("quantization_config") is not None:
            raise TypeError(
                "a configuration gives new weights, which cannot be quantised while they load: give a checkpoint"
            )
        self.automodel = automodel
        self.config = config
        self.options = {name: value for name, value in options.items() if value != "auto"}
        self.adapters = list(adapters)

    def build(self) -> torch.nn.Module:
        """Build the module on the meta device."""
        with torch.device("meta"):
            module: torch.nn.Module = self.automodel.from_config(self.config, **self.options)
        for adapter in self.adapters:
            adapters_.sketch(module, adapter)
        return module.eval()

    def load(self) -> torch.nn.Module:
        """Build the module with new weights, drawn with torch's generator."""
        module: torch.nn.Module = self.automodel.from_config(self.config, **self.options)
        for adapter in self.adapters:
            adapters_.put(module, adapter)
        return module.eval()

    def identity(self) -> str | None:
        """Return None: new weights are others each time."""
        return None


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

    source: torch.nn.Module | Checkpoint | Untrained
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
        options: passed to `from_pretrained`, except `peft=` and `new_weights=`, which are ours; see `Checkpoint`.

    Raises:
        TypeError: the model is none of these.
    """
    options = dict(options)
    peft, new_weights = options.pop("peft", None), options.pop("new_weights", False)
    if isinstance(model, torch.nn.Module):
        if peft is not None:
            raise TypeError("the module is loaded already: give its adapters to `model.load_adapter(...)`, not `peft=`")
        _warn_of_options(options)
        module = adapters_.opened(model)
        return Origin(module, getattr(module, "config", None) or config, None, None, options)
    options = quantization.named(options)
    if isinstance(model, PretrainedConfig):
        made = Untrained(_loader(automodel, choose, model), model, options, adapters_.listed(peft))
        return Origin(made, model, None, None, options)
    if not isinstance(model, (str, os.PathLike)):
        raise TypeError(
            "a model is a hub id, a local folder, a configuration or a torch.nn.Module, not " + type(model).__name__
        )
    name = os.fspath(model)
    where = locate(name)
    base = _base_of_adapter(where)
    if base is not None:
        if peft is not None:
            raise TypeError(f"{name} is an adapter itself, of {base}: name that model, and all adapters in `peft=`")
        peft, where = where, base
    config = config or AutoConfig.from_pretrained(where, **hub_options(options))
    loader = _loader(automodel, choose, config)
    source = Checkpoint(loader, where, config, options, new_weights, adapters_.listed(peft))
    return Origin(source, config, name, where, options)


def _base_of_adapter(where: str) -> str | None:
    """Return what a folder that holds an adapter, and no model, says that it was trained on; None for any other."""
    said = Path(where, "adapter_config.json")
    if not said.is_file() or Path(where, "config.json").exists():
        return None
    base: str | None = json.loads(said.read_text(encoding="utf-8")).get("base_model_name_or_path")
    if not base:
        raise LoadError(f"{where} is an adapter that does not say of which model: name the model, and this in `peft=`")
    return base


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
