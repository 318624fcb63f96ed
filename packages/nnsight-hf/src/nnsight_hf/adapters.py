"""Adapters of peft, put into a model where its modules lie, so that the paths of the model stay what they were.

`model.layers.0.self_attn.q_proj` is then the adapted layer, with `.base_layer` and `.lora_A` inside. An adapter whose
weights do not land, all of them and in their shapes, is refused and taken out again: half an adapter is a model that
nobody trained. When adapters are put in is decided in `loading.py` and `pretrained.py`.
"""

from __future__ import annotations

import copy
import importlib.util
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from nnsight import LoadError

#: The name of an adapter that was given none, as in peft.
DEFAULT = "default"


@dataclass
class Adapter:
    """One adapter.

    Attributes:
        name: what it is called in the model.
        source: a hub id or a folder; None for a new one.
        config: its `peft.PeftConfig`, for a new one.
        options: where its files are (`revision=`, `subfolder=`, ...).
    """

    name: str
    source: str | None
    config: Any = None
    options: dict[str, Any] = field(default_factory=dict)

    def outline(self) -> Any:
        """Return its configuration."""
        from peft import PeftConfig

        config = copy.deepcopy(self.config)
        if self.source is not None:
            config = PeftConfig.from_pretrained(self.source, **self.options)
        if config.is_prompt_learning:
            raise LoadError(
                f"the adapter `{self.name}` is {config.peft_type.value}, which adds to the prompt and not to modules. "
                "Load it with peft and wrap what that returns: LanguageModel(peft.PeftModel.from_pretrained(model, ...))"
            )
        return config


def listed(given: Any) -> list[Adapter]:
    """Return the adapters that somebody asked for: a hub id or folder, a `PeftConfig` for a new one, or several by name."""
    if given is None:
        return []
    required()
    from peft import PeftConfig

    if isinstance(given, Mapping):
        return [_one(str(name), each, PeftConfig) for name, each in given.items()]
    return [_one(DEFAULT, given, PeftConfig)]


def _one(name: str, given: Any, kind: type) -> Adapter:
    if isinstance(given, Adapter):
        return given
    if isinstance(given, (str, os.PathLike)):
        return Adapter(name, os.fspath(given))
    if isinstance(given, kind):
        return Adapter(name, None, given)
    raise TypeError(
        "an adapter is a hub id, a local folder or a peft.PeftConfig (several: a mapping from names to these), not "
        + type(given).__name__
    )


def required() -> None:
    """Say what to install where peft is missing."""
    if importlib.util.find_spec("peft") is None:
        raise ImportError("adapters need peft, which is not installed: pip install 'nnsight-hf[peft]'")


def sketch(module: Any, adapter: Adapter) -> None:
    """Put an adapter's modules into a model that has no weights."""
    with torch.device("meta"):
        _inject(module, adapter)


def put(module: Any, adapter: Adapter) -> None:
    """Put an adapter with its weights into a model, and let it be the active one.

    Raises:
        LoadError: its weights do not land. The model is then as it was.
    """
    if adapter.name in loaded(module):
        raise ValueError(
            f"the model has an adapter `{adapter.name}` already: give this one another `adapter_name=`, or unload that one"
        )
    active = loaded(module) and list(module.active_adapters())
    try:
        if adapter.source is None:
            _inject(module, adapter)
        else:
            _read(module, adapter)
        module.set_adapter(adapter.name)
    except BaseException:
        if adapter.name in loaded(module):
            take_out(module, [adapter.name])
            if active:
                module.set_adapter(active)
        raise
    module.eval()


def _inject(module: Any, adapter: Adapter) -> None:
    try:
        module.add_adapter(adapter.outline(), adapter.name)
    except ValueError as error:
        raise LoadError(f"the adapter `{adapter.name}` does not fit {type(module).__name__}: {error}") from error


def _read(module: Any, adapter: Adapter) -> None:
    adapter.outline()
    try:
        # Shapes that differ are told below, with the names that transformers leaves to its log.
        info = module.load_adapter(
            adapter.source,
            adapter_name=adapter.name,
            adapter_kwargs=dict(adapter.options),
            ignore_mismatched_sizes=True,
        )
    except ValueError as error:
        raise LoadError(f"the adapter `{adapter.name}` does not fit {type(module).__name__}: {error}") from error
    wrong = []
    others = set(loaded(module)) - {adapter.name}
    # It takes the weights of other adapters for missing ones.
    missing = [key for key in info.missing_keys if adapter.name in key.split(".") or not others & set(key.split("."))]
    # relies on: what PreTrainedModel.load_adapter returns, transformers 5.23
    if missing:
        wrong.append("the adapter's files do not have " + some(missing))
    if info.unexpected_keys:
        wrong.append("the model has no place for " + some(info.unexpected_keys))
    if info.mismatched_keys:
        wrong.append(f"of another shape are {shapes(info.mismatched_keys)}")
    if wrong:
        raise LoadError(
            f"the adapter `{adapter.name}` from {adapter.source} does not fit {type(module).__name__}: {'; '.join(wrong)}. "
            "Was it trained on another model? The model is left without it."
        )


def some(keys: Any, most: int = 12) -> str:
    """Name keys, and say how many more there are."""
    names = sorted(keys)
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def shapes(mismatched: Any) -> str:
    """Name keys with the shape in the file and the shape in the model."""
    return some(f"{name} {tuple(there)} for {tuple(here)}" for name, there, here in mismatched)


def loaded(module: Any) -> dict[str, Any]:
    """Return the adapters in a model, by name."""
    found: dict[str, Any] = getattr(module, "peft_config", None) or {}
    return found


def take_out(module: Any, names: list[str]) -> None:
    """Take adapters out; layers that have none left are the plain ones again."""
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils import ModulesToSaveWrapper

    module.delete_adapter(names)
    for holder in list(module.modules()):
        for name, child in list(holder.named_children()):
            if loaded(module):
                continue
            if isinstance(child, BaseTunerLayer):
                setattr(holder, name, child.get_base_layer())
            elif isinstance(child, ModulesToSaveWrapper):
                setattr(holder, name, child.original_module)


def opened(module: Any) -> Any:
    """Return the model inside a `PeftModel`, where the adapters lie in it; a prompt's adapter needs the wrapper."""
    if importlib.util.find_spec("peft") is None:
        return module
    from peft import PeftModel

    if not isinstance(module, PeftModel) or module.active_peft_config.is_prompt_learning:
        return module
    inner: Any = module.get_base_model()
    # relies on: PreTrainedModel._hf_peft_config_loaded, transformers 5.23: what peft put in, it then sees as its own
    inner._hf_peft_config_loaded = True
    return inner
