"""Values of an engine's step that no module of the model has: the logits, and the tokens that are drawn from them."""

from __future__ import annotations

import itertools
from typing import Any, NoReturn

import torch

from nnsight import AbsentNameError, NNsightError, ScanError
from nnsight.plugin import Envoy, NNsight, Sharding

from ..standard import StandardNames

#: Their names below the root, in the order in which they pass.
NAMES = ("logits", "samples")


class Passing(torch.nn.Module):
    """Returns what it is given, so that the value has a site."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def forward(self, value: Any) -> Any:
        """Return `value`."""
        return value

    def __getattr__(self, name: str) -> Any:
        own = self.__dict__.get("name")
        raise AttributeError(
            f"`model.{own}` is where a value passes, and has no {name!r}. The value itself is `model.{own}.output`"
        )


class Part(Envoy):
    """A module of a model that an engine serves."""

    def trace(self, *inputs: Any, **kwargs: Any) -> NoReturn:
        """Refuse: an engine runs its model as a whole."""
        raise NNsightError(
            f"`{self._path}` cannot be traced by itself: an engine runs its model as a whole. Write "
            "`with model.trace(prompt):`, and ask for this module's values inside."
        )

    def scan(self, *inputs: Any, **kwargs: Any) -> NoReturn:
        """Refuse: there is no forward without an engine."""
        raise unscanned()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the module by hand, inside a block."""
        if not self._root.__dict__["_has_weights"]:
            raise NNsightError(
                f"`{self._path}` was called outside a block. Its weights are in the engine: call it inside `with "
                "model.trace(prompt):`, and save what it returns."
            )
        return super().__call__(*args, **kwargs)


class ServedModel(NNsight):
    """A model of vLLM with the places of an engine's step: `model.logits.output`, `model.samples.output`."""

    #: How its values lie on the workers that share it, where there are weights.
    _lying: Sharding | None = None

    def __init__(self, module: torch.nn.Module, lying: Sharding | None = None, **options: Any) -> None:
        self.__dict__["_lying"] = lying
        super().__init__(module, **options)
        self.__dict__["_default_class"] = Part
        self.__dict__["_has_weights"] = not all(parameter.is_meta for parameter in module.parameters())
        held = itertools.chain(module.parameters(), module.buffers())
        self.__dict__["_is_hollow"] = all(tensor.is_meta for tensor in held)
        for name in NAMES:
            self._attach(name, Passing(name))

    def __setattr__(self, name: str, value: Any) -> None:
        if name in NAMES:
            raise AttributeError(f"what is to pass at `model.{name}` is assigned to `model.{name}.output`")
        super().__setattr__(name, value)

    def scan(self, *inputs: Any, **kwargs: Any) -> NoReturn:
        """Refuse: there is no forward without an engine."""
        raise unscanned()

    def __call__(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refuse: what runs the model is the engine."""
        raise NNsightError(
            "An engine runs its model for requests: `model.generate(prompt)` returns what it gives, and `with "
            "model.trace(prompt):` looks inside."
        )

    @property
    def standard(self) -> StandardNames:
        """This model under standard names (`layers_output[i]`, `mlps_output[i]`, ...); see `nnsight_vllm.standard`."""
        names: StandardNames | None = self.__dict__.get("_standard_names")
        if names is None:
            raise AbsentNameError(
                "What standard names mean in a model that is served is found out by a small request of its own. Ask for "
                "`names = model.standard` before the trace, and use `names` in its block."
            )
        return names

    def _text_config(self) -> Any:
        module: Any = self._module
        return module.config.get_text_config()

    def _project(self, norm: Any, states: torch.Tensor) -> torch.Tensor:
        """Return the logits of hidden states [positions, hidden]."""
        module: Any = self._module

        def project() -> torch.Tensor:
            # The class's own: what lies on the instance is told of the engine's steps.
            logits: torch.Tensor = type(module).compute_logits(module, norm._module(states))
            return logits

        lying = self.__dict__["_sharding"]
        return project() if lying is None else lying.lockstep.together("projects on the vocabulary", project)

    def _shard(self, module: torch.nn.Module) -> Sharding | None:
        return self._lying

    def _pass(self, name: str, value: Any) -> Any:
        """Let a value pass through one of these places, and return what the bodies made of it."""
        # As a module's call would, without what is around one: every step of an engine comes here.
        return self.__dict__["_extras"][name].forward(value)


def unscanned() -> ScanError:
    """Return the error for a scan."""
    return ScanError(
        "A model in an engine cannot be scanned: its forward reads the engine's batch and its cache, which fake tensors do "
        "not have. Trace a short prompt with `max_tokens=1`, and read the shapes of what you save."
    )
