"""`PretrainedModel`: what every family of transformers' models shares, whatever its inputs are.

It knows where a model came from (`loading.py`), its configuration, and that its weights come when they are needed. How an
input becomes a call is left to the families: `language.py` and its siblings.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from nnsight.plugin import LazyModel, Sharding
from nnsight_hf.loading import Origin


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
        super().__init__(origin.source, dispatch=dispatch, rename=rename, envoys=envoys)
        own = self.__dict__
        own["repo_id"] = origin.name
        if getattr(self._module, "config", None) is None:
            own["config"] = origin.config  # else it is the module's own, as the module reads it

    @property
    def _model(self) -> torch.nn.Module:
        return self._module

    @property
    def name_or_path(self) -> str:
        """The hub id or folder that the model was loaded from; what its configuration says for a loaded module."""
        return self.__dict__["repo_id"] or getattr(self.config, "_name_or_path", "") or ""

    @contextlib.contextmanager
    def _on_fakes(self) -> Iterator[None]:
        """Let experts multiply in a way that fake tensors can follow: the grouped one asks them for bfloat16."""
        module: Any = self._module
        # relies on: PreTrainedModel.get_experts_implementation and set_experts_implementation, transformers 5.23
        before = module.get_experts_implementation() if hasattr(module, "get_experts_implementation") else {}
        grouped = any(name is not None for name in before.values()) and module._can_set_experts_implementation()
        if grouped:
            module.set_experts_implementation("batched_mm")
        try:
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
        device = self.device
        if device is None or device.type == "meta":
            return data
        return {name: value.to(device) if isinstance(value, torch.Tensor) else value for name, value in data.items()}
