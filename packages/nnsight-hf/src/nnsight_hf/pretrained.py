"""`PretrainedModel`: what every family of transformers' models shares, whatever its inputs are.

It knows where a model came from (`loading.py`), its configuration, and that its weights come when they are needed. How an
input becomes a call is left to the families: `language.py` and its siblings.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, TypeVar

import torch

from nnsight import LoadError
from nnsight.plugin import LazyModel, Sharding
from nnsight_hf import adapters, identity, offload, recording
from nnsight_hf import results as _results  # noqa: F401  # says which results come back as what they are
from nnsight_hf.loading import Origin
from nnsight_hf.quantization import Quantization, report

F = TypeVar("F")


class PretrainedModel(LazyModel):
    """A model of transformers, with its configuration and its origin.

    Args:
        origin: where it comes from.
        dispatch: load the weights now.
        rename, envoys: see `NNsight`.
    """

    def __init__(
        self,
        origin: Origin,
        *,
        dispatch: bool = False,
        rename: Mapping[str | type, str | Sequence[str]] | None = None,
        envoys: Any = None,
    ) -> None:
        self.__dict__["_findings"] = {}
        super().__init__(origin.source, dispatch=dispatch, rename=rename, envoys=envoys)
        own = self.__dict__
        own["repo_id"] = origin.name
        own["_origin"] = origin
        own["_adapters"] = [] if isinstance(origin.source, torch.nn.Module) else list(origin.source.adapters)
        if getattr(self._module, "config", None) is None:
            own["config"] = origin.config  # else it is the module's own, as the module reads it

    @property
    def _model(self) -> torch.nn.Module:
        return self._module

    @property
    def name_or_path(self) -> str:
        """The hub id or folder that the model was loaded from; what its configuration says for a loaded module."""
        return self.__dict__["repo_id"] or getattr(self.config, "_name_or_path", "") or ""

    def _known_as(self) -> str:
        return self.name_or_path

    @property
    def load_options(self) -> Mapping[str, Any]:
        """The options for loading that the model was made with (`revision=`, `trust_remote_code=`, ...)."""
        return MappingProxyType(self.__dict__["_origin"].options)

    # -- what is loaded ----------------------------------------------------------------------------------------------

    @property
    def identity(self) -> str | None:
        """What the model is, the same string wherever the same is loaded; None where nothing says it.

        `hub:owner/name@commit`, or for a folder `local:` and a fingerprint of its contents that moves along with it;
        then the type, the quantisation and the adapters that were asked for. A module, a configuration and a new adapter
        have none: their weights are others each time. Edits, and what you did to the weights, are no part of it.
        """
        source = self.__dict__["_origin"].source
        known = None if isinstance(source, torch.nn.Module) else source.identity()
        for adapter in self.__dict__["_adapters"]:
            part = None if adapter.source is None else identity.of_checkpoint(adapter.source, adapter.options)
            if known is None or part is None:
                return None
            known += f"+adapter:{adapter.name}={part}"
        return known

    @property
    def quantization(self) -> Quantization | None:
        """What of the loaded model is quantised, counted from its modules; None if nothing is.

        Raises:
            LoadError: the weights are not there yet, so nobody knows.
        """
        if not self.dispatched:
            raise LoadError("what is quantised is known once the weights are there: `model.dispatch().quantization`")
        return report(self._module)

    # -- adapters ----------------------------------------------------------------------------------------------------

    def load_adapter(self, adapter: Any, adapter_name: str = adapters.DEFAULT, **options: Any) -> PretrainedModel:
        """Put an adapter of peft into the model and let it be the active one. Paths of the model stay what they were.

        Before the weights are there, the tree shows the adapter's modules and its weights load along with the model's.

        Args:
            adapter: a hub id, a local folder, or a `peft.PeftConfig` for a new adapter.
            adapter_name: what to call it.
            options: where its files are (`revision=`, `subfolder=`, `token=`, ...).

        Raises:
            LoadError: not all of its weights land, in their shapes. The model is left without it.
        """
        (one,) = adapters.listed({adapter_name: adapter})
        one.options.update(options)
        if self.dispatched:
            adapters.put(self._module, one)
        elif one.name in {other.name for other in self.__dict__["_adapters"]}:
            raise ValueError(f"the model has an adapter `{one.name}` already: give this one another `adapter_name=`")
        else:
            adapters.sketch(self._module, one)
            # The first of the list is active once the weights come.
            self.__dict__["_origin"].source.adapters.insert(0, one)
        self.__dict__["_adapters"].append(one)
        self._rebuilt()
        return self

    def set_adapter(self, adapter_name: str | list[str]) -> None:
        """Let one adapter be active, or several, and no other. Loads the weights if need be."""
        self.dispatch()._module.set_adapter(adapter_name)  # type: ignore[operator]

    def disable_adapters(self) -> None:
        """Let the model run as if it had no adapters. Loads the weights if need be."""
        self.dispatch()._module.disable_adapters()  # type: ignore[operator]

    def enable_adapters(self) -> None:
        """Let the active adapters work again."""
        self.dispatch()._module.enable_adapters()  # type: ignore[operator]

    @contextlib.contextmanager
    def disable_adapter(self) -> Iterator[None]:
        """Run without adapters for the time of a block: `with model.disable_adapter():`."""
        self.disable_adapters()
        try:
            yield
        finally:
            self.enable_adapters()

    def unload_adapter(self, adapter_name: str | None = None) -> PretrainedModel:
        """Take an adapter out, or all of them; the model is then as if it had never had it."""
        if not self.dispatched:
            return self._forget_adapter(adapter_name)
        names = list(adapters.loaded(self._module)) if adapter_name is None else [adapter_name]
        if names:
            adapters.take_out(self._module, names)
        kept = self.__dict__["_adapters"]
        kept[:] = [one for one in kept if one.name not in names]
        self._rebuilt()
        return self

    def _forget_adapter(self, adapter_name: str | None) -> PretrainedModel:
        """Take an adapter off the list of those that are to be loaded with the weights."""
        source = self.__dict__["_origin"].source
        left = [one for one in source.adapters if adapter_name not in (None, one.name)]
        if len(left) == len(source.adapters):
            raise ValueError(f"the model has no adapter `{adapter_name}`")
        source.adapters[:] = left
        kept = self.__dict__["_adapters"]
        kept[:] = [one for one in kept if one in left]
        self._exchange(source.build())
        return self

    def _rebind(self, module: torch.nn.Module) -> None:
        super()._rebind(module)
        self.__dict__["_findings"] = {}  # found out anew: there are other modules now

    def _found(self, what: str, find: Callable[[], F]) -> F:
        """Return what `find` finds out about the modules as they are now; it is asked once for them."""
        findings: dict[str, Any] = self.__dict__["_findings"]
        if what not in findings:
            findings[what] = find()
        found: F = findings[what]
        return found

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        recording.register(self._module)

    # -- running -----------------------------------------------------------------------------------------------------

    def _tensor(self, module: torch.nn.Module, name: str, value: torch.Tensor) -> Any:
        """Return a tensor of a module, also where accelerate keeps it on the disk or in another memory."""
        return offload.stored(module, name, value)

    @contextlib.contextmanager
    def _on_fakes(self) -> Iterator[None]:
        """Let the model be followed by fake tensors: without accelerate, and with experts that multiply one by one.

        Experts in groups ask fake tensors for bfloat16.
        """
        module: Any = self._module
        # relies on: PreTrainedModel.get_experts_implementation and set_experts_implementation, transformers 5.23
        before = module.get_experts_implementation() if hasattr(module, "get_experts_implementation") else {}
        grouped = any(name is not None for name in before.values()) and module._can_set_experts_implementation()
        if grouped:
            module.set_experts_implementation("batched_mm")
        try:
            with offload.aside(module):
                yield
        finally:
            if grouped:
                module.set_experts_implementation(before)

    def _shard(self, module: torch.nn.Module) -> Sharding | None:
        if getattr(module, "_device_mesh", None) is None:
            return None
        from nnsight_hf.parallel import sharding_of  # torch.distributed takes a while to import

        return sharding_of(module)

    def _ready(self) -> None:
        super()._ready()
        sharding: Any = self.__dict__["_sharding"]
        if sharding is not None:
            sharding.learn()

    def _whole(self) -> Any:
        """Return the model as it is in one process: itself, or if it is spread over several, one without weights."""
        if self.__dict__["_sharding"] is None:
            return self
        from nnsight_hf.probe import twin

        other = copy.copy(self)
        with torch.device("meta"):
            other._rebind(twin(self._module).eval())
        return other

    def _placed(self, data: dict[str, Any]) -> dict[str, Any]:
        """Return arguments of the model with their tensors on its device."""
        device = offload.device_of(self._module) or self.device
        if device is None or device.type == "meta":
            return data
        return {name: value.to(device) if isinstance(value, torch.Tensor) else value for name, value in data.items()}
